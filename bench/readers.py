"""Every reader of the engine, with damaged inputs for it. See :mod:`bench.attack`.

A reader takes an input and a folder of its own; it may only return, or raise one of UniForget's errors. What comes out of a file that is
valid all the same is used the way the program would: shown, mapped, written again.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.unit.tiny import TinyModel, random_mask
from tests.unit.tiny_pipelines import PROMPTS, pipeline
from uniforget import config
from uniforget.checkpoint import compactfile, safefile
from uniforget.checkpoint.fileplan import Use
from uniforget.checkpoint.sanitize import sanitize
from uniforget.cli import files as commands
from uniforget.cli.learn import read_settings
from uniforget.config.copies import CLEAN_LORA
from uniforget.errors import UniForgetError
from uniforget.hosts.diffusers.apply import find_modules
from uniforget.hosts.diffusers.load import load_pipeline
from uniforget.hosts.webui import folder as maskfolder
from uniforget.hosts.webui.request import LABELS, Request, from_infotext
from uniforget.learn.resume import State
from uniforget.learn.sums import Sums
from uniforget.mask import combine, files
from uniforget.mask import file as maskfile
from uniforget.mask import map as maskmap
from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import SubspaceMask
from uniforget.prompts import parse_prompts, read_prompts
from uniforget.report import graph, report, sweep

from . import mutate, seeds
from .feed import Reader

Random = random.Random


def bytes_of(valid: Sequence[bytes]) -> Callable[[Random], bytes]:
    """Damaged files out of valid ones."""
    return lambda rng: mutate.data(rng, rng.choice(valid))


def from_file(read: Callable[[Path], Any], name: str = "x.safetensors") -> Callable[[bytes, Path], Any]:
    """A reader of files: the input is written to one of that name."""

    def put(content: bytes, folder: Path) -> Any:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return put


# --- what is done with a valid one


def use(learned: GateMask | SubspaceMask, folder: Path) -> None:
    """Everything that shows a mask or subspace or makes something of it."""
    learned.summary(), learned.digest()
    report.mask_rows(learned)
    maskmap.map_data(learned)
    files.save(learned, folder / "again.safetensors")
    learned.select()
    if isinstance(learned, GateMask):
        combine.report(combine.combine(learned, learned, "union"), {"a": learned})
        masktext.to_text(learned)


def open_mask(path: Path) -> None:
    """As ``inspect``, and as every command and node that takes a mask."""
    commands.inspect(path)
    use(files.load(path), path.parent)


def open_model(path: Path, source: Path, mask: Path, step: int) -> None:
    """As one of the commands that take a model."""
    out = path.parent / "out.safetensors"
    out.unlink(missing_ok=True)
    if step == 0:
        commands.inspect(path)
        safefile.read_header(path)
    elif step == 1:
        commands.check(path, source, [])
        commands.check(path, None, [mask])
    elif step == 2:
        commands.apply(path, [mask], out, False, 0.9, 0.0, ffn=1.0, norm=0.5, attn=1.0)
    elif step == 4:
        commands.clean_lora(path, source, out, False, {"keep": 0.5, "strength": 1.0})
    else:
        commands.compact(path, mask, out, "8", False)


def open_compact(path: Path) -> None:
    """As Load Compact Model does, up to the point where ComfyUI takes over."""
    prefix, found = compactfile.read(safefile.read_header(path))
    compactfile.whole(load_file(path), prefix, found)


# --- folders


class ModelFolder:
    """A diffusers folder with traps in it: code and pickles beside the weights, that leave a mark when they are run."""

    def __init__(self, template: Path, outside: Path):
        self.template = template
        pipeline("sd1").save_pretrained(template)
        trap = f"open({str(outside / 'ran')!r}, 'w').close()\nclass Evil: pass\n"
        for place in ("", "unet", "scheduler", "text_encoder", "tokenizer"):
            (template / place / "evil.py").write_text(trap)
        self.secret = outside / "secret.txt"
        self.jsons = sorted(str(p.relative_to(template)) for p in template.rglob("*.json"))
        self.weights = sorted(str(p.relative_to(template)) for p in template.rglob("*.safetensors") if p.stat().st_size < 1 << 20)
        self.pickle = b"\x80\x04c__builtin__\nexec\n(V" + trap.splitlines()[0].encode() + b"\ntR."

    def make(self, rng: Random) -> tuple[int, dict[str, bytes], dict[str, str]]:
        """(which command, files that are changed or added, links that are added)."""
        changed: dict[str, bytes] = {}
        links: dict[str, str] = {}
        for _ in range(rng.choice((1, 1, 2))):
            kind = rng.randrange(8)
            if kind < 4:
                name = rng.choice(("model_index.json", "model_index.json", *self.jsons))
                changed[name] = mutate.encoded(rng, self._json(rng, name))
            elif kind == 4:
                name = rng.choice(self.weights)
                changed[name] = mutate.data(rng, (self.template / name).read_bytes())
            elif kind == 5:
                index = {
                    "metadata": {"total_size": 9},
                    "weight_map": {f"a{i}": f"x-0000{i}-of-00002.safetensors" for i in (1, 2)},
                }
                name = rng.choice(
                    ("unet/diffusion_pytorch_model.safetensors.index.json", "text_encoder/model.safetensors.index.json")
                )
                changed[name] = mutate.encoded(rng, mutate.tree(rng, index))
            elif kind == 6:
                name = rng.choice(
                    ("unet/diffusion_pytorch_model.bin", "text_encoder/model.bin", "unet/x.safetensors", "vae/a\nb.pt", "x.pkl")
                )
                changed[name] = rng.choice((self.pickle, b"", mutate.HEADS[2]))
            else:
                far = rng.choice(
                    (str(self.secret), "../../../outside/secret.txt", "/", "..", "unet", "/dev/zero", str(self.secret.parent))
                )
                links[
                    rng.choice(
                        ("notes.txt", "unet/notes.txt", "vae/config.json", "more", "unet/x.safetensors", "model_index.json")
                    )
                ] = far
        return rng.randrange(4), changed, links

    def _json(self, rng: Random, name: str) -> Any:
        found = json.loads((self.template / name).read_bytes())
        if rng.random() < 0.5 and isinstance(found, dict):
            evil = rng.choice(
                (
                    ["evil", "Evil"],
                    "evil.Evil",
                    ["evil.py", "Evil"],
                    ["os", "system"],
                    ["unet.evil", "Evil"],
                    ["builtins", "exec"],
                )
            )
            keys = ("_class_name", "unet", "scheduler", "tokenizer", "evil", "auto_map", "custom_pipeline", "quantization_config")
            found[rng.choice(keys)] = rng.choice((evil, evil, {"AutoModel": "evil.Evil", "quant_method": evil}))
            return found
        return mutate.tree(rng, found)

    def read(self, given: tuple[int, dict[str, bytes], dict[str, str]], folder: Path, mask: Path) -> None:
        """One of the commands that take a folder; the result must hold nothing of what lies outside."""
        step, changed, links = given
        model, out = folder / "model", folder / "out"
        shutil.rmtree(model, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.template, model, copy_function=os.link)
        for name, content in changed.items():
            (model / name).unlink(missing_ok=True)
            (model / name).write_bytes(content)
        for name, far in links.items():
            (model / name).unlink(missing_ok=True)
            (model / name).symlink_to(far)
        if step == 0:
            commands.inspect(model)
        elif step == 1:
            commands.check(model, model, [])
        elif step == 2:
            try:
                commands.apply(model, [mask], out, False, 1.0, 0.0)
            finally:
                for path in out.rglob("*"):
                    if path.is_file() and path.stat().st_size < 1000 and path.read_bytes() == b"a private key":
                        (self.secret.parent / "leaked").touch()
        else:
            load_pipeline(str(model), torch.float32)


# --- the table


def read_graph(given: Any, folder: Path) -> None:
    """As Report and Compare do with the hidden input ``prompt``, which is JSON that ComfyUI took for a graph."""
    prompt = json.loads(given)
    if not isinstance(prompt, dict):
        return
    for node in list(prompt)[-2:]:
        graph.strengths(prompt, [node]), graph.made_by(prompt, [node]), graph.settings_of(prompt, node)
        graph.source(prompt, node, "model"), graph.in_order(prompt, node)
    graph.workflow_text({"workflow": prompt.get("1")}, prompt)


def make_graph(rng: Random) -> bytes:
    """As ComfyUI hands it on: without what no JSON parser takes."""
    while True:
        found = mutate.encoded(rng, mutate.tree(rng, seeds.GRAPH)).decode("utf-8", "replace")
        try:
            json.loads(found)
        except (ValueError, RecursionError):
            continue
        return found.encode()


def long_graphs() -> list[bytes]:
    """Chains and webs of many nodes."""

    def node(*to: int) -> dict[str, Any]:
        return {"class_type": "UniForgetApply", "inputs": {f"m{i}": [str(one), 0] for i, one in enumerate(to)} | {"strength": 1}}

    chain = {str(i): node((i + 1) % 20_000) for i in range(20_000)}
    web = {str(i): node(*range(300)) for i in range(300)}
    return [json.dumps(found).encode() for found in (chain, web)]


def read_options(given: tuple[str, Any], folder: Path) -> None:
    """Values that come out of settings files, workflows and API calls, and texts that are parsed."""
    name, value = given
    for table in (config.LEARN, config.APPLY, config.RECOVER, config.COMBINE, config.WEBUI, CLEAN_LORA):
        if name in table:
            table[name].check(value)
    if isinstance(value, str):
        {"blocks": _select, "strengths": sweep.parse_strengths}.get(name, _parse)(value)


def _select(text: str) -> None:
    _hard().select(("ffn",), text)
    maskmap.named_blocks(_hard(), text)


@functools.cache
def _hard() -> GateMask:
    return random_mask(TinyModel(("ffn", "norm", "attn")))


def _parse(text: str) -> None:
    parse_prompts(text)
    sweep.plan(text, text, 2, 0)


def read_infotext(given: dict[str, Any], folder: Path) -> None:
    """As pasting infotext, and as an API call to a web UI."""
    for name in config.WEBUI:
        from_infotext(name, given)
    named = {name: given[label] for name, label in LABELS.items() if label in given}
    Request.of([named]), Request.of(list(given.values()))


def read_name(given: str, folder: Path, outside: Path) -> None:
    """A mask's name in the web UIs; what is found must be inside the folder."""
    if "please report" in maskfolder.describe(folder, given):
        raise RuntimeError("described as a fault of UniForget")
    if folder.resolve() not in maskfolder.find(folder, given).resolve().parents:
        (outside / "leaked").touch()


def group(folder: Path, outside: Path) -> tuple[list[Reader], type[Exception]]:
    """The readers that need no host."""
    valid = folder / "valid"
    valid.mkdir()
    source, mask, unet_mask, learned = (valid / f"{n}.safetensors" for n in ("source", "mask", "unet_mask", "state"))
    kinds = seeds.masks()
    files.save(kinds[0], mask)
    seeds.checkpoint(source)
    sanitize(source, valid / "sanitized.safetensors", [Use(kinds[0]), Use(kinds[1], 0.5)])
    files.save(seeds.subspace(), valid / "subspace.safetensors")
    seeds.unfinished(learned)
    moments = valid / "moments.safetensors"
    Sums({"a": torch.eye(4).double()}, {"a": 1.0}, {"a": 2.0}, {"a": "a", "b": "a"}).save(moments)
    mask_files = [maskfile.dumps(one) for one in kinds]
    small, sanitized, subspaces = ((valid / f"{n}.safetensors").read_bytes() for n in ("source", "sanitized", "subspace"))
    compacts, texts = seeds.compact_file(valid), [masktext.to_text(one) for one in kinds]
    models = ModelFolder(valid / "model", outside)
    family, sites, _ = find_modules(pipeline("sd1").unet)
    files.save(
        GateMask({s.name: torch.ones(s.units) for s in sites}, {s.name: s.kind for s in sites}, MaskInfo(family.name, "")),
        unet_mask,
    )
    jsonl = "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)
    plain = "# neutral\n" + "\n".join(PROMPTS)
    settings = {"steps": 9, "beta": 1.5, "preset": "weak", "targets": "ffn", "dtype": "fp32", "cfg": 1.0, "width": 512, "seed": 3}
    infotext = {label: getattr(Request(), name) for name, label in LABELS.items()} | {"Steps": "20"}
    options = [
        *{*config.LEARN, *config.APPLY, *config.RECOVER, *config.COMBINE, *config.WEBUI, *CLEAN_LORA},
        "blocks",
        "strengths",
        "prompts",
    ]
    names = ("x.safetensors", "a/x.safetensors", "../../outside/secret.txt", "None")

    def wrap(packed: bytes) -> str:
        return texts[0][: len("uniforget-mask:")] + base64.b64encode(packed).decode()

    def option(rng: Random) -> tuple[str, Any]:
        said = ("0-1", "double 0-3, single 2", "0.5, 1", "8,12", "a\nb", 1, 0.5, True)
        value = rng.choice((mutate.hostile(rng), mutate.tree(rng, rng.choice(said))))
        return rng.choice(sorted(options)), value

    def model(step: int) -> Callable[[bytes, Path], Any]:
        return from_file(lambda path: open_model(path, source, mask, step))

    everything = [*mask_files, subspaces, seeds.lora(), sanitized, compacts, learned.read_bytes()]
    readers = [
        Reader("mask file", 4000, bytes_of(mask_files), from_file(open_mask), lambda: seeds.bombs(mask_files[0])),
        Reader(
            "mask text", 3000, lambda rng: mutate.mask_text(rng, rng.choice(texts), rng.choice(mask_files), wrap),
            lambda text, at: use(masktext.from_text(text), at), lambda: seeds.text_bombs(texts[0], mask_files[0], wrap),
        ),
        Reader("subspace file", 1600, bytes_of([subspaces]), from_file(open_mask), lambda: seeds.bombs(subspaces)),
        Reader("any file", 1200, bytes_of(everything), from_file(open_mask)),
        Reader("LoRA file", 500, bytes_of([seeds.lora()]), model(0), lambda: seeds.bombs(seeds.lora())),
        Reader("LoRA to clean", 700, bytes_of([seeds.lora(fits=True)]), model(4)),
        Reader("checkpoint", 700, bytes_of([small]), model(0)),
        Reader("sanitized file", 1000, bytes_of([sanitized]), model(1), lambda: seeds.bombs(sanitized)),
        Reader("apply", 500, bytes_of([small, sanitized]), model(2)),
        Reader("compact", 300, bytes_of([small, sanitized]), model(3)),
        Reader("compact file", 1500, bytes_of([compacts]), from_file(open_compact), lambda: seeds.bombs(compacts)),
        Reader("unfinished learning", 900, bytes_of([learned.read_bytes()]), from_file(lambda p: State.load(p, 32)), lambda: seeds.bombs(learned.read_bytes())),
        Reader("moments", 300, bytes_of([moments.read_bytes()]), from_file(Sums.load)),
        Reader("prompts file", 800, lambda rng: mutate.lines(rng, plain), from_file(read_prompts, "x.txt"), seeds.line_bombs),
        Reader("prompts as JSONL", 1000, lambda rng: mutate.lines(rng, jsonl), from_file(read_prompts, "x.jsonl"), seeds.line_bombs),
        Reader("settings file", 700, lambda rng: mutate.encoded(rng, mutate.tree(rng, settings)), from_file(read_settings, "x.json"), seeds.line_bombs),
        Reader("infotext", 1000, lambda rng: {str(k): v for k, v in _dict(mutate.tree(rng, infotext)).items()}, read_infotext),
        Reader("option", 1200, option, read_options),
        Reader(
            "mask name", 700, lambda rng: str(rng.choice((mutate.hostile(rng), mutate.inside(rng, rng.choice(names))))),
            lambda name, at: read_name(name, at, outside),
        ),
        Reader("graph", 1200, make_graph, read_graph, long_graphs),
        Reader("model folder", 500, models.make, lambda given, at: models.read(given, at, unet_mask)),
        Reader("single-file model", 100, bytes_of([compacts, small]), from_file(lambda p: load_pipeline(str(p), torch.float32))),
    ]  # fmt: skip
    return readers, UniForgetError


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {"UniForget mask": value}
