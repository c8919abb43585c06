"""ComfyUI: apply masks through its own weight patching, and learn them inside its sampling machinery.

Works on 0.3.75 and later. Nothing here touches a model in place except :func:`_thaw`, which swaps inference tensors for
ordinary ones of the same values so that gradients can pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.weight_adapter
import torch
from torch import nn

from ...errors import MismatchError
from ...learn import Progress, Result, Settings, learn
from ...learn.inplace import OutOfPlace
from ...mask.edit import Mask, pack, unpack
from ...mask.info import MaskInfo
from ...model.families.schema import KINDS, Family
from ...model.fingerprint import fingerprint
from ...model.layers import Layer, find_layers
from ...model.names import modules_of, weights_of
from ...model.sites import Site, find_sites, fingerprint_targets
from ..stored import Stored
from .network import PREFIX, add_patches, own_modules, own_weights, unpatched

ATTACHMENT = "uniforget"


# Fingerprints of loaded models' unpatched weights: reading those of quantized models takes seconds.
_fingerprints: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class EditAdapter(comfy.weight_adapter.WeightAdapterBase):
    """One weight's edit as a ComfyUI patch, after whatever was patched before it.

    ``weights`` is what :func:`uniforget.mask.edit.pack` makes of the edit. ComfyUI rebuilds adapters from ``(loaded_keys, weights)``
    and moves the tensors in it, so nothing is kept elsewhere.
    """

    name = "uniforget"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32, original_weight=None
    ):
        edit = unpack(self.weights)
        # In place: with an offset only that counts.
        return weight.copy_((edit if strength == 1 else edit.at(strength)).weight(weight))


def shapes_of(patcher) -> dict[str, tuple[int, ...]]:
    """Weight name, relative to the diffusion model -> shape."""
    return {name: tuple(p.shape) for name, p in own_weights(patcher).items()}


def sites_of(patcher, kinds: Iterable[str] = KINDS) -> tuple[Family, list[Site]]:
    """Family and sites of a ModelPatcher's model.

    Raises:
        FamilyError: the family is unknown.
    """
    return find_sites(shapes_of(patcher), kinds)


def layers_of(patcher) -> tuple[str, list[Layer]]:
    """Family name and layers of a ModelPatcher's model.

    Raises:
        FamilyError: the family is unknown.
    """
    family, layers = find_layers(shapes_of(patcher))
    return family.name, layers


def base_fingerprint(patcher) -> str:
    """Fingerprint of the model without its patches (LoRAs, masks), wherever its weights are now.

    "": they are in a format that cannot be read.
    """
    model = patcher.model
    if model not in _fingerprints:
        modules = own_modules(patcher)
        weights = {}
        for site in fingerprint_targets(sites_of(patcher)[1]):
            path = site.places[0].path
            weights[path] = Stored(modules[path], unpatched(patcher, path, modules[path]))
        if not all(weight.readable for weight in weights.values()):
            return ""
        _fingerprints[model] = fingerprint(weights, coarse=any(weight.coarse for weight in weights.values()))
    return _fingerprints[model]


def apply_mask(patcher, mask: Mask, strength: float = 1.0, per_kind: Mapping[str, float] | None = None):
    """A clone of the ModelPatcher that computes with the mask at `strength`; the original is untouched.

    Patches apply in order: LoRAs loaded before this are masked, LoRAs after it are not.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: the mask is not for this model, or ComfyUI did not take every patch.
    """
    edits = mask.edits(shapes_of(patcher), strength, per_kind)
    return attach(
        patcher, {PREFIX + name: EditAdapter(set(), pack(edit)) for name, edit in edits.items()}, mask.digest(), strength
    )


def attach(patcher, patches: Mapping[str, comfy.weight_adapter.WeightAdapterBase], digest: str, strength: float):
    """A clone of the ModelPatcher with `patches` behind those that it has, and a note of what they are.

    Raises:
        MismatchError: ComfyUI did not take every patch.
    """
    clone = patcher.clone()
    if patches:
        lost = add_patches(clone, patches)
        if lost:
            raise MismatchError(
                f"ComfyUI took {len(patches) - len(lost)} of the mask's {len(patches)} weight patches; refused: {', '.join(lost[:5])}. "
                "Another node may have replaced parts of this model: apply the mask before that node."
            )
    clone.set_attachments(ATTACHMENT, [*applied(patcher), {"mask": digest, "strength": strength}])
    return clone


def applied(patcher) -> list[dict]:
    """Masks applied to this model so far, in order: ``{"mask": digest, "strength": float}``."""
    return list(patcher.get_attachment(ATTACHMENT) or [])


def _thaw(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Replace inference-mode parameters and buffers by ordinary copies, one module at a time so that memory stays flat.

    ComfyUI loads models under ``torch.inference_mode()``; autograd refuses such tensors, and only replacing them helps.

    Returns:
        those replaced whose tensors are of a class of their own, for :func:`_refreeze`.
    """
    own = []
    with torch.inference_mode(False):
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None and parameter.is_inference():
                    if type(parameter.data) is not torch.Tensor:
                        own.append((part, name))
                    part._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()
    return own


def _refreeze(thawed: Iterable[tuple[nn.Module, str]]) -> None:
    """Turn weights that :func:`_thaw` named back into inference tensors, as ComfyUI loaded them.

    ComfyUI lists a model's weights under ``torch.inference_mode()``, where ordinary tensors of classes of their own (mixed fp8)
    cannot be detached.
    """
    with torch.inference_mode():
        for part, name in thawed:
            part._parameters[name] = nn.Parameter(part.get_parameter(name).clone(), requires_grad=False)


def _thawed(value):
    """Clone inference tensors inside a condition's value (tensor, list of tensors or anything else)."""
    if torch.is_tensor(value):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list):
        return [_thawed(v) for v in value]
    return value


@contextmanager
def differentiable() -> Iterator[None]:
    """Within it, ComfyUI's models can be differentiated with respect to gates and latents."""
    management = comfy.model_management
    # Newer versions pick differentiable code paths by this flag.
    had = getattr(management, "in_training", None)
    if had is not None:
        management.in_training = True
    try:
        with OutOfPlace():
            yield
    finally:
        if had is not None:
            management.in_training = had


class _Loaded:
    """A loaded ComfyUI model as :class:`uniforget.learn.Model`."""

    def __init__(self, guider, sites: list[Site], sigmas: torch.Tensor, latent: torch.Tensor, prompts: int, model_options):
        self.model = guider.inner_model
        self.sites = sites
        self.layers = find_layers({n: tuple(p.shape) for n, p in weights_of(self.model.diffusion_model).items()})[1]
        self.modules = modules_of(self.model.diffusion_model)
        self.sigmas = sigmas.detach().clone().float()
        self.prompts = prompts
        self.latent = latent[:1].detach().clone()
        self.options = dict(model_options.get("transformer_options", {}))
        positive = [self._conditions(c) for c in guider.conds["positive"]]
        self.conditions = [*positive, self._conditions(guider.conds["negative"][0])]
        self.group = self._groups()

    def _groups(self) -> list[int]:
        """For each condition the first one that it can be batched with: prompts may encode to different lengths."""
        first: list[int] = []
        out = []
        for i, condition in enumerate(self.conditions):
            for j in first:
                other = self.conditions[j]
                if condition.keys() == other.keys() and all(v.can_concat(other[n]) for n, v in condition.items()):
                    break
            else:
                first.append(j := i)
            out.append(j)
        return out

    @staticmethod
    def _conditions(cond):
        out = {}
        for name, value in cond["model_conds"].items():
            out[name] = value.process_cond(batch_size=1, area=None)
            out[name].cond = _thawed(out[name].cond)
        return out

    def initial(self, count: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, *self.latent.shape[1:])
        noise = torch.randn(shape, generator=generator).to(self.sigmas.device)
        latent = self.latent.expand(shape)
        return self.model.model_sampling.noise_scaling(self.sigmas[0], noise, latent, True)

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows: dict[int, list[int]] = {}
        for row, i in enumerate(which):
            rows.setdefault(self.group[i], []).append(row)
        if len(rows) == 1:
            return self._denoise(x, sigma, which)
        parts = [self._denoise(x[r], sigma[r], [which[row] for row in r]) for r in rows.values()]
        order = torch.tensor([row for r in rows.values() for row in r], device=x.device)
        return torch.cat(parts)[order.argsort()]

    def _denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        first, *others = (self.conditions[i] for i in which)
        inputs = {name: value.concat([o[name] for o in others]) for name, value in first.items()}
        options = {**self.options, "cond_or_uncond": [int(i == -1) for i in which], "sigmas": sigma[:1]}
        with differentiable():
            return self.model.apply_model(x, sigma, **inputs, transformer_options=options)


class _LearnSampler(comfy.samplers.Sampler):
    """Runs learning where ComfyUI runs sampling: the model is loaded, patched and on its device."""

    def __init__(self, run: Callable):
        self.run = run
        self.result = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        with torch.inference_mode(False), torch.enable_grad():
            own = _thaw(model_wrap.inner_model)
            try:
                self.result = self.run(model_wrap, sigmas, latent_image.clone(), extra_args["model_options"])
            finally:
                _refreeze(own)
        return latent_image


def learn_mask(
    patcher,
    sites: list[Site],
    positive: list,
    negative,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    settings: Settings,
    info: MaskInfo,
    report: Callable[[Progress], None],
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    save: Callable[[Result], object] = lambda result: None,
) -> Result:
    """Learn a mask for a ModelPatcher inside ComfyUI.

    Args:
        sites: where gates may sit, from :func:`sites_of`.
        positive: one conditioning per prompt; `negative`: one conditioning.
        latent: empty latent (1, ...) of the picture size to learn at.
        sigmas: the sampling steps, descending to 0.
        folder, tell, save: see :func:`uniforget.learn.learn`.

    Raises:
        LearnError: see :func:`uniforget.learn.learn`; ComfyUI's interrupt passes through unchanged.
    """

    def run(model):
        return learn(model, settings, info, report, folder, tell=tell, save=save)

    return loaded(patcher, sites, positive, negative, latent, sigmas, settings.batch, run)


def loaded(
    patcher, sites: list[Site], positive: list, negative, latent: torch.Tensor, sigmas: torch.Tensor, batch: int, run: Callable
):
    """What `run` makes of the model as :class:`uniforget.learn.Model`, loaded, patched and on its device, with gradients allowed.

    Args: see :func:`learn_mask`.
    """

    def inside(guider, sigmas, latent, model_options):
        return run(_Loaded(guider, sites, sigmas, latent, len(positive), model_options))

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([entry for conditioning in positive for entry in conditioning[:1]], negative)
    sampler = _LearnSampler(inside)
    noise = torch.zeros_like(latent)
    guider.sample(noise.expand(batch, *noise.shape[1:]), latent.expand(batch, *latent.shape[1:]), sampler, sigmas)
    assert sampler.result is not None
    return sampler.result
