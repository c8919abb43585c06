"""Workflows on the demo model for the nodes that draw pictures themselves, in the editor's format."""

from .graphs import Graph

PROMPT, COPIED = "soft cat top left on blue", "dark photo of coffee"
# A mask that changes pictures, without training.
LEARN = ["soft cat on blue\nphoto of coffee", "strong", 2.0, "ffn + norm", 3, 0.1, 4, 2, 3.0, 96, 96, 0, "fixed"]
LEARN += ["scores", "teacher", 0.4, 0.0, "auto", 0.0]
KINDS = [1.0, 1.0, 1.0]
SAMPLER = [5, "fixed", 4, 3.0, "euler", "simple", 1.0]


class Drawing(Graph):
    """A workflow with the demo model, a mask and an empty latent."""

    def __init__(self):
        super().__init__()
        self.model = self.put("UniForgetDemoModel", ["bundled demo model"], outs=["MODEL", "CLIP", "VAE"], pos=(-700, 0))
        learn = self.put(
            "UniForgetLearn", LEARN, {"model": (self.model, 0), "clip": (self.model, 1)}, ["UNIFORGET_MASK"], (-700, 200)
        )
        self.mask = (learn, 0)
        self.latent = (self.put("EmptySD3LatentImage", [96, 96, 1], outs=["LATENT"], pos=(-700, 800)), 0)

    def put(self, kind, values=(), inputs=None, outs=(), pos=(0, 0), size=(300, 160), **extra):
        """Adds a node whose `inputs` are ``{name: (source node, slot)}``; returns its id."""
        ident = len(self.nodes) + 1
        node = {"id": ident, "type": kind, "pos": list(pos), "size": list(size), "flags": {}, "order": ident, "mode": 0}
        node |= {"properties": {}, "widgets_values": list(values), "inputs": [], **extra}
        node["outputs"] = [{"name": name, "type": name, "links": [], "slot_index": i} for i, name in enumerate(outs)]
        for slot, (name, (source, out)) in enumerate((inputs or {}).items()):
            link, given = len(self.links) + 1, self.nodes[source - 1]["outputs"][out]
            self.links.append([link, source, out, ident, slot, given["type"]])
            given["links"].append(link)
            node["inputs"].append({"name": name, "type": given["type"], "link": link})
        self.nodes.append(node)
        return ident

    def say(self, text, pos=(-350, 0)):
        """A prompt's CONDITIONING."""
        return self.put("CLIPTextEncode", [text], {"clip": (self.model, 1)}, ["CONDITIONING"], pos), 0

    def apply(self, mask=None, strength=1.0, pos=(-350, 200), **extra):
        inputs = {"model": (self.model, 0), "mask": mask or self.mask}
        return self.put("UniForgetApply", [strength, *KINDS], inputs, ["MODEL"], pos, (300, 220), **extra)

    def preview(self, strength=1.0, text=PROMPT, pos=(0, 0), sampler=SAMPLER, **extra):
        """A Preview Comparison node."""
        inputs = {"model": (self.model, 0), "mask": self.mask, "positive": self.say(text, (-350, 450))}
        inputs |= {"latent_image": self.latent, "vae": (self.model, 2), "negative": self.say("", (-350, 650))}
        values = [strength, *KINDS, *sampler, True, "uniforget/preview"]
        return self.put("UniForgetPreview", values, inputs, ["IMAGE", "IMAGE", "MODEL"], pos, (420, 1000), **extra)

    def sweep(
        self, strengths="0, 0.5, 1", prompts=f"{PROMPT}\n{COPIED}", seeds=1, pos=(0, 0), mask=None, size=(480, 1150), **extra
    ):
        """A Strength Sweep node."""
        inputs = {"model": (self.model, 0), "mask": mask or self.mask, "clip": (self.model, 1), "vae": (self.model, 2)}
        values = [prompts, "", "", strengths, False, seeds, *KINDS, *SAMPLER, True, "uniforget/sweep", True]
        return self.put("UniForgetSweep", values, inputs | {"latent_image": self.latent}, ["IMAGE", "IMAGE"], pos, size, **extra)
