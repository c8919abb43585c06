"""The example workflows: ``python -m launcher.templates`` writes them.

All of them run as they come on the demo model (:data:`DEMO`); their notes say what to exchange for one's own. The mask is found by *subspace*,
which needs no training, so that each runs in seconds. Names of the files are their titles in ComfyUI's list.

The other one, :data:`launcher.paths.DEMO_WORKFLOW`, is what ``run.py demo`` runs; it is drawn by hand.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from . import inside
from .paths import CACHE, ROOT

FOLDER = ROOT / "example_workflows"
GAP, TOP, HEAD = 40, 60, 40
NOTE_WIDTH = 380


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
LEARNING = {"objective": "subspace", "preset": "strong", "sampling_steps": 4, "cfg": DEMO.cfg, **SIZE}
EXCHANGE = (
    "**With your own model:** put *Load Checkpoint* in place of *UniForget Demo Model* and *Empty Latent Image* in place of its latent, "
    "and set steps, cfg, sampler and size to what you draw with. "
)
LOAD = "Put *Load Memorization Mask* in place of *Learn Memorization Mask* once you have learned a mask."

Link = tuple[int, int]


@dataclass
class Template:
    """A workflow in columns, each in a group of its own, from left to right.

    Attributes:
        info: of every node type: what ``/object_info`` says of it.
    """

    info: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    left: float = 0
    low: float = 0

    def column(self, title: str, width: int) -> None:
        """Begins a new column; what is added goes into it."""
        self.left = self.left + self.groups[-1]["bounding"][2] + GAP if self.groups else 0
        self.low = TOP
        box = [self.left, 0, width + GAP, TOP]
        self.groups.append(
            {"id": len(self.groups) + 1, "title": title, "bounding": box, "color": "#3f5159", "font_size": 22, "flags": {}}
        )

    def add(self, kind: str, height: int, values: dict[str, Any] | None = None, mode: int = 0, **inputs: Link) -> int:
        """A node below the last one: `values` of its widgets, the others as they come; `inputs` are links. Returns its id."""
        ident, spec = len(self.nodes) + 1, self.info[kind]
        box = self.groups[-1]["bounding"]
        position, size = [box[0] + GAP / 2, self.low + HEAD / 2], [box[2] - GAP, height]
        self.low += height + HEAD + GAP / 2
        box[3] = self.low
        slots: list[dict[str, Any]] = []
        for name, (target, slot) in inputs.items():
            link, given = len(self.links) + 1, self.nodes[target - 1]["outputs"][slot]
            self.links.append([link, target, slot, ident, len(slots), given["type"]])
            given["links"].append(link)
            slots.append({"name": name, "type": given["type"], "link": link})
        outputs = [
            {"name": name, "type": type_, "links": [], "slot_index": i}
            for i, (name, type_) in enumerate(zip(spec["output_name"], spec["output"], strict=True))
        ]
        node = {"id": ident, "type": kind, "pos": position, "size": size, "flags": {}, "order": ident - 1, "mode": mode}
        node |= {"inputs": slots, "outputs": outputs, "properties": {"Node name for S&R": kind}}
        self.nodes.append(node | {"widgets_values": widgets(spec, values or {})})
        return ident

    def note(self, title: str, text: str, height: int) -> None:
        """What to do, in a column of its own."""
        self.column("Read me", NOTE_WIDTH)
        self.info.setdefault("MarkdownNote", {"input": {}, "output": [], "output_name": []})
        self.add("MarkdownNote", height)
        self.nodes[-1]["widgets_values"] = [f"## {title}\n\n{text}"]

    def workflow(self) -> dict[str, Any]:
        """In the editor's format. It says nothing of the view: the page fits it."""
        counts = {"last_node_id": len(self.nodes), "last_link_id": len(self.links)}
        return {
            **counts,
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def model(self) -> int:
        return self.add("UniForgetDemoModel", 110)

    def learn(self, model: int, **values: Any) -> Link:
        return self.add("UniForgetLearn", 520, {**LEARNING, **values}, model=(model, 0), clip=(model, 1)), 0

    def latent(self, count: int = 1) -> Link:
        return self.add(DEMO.latent, 130, {**SIZE, "batch_size": count}), 0

    def say(self, model: int, text: str) -> Link:
        return self.add("CLIPTextEncode", 120, {"text": text}, clip=(model, 1)), 0


def widgets(spec: dict[str, Any], values: dict[str, Any]) -> list[Any]:
    """Values of a node's widgets in their order; what is not in `values` is the default."""
    found: list[Any] = []
    names = []
    for group in ("required", "optional"):
        for name, (kind, *more) in spec["input"].get(group, {}).items():
            options = more[0] if more else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices is None and kind not in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                continue
            if options.get("forceInput"):
                continue
            names.append(name)
            found.append(values.get(name, options.get("default", choices[0] if choices else "")))
            if options.get("control_after_generate"):
                found.append("fixed")
    unknown = set(values) - set(names)
    assert not unknown, f"no such widgets: {sorted(unknown)}"
    return found


def play(t: Template) -> None:
    t.note(
        "Play with forgetting",
        "A tiny model that knows some pictures by heart. Nothing to download, no graphics card needed.\n\n"
        "1. Press **Run**. In seconds the mask is there, and the pictures before and after.\n"
        "2. Drag the slider in **Preview Comparison**. Left: the picture that it has learned by heart. Right: after forgetting.\n"
        "3. Look at the grid: from which strength on is it gone? Click a picture to use its strength, or press **Find my strength**.\n"
        "4. The **Mask Map** shows where the mask bites. Click on blocks to leave them alone, and run again.\n\n"
        f"Another prompt that nobody learned by heart: *{DEMO.everyday}*. It should stay as it is.\n\n" + EXCHANGE + LOAD,
        640,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.learn(model)
    t.column("What to draw", 320)
    positive, negative, latent = t.say(model, DEMO.known), t.say(model, ""), t.latent()
    kept = (t.add("UniForgetMaskMap", 430, mask=mask), 0)
    t.column("Before and after", 420)
    given: dict[str, Any] = {"model": (model, 0), "mask": kept, "latent_image": latent, "vae": (model, 2)}
    t.add("UniForgetPreview", 860, SAMPLING, positive=positive, negative=negative, **given)
    t.column("How much is enough?", 620)
    rows = {"prompts": DEMO.known, "everyday": DEMO.everyday}
    t.add("UniForgetSweep", 1060, {**SAMPLING, **rows, "strengths": "0, 0.5, 0.75, 1"}, clip=(model, 1), **given)


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
    mask = t.learn(model)
    t.column("The mask", 400)
    saved = (t.add("UniForgetSaveMask", 220, {"filename_prefix": "my_mask"}, mask=mask), 0)
    t.add("UniForgetMaskMap", 460, mask=saved)
    t.column("What to draw", 300)
    positive, negative, latent = t.say(model, DEMO.known), t.say(model, ""), t.latent()
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
        + EXCHANGE + LOAD,
        500,
    )  # fmt: skip
    t.column("The model and its mask", 320)
    model = t.model()
    mask, latent = t.learn(model), t.latent()
    t.column("Try strengths, click the best", 640)
    rows = {"prompts": DEMO.known, "everyday": DEMO.everyday}
    given: dict[str, Any] = {"mask": mask, "latent_image": latent}
    t.add("UniForgetSweep", 1060, {**SAMPLING, **rows}, model=(model, 0), clip=(model, 1), vae=(model, 2), **given)
    t.column("Draw with it", 320)
    forgotten = t.add("UniForgetApply", 240, model=(model, 0), mask=mask)
    positive, negative = t.say(model, DEMO.known), t.say(model, "")
    drawn = t.add("KSampler", 290, SAMPLING, model=(forgotten, 0), positive=positive, negative=negative, latent_image=latent)
    t.column("The picture", 340)
    picture = t.add("VAEDecode", 60, samples=(drawn, 0), vae=(model, 2))
    t.add("SaveImage", 400, {"filename_prefix": "uniforget/chosen"}, images=(picture, 0))


def seeds(t: Template) -> None:
    t.note(
        "Does every seed draw the same picture?",
        "Some models draw nearly the same picture for every seed. That is the everyday face of memorization.\n\n"
        "1. Press **Run**: the same prompt from several seeds, above without and below with the mask.\n"
        "2. Read the two numbers: 0 is the same picture every time.\n\n" + EXCHANGE + LOAD,
        420,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.learn(model)
    t.column("What to draw", 320)
    positive, negative, latent = t.say(model, DEMO.known), t.say(model, ""), t.latent()
    t.column("Seeds before and after", 560)
    given: dict[str, Any] = {"positive": positive, "negative": negative, "latent_image": latent, "vae": (model, 2)}
    t.add("UniForgetVariety", 860, SAMPLING, model=(model, 0), mask=mask, **given)


def own_picture(t: Template) -> None:
    t.note(
        "Does the model know my picture?",
        "1. Press **Run** to see it on the demo model: the picture is one that it draws from memory.\n"
        "2. Put *Load Image* with **your picture** in place of *VAE Decode*.\n"
        "3. If you know what it was called in training, type it as **caption**. Empty works too.\n"
        "4. The node says first how long it takes, and then in words whether the model knows the picture, before and after forgetting. "
        "Lower **noises** if it takes too long.\n\n"
        "**Prompt Check** does the same for prompts: which of them are memorized?\n\n" + EXCHANGE + LOAD,
        560,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.learn(model)
    t.column("A picture", 320)
    positive, negative, latent = t.say(model, DEMO.known), t.say(model, ""), t.latent()
    drawn = t.add("KSampler", 290, SAMPLING, model=(model, 0), positive=positive, negative=negative, latent_image=latent)
    picture = (t.add("VAEDecode", 60, samples=(drawn, 0), vae=(model, 2)), 0)
    t.column("Check my picture", 440)
    few = {"noises": 3, "baseline": 4, "sampling_steps": 4, "cfg": DEMO.cfg}
    given: dict[str, Any] = {"model": (model, 0), "clip": (model, 1), "mask": mask}
    check = t.add("UniForgetPictureCheck", 600, {**few, **SIZE, "caption": DEMO.known}, vae=(model, 2), images=picture, **given)
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
        "3. Drag the slider: left without, right with the mask.\n\n" + EXCHANGE + LOAD,
        500,
    )
    t.column("Model, LoRA, mask", 320)
    model = t.model()
    loaded = t.add("LoraLoader", 150, {"lora_name": "choose your LoRA"}, mode=4, model=(model, 0), clip=(model, 1))
    mask = t.learn(model)
    t.column("The mask after the LoRA", 320)
    forgotten = t.add("UniForgetApply", 240, model=(loaded, 0), mask=mask)
    positive = (t.add("CLIPTextEncode", 120, {"text": DEMO.known}, clip=(loaded, 1)), 0)
    negative = (t.add("CLIPTextEncode", 120, {"text": ""}, clip=(loaded, 1)), 0)
    latent = t.latent()
    t.column("Same seed, with and without", 320)
    pictures = []
    for network in (loaded, forgotten):
        drawn = t.add("KSampler", 290, SAMPLING, model=(network, 0), positive=positive, negative=negative, latent_image=latent)
        pictures.append((t.add("VAEDecode", 60, samples=(drawn, 0), vae=(model, 2)), 0))
    t.column("Compare", 460)
    names = {"filename_prefix": "uniforget/with_lora", "label_original": "LoRA", "label_forgotten": "LoRA and mask"}
    t.add("UniForgetCompare", 720, names, original=pictures[0], forgotten=pictures[1])


def sanitize(t: Template) -> None:
    t.note(
        "Save a checkpoint that has forgotten",
        "For sharing, or for programs without UniForget.\n\n"
        "1. Press **Run** to see it on the demo model's file.\n"
        "2. For your own: choose your checkpoint's file in **Save Sanitized Checkpoint**, and put **Load Memorization Mask** with its mask in "
        "place of *Learn Memorization Mask*. The model itself need not be loaded.\n\n"
        "The new file lies in ComfyUI's output folder. Everything else in it is as it was.",
        420,
    )
    t.column("The mask", 320)
    model = t.model()
    mask = t.learn(model)
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
        "needs no network, and can be printed or sent.\n\n" + EXCHANGE + LOAD,
        420,
    )
    t.column("The model and its mask", 320)
    model = t.model()
    mask = t.learn(model)
    t.column("What to draw", 320)
    known, usual, negative, latent = t.say(model, DEMO.known), t.say(model, DEMO.everyday), t.say(model, ""), t.latent()
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
    t.add("UniForgetReport", 560, {"title": "What our model forgot"}, model=(first, 2), mask=mask, **sides)


TEMPLATES = {
    "1 Play with forgetting": play,
    "2 Learn a mask for your model": learn,
    "3 How much is enough": strengths,
    "4 Does the model know my picture": own_picture,
    "5 Does every seed draw the same picture": seeds,
    "6 Together with a LoRA": lora,
    "7 Save a checkpoint that has forgotten": sanitize,
    "8 A report for a client": client,
}


def written() -> dict[str, str]:
    """The files as they should be, by title."""
    loaded = inside.load(CACHE / "templates")
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
        template = Template(dict(info))
        fill(template)
        found[title] = json.dumps(template.workflow(), indent=1, ensure_ascii=False) + "\n"
    return found


def main() -> None:
    """Writes the example workflows."""
    for title, text in written().items():
        (FOLDER / f"{title}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
