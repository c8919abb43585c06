"""ComfyUI: cut what a mask switches off out of a model, by replacing its Linears on a clone.

ComfyUI puts object patches into the model when it loads the clone and takes them out again with it, so other clones never see
them. A cut Linear still takes patches of the whole weight: before they are computed it is spread out to its old size, with zeros, and
afterwards gathered again. So LoRAs land, loaded before or after, and so does the mask itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.float
import comfy.sd
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ...checkpoint import compactfile, safefile
from ...checkpoint.compact import Cut, Plan, plan
from ...errors import MismatchError, ModelFileError
from ...mask.info import GateMask
from .apply import apply_mask
from .network import PREFIX, own_modules, unpatched


class Compact:
    """Mixed into the class of the Linear that is cut.

    Attributes:
        whole: the Linear that it was cut out of, whose weights patches are computed on (DoRA and OFT look at all of them); None: it is
            gone, and what was cut counts as zero.
    """

    cut: Cut
    whole: Any

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **given: Any) -> torch.Tensor:
        """The whole weight."""
        theirs = getattr(super(), "convert_weight", None)
        kept = weight if theirs is None else theirs(weight, inplace=inplace, **given)
        return self.cut.scatter(kept, self._whole("weight", weight, kept))

    def set_weight(
        self, weight: torch.Tensor, inplace_update: bool = False, seed: Any = None, return_weight: bool = False, **given: Any
    ):
        """Keep the part that is left of a whole weight."""
        return self._set("weight", self.cut.gather(weight).contiguous(), inplace_update, seed, return_weight, **given)

    def convert_bias(self, bias: torch.Tensor, inplace: bool = False, **given: Any) -> torch.Tensor:
        """The whole bias."""
        theirs = getattr(super(), "convert_bias", None)
        kept = bias if theirs is None else theirs(bias, inplace=inplace, **given)
        return self.cut.scatter_bias(kept, self._whole("bias", bias, kept))

    def set_bias(
        self, bias: torch.Tensor, inplace_update: bool = False, seed: Any = None, return_weight: bool = False, **given: Any
    ):
        """Keep the part that is left of a whole bias."""
        return self._set("bias", self.cut.gather_bias(bias).contiguous(), inplace_update, seed, return_weight, **given)

    def _whole(self, name: str, stored: torch.Tensor, kept: torch.Tensor) -> torch.Tensor | None:
        """A copy of the whole Linear's weight or bias, as `kept` was made of `stored`."""
        if self.whole is None:
            return None
        value = getattr(self.whole, name).detach().to(stored.device, stored.dtype, copy=True)
        convert = getattr(self.whole, f"convert_{name}", None)
        return (value if convert is None else convert(value, inplace=True)).to(kept.dtype)

    def _set(self, name: str, value: torch.Tensor, inplace_update: bool, seed: Any, return_weight: bool, **given: Any):
        theirs = getattr(super(), f"set_{name}", None)
        if theirs is not None:
            return theirs(value, inplace_update=inplace_update, seed=seed, return_weight=return_weight, **given)
        old: torch.Tensor = getattr(self, name)
        value = comfy.float.stochastic_rounding(value, old.dtype, seed=seed or 0)
        if return_weight:
            return value
        if inplace_update:
            old.data.copy_(value)
        else:
            setattr(self, name, nn.Parameter(value, requires_grad=False))
        return None


def _cut_linear(linear: Any, cut: Cut, unpatched: Mapping[str, torch.Tensor], whole: bool) -> Any:
    """A Linear of the same kind with what is kept of its weight (of `unpatched` where that is known); `linear` is unchanged.

    Args:
        whole: `linear` stays in memory, unpatched whenever the new one is used: for :class:`Compact`.
    """
    small = copy.copy(linear)
    small.__class__ = type(f"Compact{type(linear).__name__}", (Compact, type(linear)), {})
    # The original may be loaded and patched just now; its copy is not.
    for name in ("comfy_patched_weights", "weight_function", "bias_function"):
        small.__dict__.pop(name, None)
    if "prev_comfy_cast_weights" in small.__dict__:
        small.comfy_cast_weights = small.__dict__.pop("prev_comfy_cast_weights")
    small._parameters, small._buffers = dict(linear._parameters), dict(linear._buffers)
    small.cut = cut
    small.__dict__["whole"] = linear if whole else None  # no part of it
    small._parameters["weight"] = nn.Parameter(
        cut.gather(unpatched.get("weight", linear.weight).detach()).contiguous(), requires_grad=False
    )
    if linear.bias is not None:
        small._parameters["bias"] = nn.Parameter(
            cut.gather_bias(unpatched.get("bias", linear.bias).detach()).contiguous(), requires_grad=False
        )
    small.out_features, small.in_features = cut.kept
    return small


def compact(patcher: Any, mask: GateMask, multiple: int = 8) -> tuple[Any, Plan]:
    """A clone of the ModelPatcher that computes with the mask at full strength, from smaller weights; the original is untouched.

    Raises:
        FamilyError, MismatchError, SettingError: see :func:`uniforget.checkpoint.compact.plan` and :func:`uniforget.hosts.comfy.apply.apply_mask`; or
            the weights are packed, so that columns cannot be taken out of them.
    """
    if any(isinstance(part, Compact) for part in patcher.object_patches.values()):
        raise MismatchError("This model is compact already. Combine the masks, and make it compact once.")
    clone = apply_mask(patcher, mask)
    modules = own_modules(patcher)
    whole = {f"{path}.{name}": tuple(p.shape) for path, m in modules.items() for name, p in m.named_parameters(recurse=False)}
    found = plan(whole, mask, multiple)
    packed = [path for path in found.cuts if type(modules[path].weight.data) is not torch.Tensor or modules[path].weight.is_meta]
    if packed:
        raise MismatchError(
            f"{len(packed)} of the {len(found.cuts)} layers to be cut have packed weights (GGUF, NF4, mixed fp8), such as {packed[0]}. Use Apply "
            "Memorization Mask, which works on them, or load the fp16, bf16 or fp8 version of this model."
        )
    for path, cut in found.cuts.items():
        kept = {name: unpatched(patcher, path, modules[path], name) for name, _ in modules[path].named_parameters(recurse=False)}
        clone.add_object_patch(PREFIX + path, _cut_linear(modules[path], cut, kept, whole=True))
    for key, value in _settings(modules, found):
        clone.add_object_patch(PREFIX + key, value)
    return clone, found


def _settings(modules: Mapping[str, Any], found: Plan) -> Iterator[tuple[str, int]]:
    """Numbers in modules that go with the sizes of their Linears."""
    for path, heads in found.heads.items():
        yield f"{path}.heads", heads
    for path, hidden in found.hidden.items():
        parent = path.rpartition(".")[0]
        block = modules[parent]
        if hasattr(block, "mlp_hidden_dim_first"):  # FLUX's single blocks split by it
            yield f"{parent}.mlp_hidden_dim_first", hidden * (block.mlp_hidden_dim_first // block.mlp_hidden_dim)


def load(path: Path, embeddings: str | None = None) -> tuple[Any, Any, Any]:
    """A compact checkpoint as ``(ModelPatcher, CLIP or None, VAE or None)``; it stays compact wherever it goes.

    Raises:
        ModelFileError: it is no compact checkpoint, or damaged, or no model that this ComfyUI knows.
    """
    header = safefile.read_header(path)
    prefix, found = compactfile.read(header)
    state, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    # Loaded at its old size, so that ComfyUI recognises it, and cut again at once.
    state = compactfile.whole(state, prefix, found)
    clip = vae = None
    if any(name.startswith(("first_stage_model.", "vae.")) for name in state):
        guess = comfy.sd.load_state_dict_guess_config(state, embedding_directory=embeddings, metadata=metadata)
        patcher, clip, vae = guess[:3] if guess else (None, None, None)
    else:
        patcher = comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata)
    if patcher is None:
        raise ModelFileError(f"{path}: this ComfyUI does not know the model in this file. Update ComfyUI.")
    install(patcher, found, str(path))
    return patcher, clip, vae


def install(patcher: Any, found: Plan, name: str) -> None:
    """Cut a model for good that nobody else has, loaded from a file called `name`.

    Raises:
        ModelFileError: the plan is of a model of other sizes.
    """
    network = patcher.model.diffusion_model
    modules = dict(network.named_modules())
    for path, cut in found.cuts.items():
        if path not in modules or tuple(modules[path].weight.shape) != cut.size:
            raise ModelFileError(f"{name}: its note cuts {path}, which is of another size in this model. Make the file anew.")
    # The numbers first: they are told from the whole modules.
    cuts = [(path, _cut_linear(modules[path], cut, {}, whole=False)) for path, cut in found.cuts.items()]
    for key, value in [*_settings(modules, found), *cuts]:
        comfy.utils.set_attr(network, key, value)
    patcher.size = 0  # counted anew
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "uniforget_compact", _refuse_what_needs_the_whole)


# Where an adapter keeps the scale of DoRA, by its name; those that are not here do not only add to a weight, but change it as a whole.
_DORA = {"lora": 4, "loha": 7, "lokr": 8}


def _refuse_what_needs_the_whole(patcher: Any) -> None:
    """See that nothing is computed on weights whose cut parts are gone, unless it only adds to them."""
    for key, patches in patcher.patches.items():
        path = key.removeprefix(PREFIX).rpartition(".")[0]
        try:
            cut = isinstance(comfy.utils.get_attr(patcher.model, PREFIX + path), Compact)
        except AttributeError:
            continue
        for patch in patches if cut else ():
            kind = getattr(patch[1], "name", None)
            dora = _DORA.get(kind) if kind else None
            if kind and kind != "uniforget" and (dora is None or patch[1].weights[dora] is not None):
                raise MismatchError(
                    f"This compact file no longer has the whole weights that a {'DoRA' if dora else kind} LoRA is computed with ({path}). Load the "
                    "original model, put the LoRA behind it, then Compact Model."
                )
