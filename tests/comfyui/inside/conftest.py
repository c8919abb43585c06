"""Real ComfyUI inside this very process, with the pack loaded as ComfyUI loads it.

Runs as its own pytest process (``python run.py test`` does that): ComfyUI parses sys.argv, owns the name ``nodes`` and puts a
lot of state into its modules. ``COMFYUI_PATH`` names the tree; by default the one that run.py fetched.
"""

from pathlib import Path

import pytest
import torch

from launcher import inside
from launcher.errors import LauncherError


def pytest_configure(config):
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    if not worker and config.getoption("numprocesses", None):
        return  # tests run in the workers, which have a ComfyUI and folders of their own
    try:
        inside.load(Path(config.rootpath, ".cache", f"inside{worker}"))
    except LauncherError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run under inference mode."""
    with torch.inference_mode():
        yield


class Demo:
    """The demo model, and one way to look at what a model makes of a prompt."""

    def __init__(self, checkpoint=None):
        from uniforget_pack.nodes.demo import load_testbed
        from uniforget_pack.testbed import model as tb

        self.model, self.clip, self.vae = load_testbed(checkpoint or tb.WEIGHTS)

    def encode(self, text):
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, model, text="soft cat top left on blue", steps=3, seed=5):
        """Latents (2, 16, 12, 12) by stock sampling."""
        import comfy.sample

        noise = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(seed))
        return comfy.sample.sample(
            model, noise, steps, 3.0, "euler", "simple", self.encode(text), self.encode(""), torch.zeros_like(noise),
            seed=seed, disable_pbar=True,
        )  # fmt: skip

    def mask(self, kinds=("ffn", "norm"), seed=0, share=0.3, hard=True):
        """A random mask that fits the model."""
        from uniforget_pack.uniforget.hosts.comfy.apply import base_fingerprint, sites_of
        from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo

        family, sites = sites_of(self.model)
        info = MaskInfo(family=family.name, base=base_fingerprint(self.model), method="test")
        generator = torch.Generator().manual_seed(seed)
        draw = {s.name: torch.rand(s.units, generator=generator) for s in sites if s.kind in kinds}
        gates = {k: (v > share).float() if hard else v for k, v in draw.items()}
        return GateMask(gates, {s.name: s.kind for s in sites if s.name in gates}, info)


@pytest.fixture
def demo():
    """A freshly loaded demo model."""
    return Demo()
