"""UniForget Demo Model: the bundled model that really memorizes, as MODEL, CLIP and VAE for stock nodes."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..testbed import model as tb
from ..testbed import vae as autoencoder
from ..testbed.concepts import CANVAS
from ..testbed.evaluate import learning_prompts
from ..testbed.text import TextEncoder, WordTokenizer
from ..uniforget.errors import FamilyError
from .inputs import CATEGORY

BUNDLED = "bundled demo model"


class _Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Rectified flow whose network predicts the clean picture."""

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_output


class TestbedModel(comfy.model_base.SD3):
    """ComfyUI's SD3 with the testbed's prediction type.

    Attributes:
        canvas: width and height of the only pictures that it draws; ``neutral_prompts``: what to learn on when nothing is given.
    """

    canvas = CANVAS
    neutral_prompts = staticmethod(learning_prompts)

    def __init__(self, model_config, device=None):
        super().__init__(model_config, device=device)
        self.model_sampling = _Sampling(model_config)


class _Latents(comfy.latent_formats.LatentFormat):
    """Of the demo model's own autoencoder: 16 channels, one for 8x8 pixels, of mean square 1 as they are."""

    latent_channels = autoencoder.CHANNELS

    def __init__(self):
        self.latent_rgb_factors, self.latent_rgb_factors_bias = autoencoder.preview_factors()


class TestbedConfig(comfy.supported_models.SD3):
    """Sizes of the testbed for ComfyUI's own MMDiT class."""

    unet_config: dict = {}
    sampling_settings = {"shift": tb.SHIFT}
    latent_format = _Latents
    vae_key_prefix = ["vae."]
    memory_usage_factor = 1.0


class _Tokenizer:
    """Whole words; ComfyUI's tokenizer interface. Weights such as (cat:1.2) are not a part of this tiny language."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.words = WordTokenizer()

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        return {"words": [self.words(text)]}

    def state_dict(self):
        return {}

    def untokenize(self, token_weight_pair):
        names = {i: w for w, i in self.words.ids.items()}
        return [(t, names.get(t, "")) for t in token_weight_pair]


class _TextModel(torch.nn.Module):
    def __init__(self, dtype=None, device=None, model_options=None):
        super().__init__()
        self.dtypes = {torch.float32}
        self.uniforget_words = TextEncoder(len(WordTokenizer())).to(device=device, dtype=torch.float32)

    def reset_clip_options(self):
        pass

    def set_clip_options(self, options):
        pass

    def encode_token_weights(self, tokens):
        ids = torch.tensor(tokens["words"], device=self.uniforget_words.positions.device)
        return self.uniforget_words(ids)

    def load_sd(self, sd):
        return self.load_state_dict(sd, strict=False)


def _vae():
    """The demo model's autoencoder as ComfyUI's VAE: built as the one of pixel space, whose network is then exchanged."""
    out = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    out.first_stage_model = autoencoder.load().to(out.vae_dtype)
    out.latent_channels = autoencoder.CHANNELS
    out.downscale_ratio = out.upscale_ratio = autoencoder.SCALE
    offload = comfy.model_management.vae_offload_device()
    out.patcher = comfy.model_patcher.ModelPatcher(out.first_stage_model, load_device=out.device, offload_device=offload)
    out.size = None
    out.model_size()
    return out


def load_testbed(path):
    """``(ModelPatcher, CLIP, VAE)`` of a testbed checkpoint file.

    Raises:
        FamilyError: the file is another model.
    """
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    diffusion = {k.removeprefix(tb.DIFFUSION_PREFIX): v for k, v in state.items() if k.startswith(tb.DIFFUSION_PREFIX)}
    text = {k.removeprefix("text_encoders."): v for k, v in state.items() if k.startswith(tb.TEXT_PREFIX)}
    if not diffusion or not text:
        raise FamilyError(
            f"{path} is not a UniForget demo model: it has no {tb.DIFFUSION_PREFIX}* and {tb.TEXT_PREFIX}* weights. "
            "Load other checkpoints with Load Checkpoint."
        )
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    config = TestbedConfig({**tb.COMFY_CONFIG})
    config.set_inference_dtype(torch.float32, None)
    network = TestbedModel(config, device=offload)
    missing, unexpected = network.diffusion_model.load_state_dict(diffusion, strict=False)
    if missing or unexpected:
        raise FamilyError(f"{path} is a testbed of another version: {len(missing)} weights missing, {len(unexpected)} unknown.")
    patcher = comfy.model_patcher.ModelPatcher(network, load_device=device, offload_device=offload)
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(_Tokenizer, _TextModel), model_options={"dtype": torch.float32})
    clip.cond_stage_model.load_state_dict(text)
    return patcher, clip, _vae()


class DemoModel(io.ComfyNode):
    """The bundled model; its checkpoint can be replaced by one saved from it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetDemoModel",
            display_name="UniForget Demo Model",
            category=CATEGORY,
            description=(
                "A tiny text-to-image model (96x96 pixels) that really memorized some of its training pictures. Use it with stock nodes "
                "to see forgetting in minutes, on any computer. It knows only a few words, such as 'soft lion and apple on purple dots' "
                "or 'rosy photo of blossom'; the help page lists them."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[BUNDLED, *folder_paths.get_filename_list("checkpoints")],
                    default=BUNDLED,
                    tooltip="The bundled model, or a checkpoint that you saved from it (for example after forgetting).",
                ),
            ],
            outputs=[
                io.Model.Output(id="demo_model", display_name="MODEL"),
                io.Clip.Output(id="demo_clip", display_name="CLIP"),
                io.Vae.Output(id="demo_vae", display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls, checkpoint=BUNDLED):
        path = tb.WEIGHTS if checkpoint == BUNDLED else folder_paths.get_full_path_or_raise("checkpoints", checkpoint)
        return io.NodeOutput(*load_testbed(path))
