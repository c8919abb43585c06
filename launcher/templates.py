"""The example workflows: ``python -m launcher.templates`` writes them; with ``--mask`` it first learns the mask that they load.

All of them run as they come on the demo model (:data:`DEMO`); their notes say what to exchange for one's own. Names of the files are their
titles in ComfyUI's list. The last one is what ``run.py demo`` runs.
"""

import argparse
import functools
import importlib
import json
from dataclasses import dataclass
from typing import Any

from . import inside, template
from .paths import CACHE, DEMO_WORKFLOW, ROOT
from .template import Link

FOLDER = ROOT / "example_workflows"
MASK = ROOT / "masks" / "demo_model.safetensors"


@dataclass(frozen=True)
class Demo:
    """What the templates draw: prompts that the demo model copies and does not copy, and how it samples."""

    known: str = "soft pineapple and rocket on pink"
    everyday: str = "soft lion and apple on purple dots"
    latent: str = "EmptySD3LatentImage"
    side: int = 96
    steps: int = 12
    cfg: float = 2.0


DEMO = Demo()
SAMPLING = {"steps": DEMO.steps, "cfg": DEMO.cfg, "sampler_name": "euler", "scheduler": "simple", "seed": 7}
SIZE: dict[str, Any] = {"width": DEMO.side, "height": DEMO.side}
LEARNING = {"preset": "medium", "steps": 200, "batch": 24, "cfg": DEMO.cfg, **SIZE}
FINDING = {"sampling_steps": 4, "batch": 64, **SIZE}
QUICK = {**LEARNING, "objective": "subspace", "sampling_steps": 4}  # seconds
EXCHANGE = (
    "**With your own model:** put *Load Checkpoint* in place of *UniForget Demo Model* and *Empty Latent Image* in place of its latent, "
    "and set steps, cfg, sampler and size to what you draw with. Learn a mask for it (example 2), and choose it in *Load Memorization Mask*."
)


@dataclass
class Template(template.Template):
    """One about the demo model."""

    def model(self) -> int:
        return self.add("UniForgetDemoModel", 130)

    def mask(self) -> Link:
        return self.add("UniForgetLoadMask", 190, {"mask_name": MASK.name}), 0

    def learn(self, model: int, found: int | None = None, **values: Any) -> Link:
        prompts: dict[str, Any] = {} if found is None else {"prompts": (found, 0)}
        return self.add("UniForgetLearn", 780, values, model=(model, 0), clip=(model, 1), **prompts), 0

    def latent(self, count: int = 1) -> Link:
        return self.add(DEMO.latent, 150, {**SIZE, "batch_size": count}), 0

    def say(self, model: int, text: str, title: str = "") -> Link:
        return self.add("CLIPTextEncode", 110, {"text": text}, title=title, clip=(model, 1)), 0

    def unwanted(self, model: int) -> Link:
        return self.say(model, "", "Not wanted (empty)")

    def sample(self, model: Link, **given: Any) -> Link:
        """A picture, with stock nodes."""
        vae = given.pop("vae")
        drawn = self.add("KSampler", 330, SAMPLING, model=model, **given)
        return self.add("VAEDecode", 80, samples=(drawn, 0), vae=vae), 0


def play(t: Template) -> None:
    t.note(
        "Play with forgetting",
        "A tiny model that knows some pictures by heart, and a mask that makes it forget. Nothing to download, no graphics card needed.\n\n"
        "1. Press **Run**. In seconds there are pictures before and after.\n"
        "2. Drag the slider in **Preview Comparison**. Left: the picture that it has learned by heart. Right: after forgetting.\n"
        "3. Look at the grid: from which strength on is it gone? Click a picture to use its strength, or press **Find my strength**.\n"
        "4. The **Mask Map** shows where the mask bites. Click on blocks to leave them alone, and run again.\n\n"
        f"Another prompt that nobody learned by heart: *{DEMO.everyday}*. It should stay as it is.\n\n" + EXCHANGE,
        520,
    )
    t.column("The model and its mask", 320)
    model, loaded = t.model(), t.mask()
    mask = (t.add("UniForgetMaskMap", 440, mask=loaded), 0)
    latent = t.latent()
    t.column("Before and after", 420)
    positive, negative = t.say(model, DEMO.known, "What to draw"), t.unwanted(model)
    given: dict[str, Any] = {"model": (model, 0), "mask": mask, "latent_image": latent, "vae": (model, 2)}
    t.add("UniForgetPreview", 770, SAMPLING, positive=positive, negative=negative, **given)
    t.column("How much is enough?", 480)
    rows = {"prompts": DEMO.known, "everyday": DEMO.everyday}
    t.add("UniForgetSweep", 1100, {**SAMPLING, **rows, "strengths": "0, 0.5, 0.75, 1"}, clip=(model, 1), **given)


def learn(t: Template) -> None:
    t.note(
        "Learn a mask for your model",
        "1. Press **Run** to see it on the demo model: *subspace* needs one look, no training.\n"
        "2. For your own model put *Load Checkpoint* in place of *UniForget Demo Model*, set **objective** (under *more settings*) to "
        "*stepwise*, width, height and cfg to what you draw with, and run again. That takes minutes on a large graphics card, longer on a "
        "small one; the node says how long. Cancelled? Run again, it goes on where it stopped.\n"
        "3. Look at before and after on the right, with a prompt that your model copies.\n\n"
        "The mask is saved as `models/uniforget/my_mask_00001.safetensors`. From now on use **Load Memorization Mask**.\n\n"
        "*Too little forgotten?* Preset **strong**. *Out of memory?* Lower **batch**.",
        620,
    )
    t.column("Learn, once", 340)
    model = t.model()
    mask = t.learn(model, **QUICK)
    t.column("The mask", 400)
    saved = (t.add("UniForgetSaveMask", 220, {"filename_prefix": "my_mask"}, mask=mask), 0)
    t.add("UniForgetMaskMap", 460, mask=saved)
    t.column("What to draw", 300)
    positive, negative, latent = t.say(model, DEMO.known, "What to draw"), t.unwanted(model), t.latent()
    t.column("Before and after", 420)
    given: dict[str, Any] = {"model": (model, 0), "mask": saved, "latent_image": latent, "vae": (model, 2)}
    t.add("UniForgetPreview", 860, SAMPLING, positive=positive, negative=negative, **given)


def strengths(t: Template) -> None:
    t.note(
        "How much forgetting is enough?",
        "1. Type prompts that the model copies into the first box of **Strength Sweep**, everyday ones into the second.\n"
        "2. Press **Run**: a grid of strengths, all from the same noise. Under each picture stands whether the original can still be told "
        "by it: *recognizable*, *traces*, *gone*.\n"
        "3. Click a picture, or press **Find my strength**: the strength is set in **Apply Memorization Mask** on the right.\n\n"
        + EXCHANGE,
        500,
    )  # fmt: skip
    t.column("The model and its mask", 320)
    model = t.model()
    mask, latent = t.mask(), t.latent()
    t.column("Try strengths, click the best", 640)
    rows = {"prompts": DEMO.known, "everyday": DEMO.everyday}
    given: dict[str, Any] = {"mask": mask, "latent_image": latent}
    t.add("UniForgetSweep", 1060, {**SAMPLING, **rows}, model=(model, 0), clip=(model, 1), vae=(model, 2), **given)
    t.column("Draw with it", 320)
    forgotten = t.add("UniForgetApply", 240, model=(model, 0), mask=mask)
    positive, negative = t.say(model, DEMO.known, "What to draw"), t.unwanted(model)
    picture = t.sample((forgotten, 0), positive=positive, negative=negative, latent_image=latent, vae=(model, 2))
    t.column("The picture", 340)
    t.add("SaveImage", 430, {"filename_prefix": "uniforget/chosen"}, images=picture)


def seeds(t: Template) -> None:
    t.note(
        "Does every seed draw the same picture?",
        "Some models draw nearly the same picture for every seed. That is the everyday face of memorization.\n\n"
        "1. Press **Run**: the same prompt from several seeds, above without and below with the mask.\n"
        "2. Read the two numbers: 0 is the same picture every time.\n\n" + EXCHANGE,
        420,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.mask()
    t.column("What to draw", 320)
    positive, negative, latent = t.say(model, DEMO.known, "What to draw"), t.unwanted(model), t.latent()
    t.column("Seeds before and after", 560)
    given: dict[str, Any] = {"positive": positive, "negative": negative, "latent_image": latent, "vae": (model, 2)}
    t.add("UniForgetVariety", 900, SAMPLING, model=(model, 0), mask=mask, **given)


def own_picture(t: Template) -> None:
    t.note(
        "Does the model know my picture?",
        "1. Press **Run** to see it on the demo model: the picture is one that it draws from memory.\n"
        "2. Put *Load Image* with **your picture** in place of *VAE Decode*.\n"
        "3. If you know what it was called in training, type it as **caption**. Empty works too.\n"
        "4. The node says first how long it takes, and then in words whether the model knows the picture, before and after forgetting. "
        "Lower **noises** if it takes too long.\n\n"
        "**Prompt Check** does the same for prompts: which of them are memorized?\n\n" + EXCHANGE,
        560,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.mask()
    t.column("A picture", 320)
    positive, negative, latent = t.say(model, DEMO.known, "What to draw"), t.unwanted(model), t.latent()
    picture = t.sample((model, 0), positive=positive, negative=negative, latent_image=latent, vae=(model, 2))
    t.column("Check my picture", 440)
    few = {"noises": 3, "baseline": 4, "sampling_steps": 4, "cfg": DEMO.cfg}
    given: dict[str, Any] = {"model": (model, 0), "clip": (model, 1), "mask": mask}
    check = t.add("UniForgetPictureCheck", 630, {**few, **SIZE, "caption": DEMO.known}, vae=(model, 2), images=picture, **given)
    t.add("PreviewImage", 300, images=(check, 0))
    t.column("Check my prompts", 600)
    t.add("UniForgetPromptCheck", 640, {**SIZE, "prompts": f"{DEMO.known}\n{DEMO.everyday}", "neutral": 32, "seeds": 2}, **given)


def lora(t: Template) -> None:
    t.note(
        "Forgetting together with a LoRA",
        "The order counts: **LoRA first, then the mask.** A LoRA loaded *before* Apply Memorization Mask is masked together with the model. A "
        "LoRA loaded *after* it is not, and can bring back what it learned itself.\n\n"
        "1. Press **Run** to see it without a LoRA: its node is bypassed.\n"
        "2. With your own model choose your LoRA, and switch its node on (select it, Ctrl+B).\n"
        "3. Drag the slider: left without, right with the mask.\n\n" + EXCHANGE,
        500,
    )
    t.column("Model, LoRA, mask", 320)
    model = t.model()
    loaded = t.add("LoraLoader", 180, {"lora_name": "choose your LoRA"}, mode=4, model=(model, 0), clip=(model, 1))
    mask = t.mask()
    t.column("The mask after the LoRA", 320)
    forgotten = t.add("UniForgetApply", 240, model=(loaded, 0), mask=mask)
    positive, negative, latent = t.say(loaded, DEMO.known, "What to draw"), t.unwanted(loaded), t.latent()
    t.column("Same seed, with and without", 320)
    given: dict[str, Link] = {"positive": positive, "negative": negative, "latent_image": latent, "vae": (model, 2)}
    pictures = [t.sample((network, 0), **given) for network in (loaded, forgotten)]
    t.column("Compare", 460)
    names = {"filename_prefix": "uniforget/with_lora", "label_original": "LoRA", "label_forgotten": "LoRA and mask"}
    t.add("UniForgetCompare", 720, names, original=pictures[0], forgotten=pictures[1])


def sanitize(t: Template) -> None:
    t.note(
        "Save a checkpoint that has forgotten",
        "For sharing, or for programs without UniForget.\n\n"
        "1. Press **Run** to see it on the demo model's file.\n"
        "2. For your own: choose your checkpoint's file in **Save Sanitized Checkpoint**, and its mask in **Load "
        "Memorization Mask**. The model itself need not be loaded.\n\n"
        "The new file lies in ComfyUI's output folder. Everything else in it is as it was.",
        420,
    )
    t.column("The mask", 320)
    mask = t.mask()
    t.column("What it switches off", 460)
    t.add("UniForgetMaskMap", 480, mask=mask)
    t.column("Write the file", 400)
    file = {"model_name": "bundled demo model", "filename_prefix": "sanitized"}
    t.add("UniForgetSaveSanitized", 480, file, mask=mask)


def client(t: Template) -> None:
    t.note(
        "A report to show to a client",
        "1. Type the **prompt** that matters, and an everyday one below it.\n"
        "2. Write a **title** and **notes** into the report.\n"
        "3. Press **Run**, then **Open the report**: one page with before, after and a light, and an appendix for the experts. It is one file, "
        "needs no network, and can be printed or sent.\n\n" + EXCHANGE,
        420,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.mask()
    t.column("What to draw", 320)
    known, usual = t.say(model, DEMO.known, "The prompt that matters"), t.say(model, DEMO.everyday, "An everyday prompt")
    negative, latent = t.unwanted(model), t.latent()
    given: dict[str, Any] = {"model": (model, 0), "mask": mask, "negative": negative, "latent_image": latent, "vae": (model, 2)}
    t.column("The prompt that matters", 400)
    first = t.add("UniForgetPreview", 820, {**SAMPLING, "filename_prefix": "uniforget/for_a_client"}, positive=known, **given)
    t.column("An everyday prompt", 400)
    second = t.add("UniForgetPreview", 820, {**SAMPLING, "filename_prefix": "uniforget/everyday"}, positive=usual, **given)
    t.column("The report", 400)
    sides: dict[str, Any] = {
        "original": (first, 0),
        "forgotten": (first, 1),
        "everyday_original": (second, 0),
        "everyday_forgotten": (second, 1),
    }
    t.add("UniForgetReport", 620, {"title": "What our model forgot"}, model=(first, 2), mask=mask, **sides)


def whole(t: Template) -> None:
    t.note(
        "Forget what was memorized",
        "1. Press **Run**. Finding and learning take some minutes on a CPU.\n"
        "2. Drag the sliders. The model knows one picture of this pineapple and this rocket by heart; look whether it draws another one now, "
        "and whether the everyday picture is still right.\n"
        "3. *Demo Score* counts it for all captions. With the presets as they are, many copies stay: the figures say how many.\n"
        "4. Move **strength** on *Apply Memorization Mask* and run again: it is counted anew, and nothing is learned a second time.\n\n"
        "No node was told what to forget: *Find Memorized Prompts* looks through 330 captions, of which it does not know that 33 are memorized, and "
        "finds other words to answer those by. Without it, *Learn* takes neutral prompts only, as in the paper: weaker on this model.",
        500,
    )
    t.column("1. Find what it knows by heart", 340)
    model = t.model()
    found = t.add("UniForgetFind", 520, FINDING | {"pool": "\n".join(pool())}, model=(model, 0), clip=(model, 1))
    latent = t.latent(4)
    t.column("2. Learn, once", 340)
    mask = t.learn(model, found, **LEARNING)
    t.add("PreviewImage", 220, title="How learning went", images=(mask[0], 1))
    t.column("3. Keep it, apply it, count copies", 460)
    t.add("UniForgetSaveMask", 220, {"filename_prefix": "demo_mask"}, mask=mask)
    forgotten = t.add("UniForgetApply", 250, model=(model, 0), mask=mask)
    sides: dict[str, Any] = {"original": (model, 0), "forgotten": (forgotten, 0)}
    t.add(
        "UniForgetDemoScore", 560, title="Demo Score: did it really forget?", clip=(model, 1), vae=(model, 2), mask=mask, **sides
    )
    given: dict[str, Any] = {"model": (model, 0), "mask": mask, "vae": (model, 2), "latent_image": latent}
    for title, name, caption in (
        ("4. A picture it knows by heart", "memorized", DEMO.known),
        ("5. An everyday picture", "everyday", DEMO.everyday),
    ):
        t.column(title, 420)
        positive, negative = t.say(model, caption, f"What to draw: {name}"), t.unwanted(model)
        prefix = {"filename_prefix": f"uniforget/demo_{name}"}
        t.add(
            "UniForgetPreview",
            800,
            {**SAMPLING, **prefix},
            title=f"Before and after: {name}",
            positive=positive,
            negative=negative,
            **given,
        )


TEMPLATES = {
    "1 Play with forgetting": play,
    "2 Learn a mask for your model": learn,
    "3 How much is enough": strengths,
    "4 Does the model know my picture": own_picture,
    "5 Does every seed draw the same picture": seeds,
    "6 Together with a LoRA": lora,
    "7 Save a checkpoint that has forgotten": sanitize,
    "8 A report for a client": client,
    DEMO_WORKFLOW.stem: whole,
}


@functools.cache
def pack() -> Any:
    """The pack's nodes, inside ComfyUI."""
    return inside.load(CACHE / "templates")


def written() -> dict[str, str]:
    """The files as they should be, by title."""
    loaded = pack()
    import nodes  # ComfyUI's

    info = {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in loaded.all_nodes()}
    names = ("CLIPTextEncode", "KSampler", "VAEDecode", "SaveImage", "PreviewImage", "LoraLoader")
    for name in names:
        kind = getattr(nodes, "NODE_CLASS_MAPPINGS")[name]  # noqa: B009  (no attribute of our own nodes)
        returns = list(kind.RETURN_TYPES)
        info[name] = {"input": kind.INPUT_TYPES(), "output": returns, "output_name": list(getattr(kind, "RETURN_NAMES", returns))}
    latent = {"width": ["INT", {}], "height": ["INT", {}], "batch_size": ["INT", {}]}
    info[DEMO.latent] = {"input": {"required": latent}, "output": ["LATENT"], "output_name": ["LATENT"]}
    found = {}
    for title, fill in TEMPLATES.items():
        made = Template(dict(info))
        fill(made)
        found[title] = json.dumps(made.workflow(), indent=1, ensure_ascii=False) + "\n"
    return found


def pool() -> list[str]:
    """The captions that the last example looks through."""
    return importlib.import_module(f"{inside.PACK}.testbed.evaluate").pool()


def learned() -> bytes:
    """The file of the mask that the examples load: learned on the demo model as it is now, with the settings of the last example. Takes minutes."""
    pack().all_nodes()
    part = lambda name: importlib.import_module(f"{inside.PACK}.{name}")  # noqa: E731
    model, clip, _ = part("nodes.demo").DemoModel.execute().args
    config = part("uniforget.config")
    finding = {param.name: param.default for param in config.FIND_IN.values()} | FINDING | {"pool": "\n".join(pool())}
    found = part("nodes.find").FindMemorized.execute(model, clip, **finding).args[0]
    values = {param.name: param.default for param in config.LEARN.values()} | LEARNING | {"prompts": found}
    mask = part("nodes.learn").LearnMask.execute(model, clip, **values).args[0]
    return part("uniforget.mask.file").dumps(mask)


def main(arguments: list[str] | None = None) -> None:
    """Writes the example workflows, and the mask if it is asked to."""
    parser = argparse.ArgumentParser(prog="python -m launcher.templates", description="Writes the example workflows.")
    parser.add_argument("--mask", action="store_true", help="first learn the mask that they load, anew: minutes")
    options = parser.parse_args(arguments)
    if options.mask:
        data = learned()
        MASK.parent.mkdir(exist_ok=True)
        MASK.write_bytes(data)
        print(f"{MASK}: {len(data):,} bytes")
    for title, text in written().items():
        (FOLDER / f"{title}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
