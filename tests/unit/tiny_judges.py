"""Small judges for bench.paper: a random CLIP, a vision-language model that says something known, and ONNX models that measure means."""

import onnx
import torch
import transformers
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["<pad>", "<unk>", "<bos>", "<eos>", "<image>", "yes", "no", "a", "red", "house", "the", "sea", "Is", "this"]
_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
_IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_SMALL, "image_size": 16, "patch_size": 8}
CHAT = "{% for m in messages %}{% for c in m.content %}{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}"


def _tokenizer(ends, length=64):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = "<bos> $A <eos>" if ends else "<bos> $A"
    words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<bos>", 2), ("<eos>", 3)])
    more = {} if ends else {"extra_special_tokens": {"image_token": "<image>"}}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **_SPECIAL, **more)


def _image_processor():
    return transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def save_clip(folder):
    """Embeddings of 8 numbers, texts of at most 8 words."""
    torch.manual_seed(0)
    text = {**_IDS, **_SMALL, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(_image_processor(), _tokenizer(True, 8)).save_pretrained(folder)
    return folder


@torch.no_grad()
def save_asker(folder, chat=CHAT):
    """A LLaVA that says yes when the last word of a question is "red", no otherwise."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_VISION), text_config=transformers.LlamaConfig(**_IDS, **_SMALL),
        image_token_index=4, vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    words.fill_(-10)
    words[WORDS.index("red")] = 10
    head.zero_()
    head[WORDS.index("yes")], head[WORDS.index("no")] = 1, -1
    model.save_pretrained(folder)
    sizes = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    transformers.LlavaProcessor(_image_processor(), _tokenizer(False), chat_template=chat, **sizes).save_pretrained(folder)
    return folder


def save_onnx(path, nodes, shape, kind=TensorProto.FLOAT, weights=()):
    """A graph from "x" of that shape to "y"."""
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], list(weights),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def save_means(path, side=8, cells=4, kind=TensorProto.FLOAT, rows="n"):
    """Means of the squares of a picture: (n, 3 * cells * cells) of pictures (n, 3, side, side)."""
    square = side // cells
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("AveragePool", ["f"], ["p"], kernel_shape=[square] * 2, strides=[square] * 2),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    return save_onnx(path, nodes, [rows, 3, side, side], kind)


def save_sum(path, width=8):
    """The sum of a vector: (n, 1) of (n, width)."""
    ones = helper.make_tensor("w", TensorProto.FLOAT, [width, 1], [1.0] * width)
    return save_onnx(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], ["n", width], weights=[ones])
