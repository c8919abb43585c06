"""bench.paper on a small random FLUX with small random judges: rows, columns, going on, and what it says of wrong inputs."""

import json
import shutil

import numpy as np
import pytest
import torch
from onnx import TensorProto
from PIL import Image

import uniforget
from bench import paper, paper_columns, paper_draw, paper_judges, paper_lists
from tests.unit import tiny_judges
from tests.unit.tiny_pipelines import pipeline
from uniforget.checkpoint import lora as lorafile
from uniforget.errors import ModelFileError, PromptFileError, SettingError
from uniforget.hosts.diffusers.apply import find_modules, layers_of
from uniforget.learn.recover import Lora
from uniforget.mask import files
from uniforget.mask.info import GateMask, MaskInfo

DRAW = [
    "--steps",
    "2",
    "--width",
    "64",
    "--height",
    "64",
    "--dtype",
    "fp32",
    "--seeds",
    "2",
    "--call",
    '{"max_sequence_length": 12}',
]
PROMPTS = ["a red house", "the sea"]


def flux():
    """With a decoder whose pictures are not all grey."""
    pipe = pipeline("flux_schnell")
    pipe.vae.register_to_config(shift_factor=0.0)
    for name, parameter in pipe.vae.named_parameters():
        if name.startswith("decoder") and parameter.ndim > 1:
            parameter.data *= 5
    return pipe


def mask_of(pipe, preset, every):
    family, sites, _ = find_modules(pipe.transformer)
    chosen = [site for site in sites if site.kind == "ffn"]
    gates = {site.name: (torch.arange(site.units) % every != 0).float() for site in chosen}
    info = MaskInfo(family.name, "", preset=preset, targets=("ffn",))
    return GateMask(gates, {site.name: "ffn" for site in chosen}, info)


def lora_of(pipe, *masks):
    layers = [layer for layer in layers_of(pipe.transformer)[1]][:2]
    sizes = dict(pipe.transformer.named_modules())
    down = {one.name: torch.ones(2, sizes[one.paths[0]].in_features) for one in layers}
    up = {one.name: 0.2 * torch.ones(sum(sizes[p].out_features for p in one.paths), 2) for one in layers}
    return Lora(down, up, MaskInfo("flux", "", extra={"recovered": " ".join(mask.digest() for mask in masks)}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model, two masks, a recovery, and all judges."""
    out = tmp_path_factory.mktemp("paper")
    pipe = flux()
    pipe.save_pretrained(out / "model")
    medium, strong = mask_of(pipe, "medium", 3), mask_of(pipe, "strong", 2)
    files.save(medium, out / "m.safetensors")
    files.save(strong, out / "s.safetensors")
    lorafile.save(lora_of(pipe, strong), out / "lora.safetensors")
    tiny_judges.save_clip(out / "clip")
    tiny_judges.save_asker(out / "asker")
    tiny_judges.save_means(out / "detector.onnx")
    tiny_judges.save_means(out / "fid.onnx", cells=1, kind=TensorProto.UINT8, rows=2)
    tiny_judges.save_sum(out / "score.onnx")
    return out


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    """A first run without judges; its JSON file. Tests copy it."""
    work = tmp_path_factory.mktemp("drawn")
    (work / "names.txt").write_text("# names\na red house\n\nthe sea\n", encoding="utf-8")
    assert paper.main(command(folder, work)) == 0
    return work


def command(folder, work, *more, prompts=("names.txt",)):
    masks = [
        "--mask",
        str(folder / "m.safetensors"),
        str(folder / "s.safetensors"),
        "--recovery",
        str(folder / "lora.safetensors"),
    ]
    lists = ["--prompts", *(str(work / name) for name in prompts)]
    return [str(folder / "model"), *masks, *lists, "--json", str(work / "rows.json"), *DRAW, *more]


def rows(work):
    return {(row["row"], row["list"]): row for row in json.loads((work / "rows.json").read_text())["rows"]}


@pytest.fixture
def work(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "work")
    return tmp_path / "work"


NAMES = ["original", "medium", "strong", "strong + recovery"]


def test_rows_are_the_papers_and_masks_change_what_is_drawn(drawn):
    found = rows(drawn)
    assert [name for name, _ in found] == NAMES
    assert found["medium", "names"]["off_ffn"] == pytest.approx(1 / 3, abs=0.02) and "off_ffn" not in found["original", "names"]
    assert "gone" not in found["original", "names"] and found["strong", "names"]["alike_to"] == "original"
    for row in list(found.values())[1:]:
        assert row["gone"] + row["traces"] + row["recognizable"] == pytest.approx(1) and row["blank"] == 0
    folders = {path.name.rpartition("-")[0]: path for path in (drawn / "rows_pictures").iterdir()}
    pictures = {name: sorted(p.name for p in path.iterdir()) for name, path in folders.items()}
    assert {len(names) for names in pictures.values()} == {4} and len({tuple(names) for names in pictures.values()}) == 1
    contents = {path.read_bytes() for folder in folders.values() for path in folder.iterdir()}
    assert len(contents) == 16, "every row, prompt and seed gives another picture"


def test_a_picture_is_what_the_edited_pipeline_draws(folder, drawn):
    pipe = flux()
    uniforget.apply(pipe, files.load(folder / "s.safetensors"))
    call = {"num_inference_steps": 2, "width": 64, "height": 64, "max_sequence_length": 12, "num_images_per_prompt": 2}
    own = pipe(prompt="the sea", generator=[torch.Generator().manual_seed(s) for s in (0, 1)], **call).images
    sampling = paper_draw.Sampling(
        folder / "model", dtype="fp32", steps=2, width=64, height=64, seeds=2, call={"max_sequence_length": 12}
    )
    album = paper_draw.Album(drawn / "rows_pictures", sampling)
    row = paper_draw.rows_of([str(folder / "s.safetensors")], [])[1]
    for seed, picture in enumerate(own):
        there = Image.open(album.path(row, "the sea", seed))
        assert there.text == {"prompt": "the sea"}
        there = np.asarray(there, dtype=int)
        assert np.abs(there - np.asarray(picture, dtype=int)).max() <= 1


def test_it_goes_on_where_it_was(folder, work, monkeypatch, capsys):
    before = (work / "rows.json").read_text()
    gone = next((work / "rows_pictures").glob("strong-*/*_0001.png"))
    kept = gone.read_bytes()
    gone.unlink()
    loaded, load = [], paper_draw.model_of
    monkeypatch.setattr(paper_draw, "model_of", lambda row, sampling: (loaded.append(row.name), load(row, sampling))[1])
    assert paper.main(command(folder, work)) == 0 and loaded == ["strong"]
    assert np.abs(np.asarray(Image.open(gone), dtype=int) - np.asarray(Image.open(_file(work, kept)), dtype=int)).max() <= 1
    assert "1 pictures drawn" in capsys.readouterr().err
    monkeypatch.setattr(paper_columns.Structure, "look", lambda *a: pytest.fail("judged again"))
    assert paper.main(command(folder, work)) == 0 and loaded == ["strong"]
    assert json.loads((work / "rows.json").read_text())["rows"] == json.loads(before)["rows"]
    assert (
        paper.main([*command(folder, work), "--steps", "1", "--seeds", "1", "--mask", str(folder / "nowhere.safetensors")]) == 2
    )


def _file(work, data):
    path = work / "kept.png"
    path.write_bytes(data)
    return path


def test_judges_that_are_given_later_add_their_columns(folder, work, monkeypatch, capsys):
    """The references are the original's own pictures: of the first prompt, seed 1; so the original copies one of two."""
    row = paper_draw.Row("original")
    sampling = paper_draw.Sampling(
        folder / "model", dtype="fp32", steps=2, width=64, height=64, seeds=2, call={"max_sequence_length": 12}
    )
    album = paper_draw.Album(work / "rows_pictures", sampling)
    (work / "real").mkdir()
    for i, prompt in enumerate(PROMPTS):
        shutil.copy(album.path(row, prompt, 1), work / "real" / f"{i}.png")
    lines = [f"{p},real/{i}.png,{s}" for i, (p, s) in enumerate(zip(PROMPTS, ("red", "sea")))]
    (work / "known.csv").write_text("\n".join(["Prompt,reference,subject", *lines]), encoding="utf-8")
    monkeypatch.setattr(paper_draw, "model_of", lambda *a: pytest.fail("drawn again"))
    run = lambda *more: paper.main(command(folder, work, *more, prompts=("names.txt", "known.csv")))  # noqa: E731
    assert run() == 0
    found = rows(work)
    assert found["original", "known"]["alike_to"] == "references" and found["original", "known"]["recognizable"] >= 0.5
    monkeypatch.setattr(paper_columns.Structure, "look", lambda *a: pytest.fail("judged again"))
    given = {"clip": "clip", "ask": "asker", "detector": "detector.onnx", "fid": "fid.onnx", "aesthetics": "score.onnx"}
    more = [text for name, file in given.items() for text in (f"--{name}", str(folder / file))]
    capsys.readouterr()
    assert run(*more, "--question", "Is this {subject}") == 0
    found = rows(work)
    own = found["original", "known"]
    assert found["original", "names"].keys() & {"copies", "fid"} == set(), "no references, no such columns"
    assert own["copies_max"] == pytest.approx(1, abs=1e-5) and own["copies_top3"] < 1 and own["copies"] >= 0.5
    assert own["acc"] == 0.5 and own["acc_unclear"] == 0, "yes to red, no to sea"
    assert own["fid"] > 0 and own["fid_references"] == 2 and -1 <= own["clip"] <= 1 and own["aesthetics"] != 0
    assert {name for name, _ in found} == set(NAMES) and len(found) == 8
    shown = capsys.readouterr().out
    assert (
        "known (2 prompts, 4 pictures)" in shown
        and "| strong + recovery | 50.0" in shown
        and "| model | off, ffn / norm | yes |" in shown
    )


def test_clip_and_fid_are_what_other_code_says(folder, tmp_path):
    import transformers

    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    clip = paper_judges.Clip(folder / "clip", "cpu")
    model, processor = (kind.from_pretrained(folder / "clip") for kind in (transformers.CLIPModel, transformers.CLIPProcessor))
    given = processor(text=PROMPTS, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = model(**given).logits_per_image / model.logit_scale.exp()
    assert clip.pictures(pictures) @ clip.texts(PROMPTS).T == pytest.approx(wanted.numpy(), abs=1e-5)
    assert clip.texts(["a red house the sea a red house the sea a red house"]).shape == (1, 8), "long prompts are cut off"
    x = random.normal(0, 1, (200, 3))
    y = x + np.array([3, 4, 0])
    assert paper_judges.fid(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(25, abs=1e-3), (
        "equal spread: the means' distance, squared"
    )


def test_copies_are_counted_as_membench_does():
    asked = paper_lists.Asked("a", "a", ("r", "s"))
    angle = lambda cosine: np.array([cosine, np.sqrt(1 - cosine**2), 0], dtype=np.float32)  # noqa: E731
    references = {"r": np.array([1, 0, 0], dtype=np.float32), "s": np.array([0, 0, 1], dtype=np.float32)}
    values = [angle(c) for c in (0.9, 0.7, 0.4, 0.2)]
    found = paper_columns.Copies(None, None).columns(paper_columns.Seen([asked] * 4, values, references))
    assert found["copies_max"] == pytest.approx(0.9) and found["copies_top3"] == pytest.approx(2 / 3) and found["copies"] == 0.5


def test_pictures_of_one_colour_are_counted():
    plain, other = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "red")
    other.putpixel((3, 3), (0, 0, 255))
    asked = paper_lists.Asked("a", "a")
    seen = paper_columns.Seen([asked] * 2, paper_columns.Structure().look([plain, other], [asked] * 2), {})
    assert paper_columns.Structure().columns(seen) == {"blank": 0.5}


def test_pictures_are_scaled_as_models_expect_them(tmp_path):
    picture = Image.fromarray(np.full((4, 8, 3), 51, dtype=np.uint8))
    for scale, value in (
        ("bytes", 51),
        ("unit", 0.2),
        ("signed", -0.6),
        ("imagenet", (0.2 - 0.485) / 0.229),
        ("clip", (0.2 - 0.48145466) / 0.26862954),
    ):
        found = paper_judges.scaled([picture], 4, scale)
        assert found.shape == (1, 3, 4, 4) and found[0, 0] == pytest.approx(value, abs=1e-6)
    model = paper_judges.Onnx(tiny_judges.save_means(tmp_path / "m.onnx", cells=1, rows=2), "--fid", "bytes", 9)
    assert model([picture] * 5) == pytest.approx(np.full((5, 3), 51)), "a batch that the file fixes is filled up"


def test_lists_are_text_csv_or_jsonl(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "3.png")
    (tmp_path / "a.txt").write_text("# heading\nthe sea\na red house\n")
    found = paper_lists.read_list(str(tmp_path / "a.txt"))
    assert found.label == "a" and [(i.prompt, [p.name for p in i.references]) for i in found.items] == [
        ("the sea", []),
        ("a red house", ["3.png"]),
    ]
    (tmp_path / "b.jsonl").write_text(
        '{"text": "the sea", "name": "Sea", "references": ["p.png", "a/3.png"]}\n"a red house"\n{"prompt": "the sea", "image": "p.png"}\n'
    )
    found = paper_lists.read_list(f"sea={tmp_path / 'b.jsonl'}")
    assert found.label == "sea" and [(i.prompt, i.subject, len(i.references)) for i in found.items] == [
        ("the sea", "Sea", 2),
        ("a red house", "a red house", 0),
    ]
    (tmp_path / "c.csv").write_text('\ufeffprompt,reference\n"a house, red",p.png\nthe sea,\n', encoding="utf-8")
    assert [(i.prompt, len(i.references)) for i in paper_lists.read_list(str(tmp_path / "c.csv")).items] == [
        ("a house, red", 1),
        ("the sea", 0),
    ]


WRONG_LISTS = {
    "none.csv": (None, "expected a CSV file in UTF-8"),
    "heads.csv": ("picture,name\nx,y\n", "expected a heading with a column 'prompt' or 'text'; found picture, name"),
    "empty.csv": ("prompt\n", "expected at least one prompt"),
    "blank.csv": ("prompt,reference\nthe sea,p.png\n,p.png\n", r"blank.csv, line 3"),
    "outside.csv": (
        "prompt,reference\nthe sea,../secret.png\n",
        "line 2: expected the reference '../secret.png' beside the list",
    ),
    "absolute.csv": ("prompt,reference\nthe sea,/etc/passwd\n", "beside the list"),
    "missing.jsonl": (
        '{"prompt": "the sea", "reference": "x.png"}',
        "line 1: expected the reference picture .*x.png; found no such file",
    ),
    "text.jsonl": ('{"prompt": "the sea", "reference": "text.jsonl"}', r"expected a picture \(PNG, JPEG, WEBP\)"),
    "number.jsonl": ('{"prompt": "the sea", "reference": 5}', "expected a reference picture's path as text; found 5"),
    "subject.jsonl": ('{"prompt": "the sea", "subject": [1]}', "expected the subject as text"),
    "none.txt": ("", "expected at least one prompt"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_wrong_list_is_told(tmp_path, name):
    text, message = WRONG_LISTS[name]
    (tmp_path / "lists").mkdir()
    for place in (tmp_path / "secret.png", tmp_path / "lists" / "p.png"):
        Image.new("RGB", (8, 8)).save(place)
    if text is not None:
        (tmp_path / "lists" / name).write_text(text, encoding="utf-8")
    with pytest.raises(PromptFileError, match=message):
        paper_lists.read_list(str(tmp_path / "lists" / name))


def test_rows_are_told_apart(folder, tmp_path):
    m, s, lora = (str(folder / f"{name}.safetensors") for name in ("m", "s", "lora"))
    rows_of = paper_draw.rows_of
    assert [row.name for row in rows_of([m, s], [lora])] == NAMES
    [_, both] = rows_of([f"both={m}", f"both={s}"], [])
    assert both.name == "both" and len(both.masks) == 2
    assert rows_of([f"x={m}"], [f"x={lora}"])[-1].name == "x + recovery"
    with pytest.raises(SettingError, match=r"a second mask that is called medium. Name them LABEL=FILE"):
        rows_of([m, m], [])
    with pytest.raises(SettingError, match="expected a LoRA for one of the rows medium"):
        rows_of([m], [lora])
    with pytest.raises(SettingError, match="'original' is the model without masks"):
        rows_of([f"original={m}"], [])
    with pytest.raises(ModelFileError, match="expected a LoRA that `uniforget recover` wrote"):
        rows_of([m], [m])


def broken_folder(folder, tmp_path, name, change):
    out = tmp_path / name
    shutil.copytree(folder / name, out)
    change(out)
    return out


def test_folders_that_could_run_code_are_refused(folder, tmp_path):
    def code(out):
        (out / "modeling.py").write_text("raise SystemExit")

    def auto_map(out):
        config = json.loads((out / "processor_config.json").read_text())
        (out / "processor_config.json").write_text(json.dumps(config | {"auto_map": {"AutoProcessor": "x.Y"}}))

    def pickle(out):
        (out / "model.safetensors").rename(out / "pytorch_model.bin")

    def unknown(out):
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))

    for change, message in (
        (code, "program file modeling.py"),
        (auto_map, "asks for code of its own"),
        (pickle, "expected its weights as .safetensors"),
        (unknown, "expected a model of type clip; found 't5'"),
    ):
        out = broken_folder(folder, tmp_path / change.__name__, "clip", change)
        with pytest.raises(SettingError, match=f"--clip.*{message}"):
            paper_judges.Clip(out, "cpu")
    with pytest.raises(SettingError, match=r"--ask .*nowhere: expected a folder of transformers"):
        paper_judges.Asker(tmp_path / "nowhere", "cpu", "?")
    tiny_judges.save_asker(tmp_path / "silent", chat=None)
    with pytest.raises(SettingError, match="with a chat template; found none"):
        paper_judges.Asker(tmp_path / "silent", "cpu", "?")
    tiny_judges.save_asker(tmp_path / "texts", chat="{{ messages[0].content + 'a' }}")
    with pytest.raises(SettingError, match="--ask .*texts: it takes no question about a picture"):
        paper_judges.Asker(tmp_path / "texts", "cpu", "?")(Image.new("RGB", (16, 16)), "sea")


def test_onnx_files_that_do_not_fit_are_told(folder, tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(SettingError, match=r"--fid .*text.onnx: expected an ONNX model; onnxruntime cannot load it"):
        paper_judges.Onnx(tmp_path / "text.onnx", "--fid", "bytes", 8)
    with pytest.raises(SettingError, match="found no such file"):
        paper_judges.Onnx(tmp_path / "none.onnx", "--fid", "bytes", 8)
    odd = tiny_judges.save_sum(tmp_path / "odd.onnx", 5)
    with pytest.raises(SettingError, match=r"--fid .*odd.onnx: expected one input, pictures \(n, 3, height, width\)"):
        paper_judges.Onnx(odd, "--fid", "bytes", 8)
    with pytest.raises(SettingError, match="there is no CLIP. Give its folder as --clip"):
        paper_columns.Aesthetics(paper_judges.Onnx(odd, "--aesthetics", "clip", 8, vectors=True), None, None)
    scorer = paper_columns.Aesthetics(
        paper_judges.Onnx(odd, "--aesthetics", "clip", 8, vectors=True), paper_judges.Clip(folder / "clip", "cpu"), None
    )
    with pytest.raises(SettingError, match="--aesthetics .*odd.onnx: it stops"):
        scorer.look([Image.new("RGB", (16, 16))], None)
    many = paper_columns.Aesthetics(paper_judges.Onnx(folder / "detector.onnx", "--aesthetics", "clip", 8), None, None)
    with pytest.raises(SettingError, match="expected one score for each picture; found 48"):
        many.look([Image.new("RGB", (16, 16))], None)


def test_weights_of_an_onnx_file_stay_in_its_folder(tmp_path):
    from onnx import TensorProto as T
    from onnx import helper

    (tmp_path / "secret.bin").write_bytes(np.ones(4, dtype=np.float32).tobytes())
    (tmp_path / "in").mkdir()
    weight = T(name="w", data_type=T.FLOAT, dims=[4], data_location=T.EXTERNAL)
    for key, value in (("location", "../secret.bin"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    file = tiny_judges.save_onnx(
        tmp_path / "in" / "m.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], ["n", 4], weights=[weight]
    )
    with pytest.raises(SettingError, match="cannot load it"):
        paper_judges.Onnx(file, "--fid", "bytes", 8)


WRONG = {
    "model": (["nowhere"], "expected a diffusers folder or a .safetensors file on your disk"),
    "call": (["--call", "[1]"], "--call: expected a JSON object"),
    "unquoted": (["--call", "{a: 1}"], "--call: expected JSON"),
    "unknown": (["--call", '{"colour": 1}', "--steps", "3"], "FluxPipeline takes no colour"),
    "dtype": (["--dtype", "fp8"], "--dtype: expected one of fp32, bf16, fp16"),
    "seeds": (["--seeds", "0"], "--seeds: expected at least 1"),
    "json": ([], "expected the rows of an earlier run of bench.paper"),
    "compares": (["--detector", "x.onnx"], "none of the lists names has any"),
    "lists": (["--prompts", "again/names.txt"], "two lists have the same name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_anything_is_drawn(folder, work, capsys, monkeypatch, name):
    more, message = WRONG[name]
    monkeypatch.chdir(work)
    (work / "again").mkdir()
    shutil.copy(work / "names.txt", work / "again")
    if name == "json":
        (work / "rows.json").write_text('{"rows": [1]}')
    arguments = command(folder, work, *(more if name != "model" else ()))
    if name == "model":
        arguments[0] = str(work / "nowhere")
    assert paper.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_package_that_is_not_there_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match=r"--fid needs the package onnxruntime, which is not installed"):
        paper_judges.needed("onnxruntime", "--fid")


def test_time_that_is_left():
    assert [paper_draw.duration(s) for s in (4.4, 200, 7530)] == ["4 s", "3 min 20 s", "2 h 05 min"]
