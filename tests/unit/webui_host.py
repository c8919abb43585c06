"""Doubles of Automatic1111 and Forge: what of them the script touches, and a generation as they run one.

Their signatures are those of the real ones: ``tests/forge/test_signatures.py`` compares every name in ``REAL`` with Forge's source.
"""

import importlib.machinery
import importlib.util
import sys
from copy import copy, deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

from uniforget import GateMask, MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask
from uniforget.model.sites import find_sites

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "uniforget_webui.py"
PACKAGE = "uniforget_webui_extension"


class Component:
    def __init__(self, value=None, label=None, choices=None, **more):
        self.value, self.label, self.choices, self.more = value, label, choices, more
        self.changes = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def change(self, fn, inputs, outputs, show_progress):
        self.changes.append(fn)


class Script:
    infotext_fields = paste_field_names = None

    def title(self):
        raise NotImplementedError

    def ui(self, is_img2img):
        pass

    def show(self, is_img2img):
        return True

    def before_process(self, p, *args):
        pass

    def process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def postprocess(self, p, processed, *args):
        pass


class AxisOption:
    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None):
        self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices


class OptionInfo:
    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None, refresh=None,
        comment_before="", comment_after="", infotext=None, restrict_api=False, category_id=None,
    ):  # fmt: skip
        self.default, self.label, self.section = default, label, section


class CFGDenoiserParams:
    def __init__(self, x, image_cond, sigma, sampling_step, total_sampling_steps, text_cond, text_uncond, denoiser=None):
        self.x, self.denoiser = x, denoiser


class ModelPatcher:
    """Forge's, with its way of telling patched weights by the patches' names."""

    def __init__(self, model, load_device, offload_device, size=0, current_device=None, **kwargs):
        self.model = model
        self.lora_patches = {}
        if not hasattr(model, "lora_loader"):
            model.lora_loader = SimpleNamespace(backup={})
        self.lora_loader = model.lora_loader

    def clone(self):
        other = ModelPatcher(self.model, None, None)
        other.lora_patches = self.lora_patches.copy()
        return other

    def add_patches(self, *, filename, patches, strength_patch=1.0, strength_model=1.0, online_mode=False):
        there = dict(self.model.named_parameters())
        taken = {key: [[strength_patch, patch, strength_model, None, None]] for key, patch in patches.items() if key in there}
        self.lora_patches[filename, strength_patch, strength_model, online_mode] = taken
        return set(taken)

    def weights(self, calculators):
        """Weight by name, patched."""
        out = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        for patches in self.lora_patches.values():
            for key, some in patches.items():
                for strength, (kind, value), *_ in some:
                    out[key] = calculators[kind](out[key], strength, value)
        return out


def sampling_prepare(unet, x):
    sampling_prepare.prepared.append(unet)


# double -> file and name in Forge
REAL = {
    Script.title: ("modules/scripts.py", "Script.title"),
    Script.ui: ("modules/scripts.py", "Script.ui"),
    Script.show: ("modules/scripts.py", "Script.show"),
    Script.before_process: ("modules/scripts.py", "Script.before_process"),
    Script.process: ("modules/scripts.py", "Script.process"),
    Script.process_before_every_sampling: ("modules/scripts.py", "Script.process_before_every_sampling"),
    Script.postprocess: ("modules/scripts.py", "Script.postprocess"),
    AxisOption.__init__: ("scripts/xyz_grid.py", "AxisOption.__init__"),
    OptionInfo.__init__: ("modules/options.py", "OptionInfo.__init__"),
    CFGDenoiserParams.__init__: ("modules/script_callbacks.py", "CFGDenoiserParams.__init__"),
    ModelPatcher.__init__: ("backend/patcher/base.py", "ModelPatcher.__init__"),
    ModelPatcher.clone: ("backend/patcher/base.py", "ModelPatcher.clone"),
    ModelPatcher.add_patches: ("backend/patcher/base.py", "ModelPatcher.add_patches"),
    sampling_prepare: ("backend/sampling/sampling_function.py", "sampling_prepare"),
}


class Block(nn.Module):
    """A transformer block of a UNet, with the names of Stable Diffusion 1."""

    def __init__(self, width):
        super().__init__()
        for name, text in (("attn1", width), ("attn2", 768)):
            attention = nn.Module()
            attention.to_k = nn.Linear(text, width, bias=False)
            attention.to_v = nn.Linear(text, width, bias=False)
            attention.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))
            setattr(self, name, attention)
        self.ff = nn.Module()
        up = nn.Sequential()
        up.add_module("proj", nn.Linear(width, 4 * width))
        self.ff.net = nn.Sequential(up, nn.GELU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, text):
        x = x + self.attn1.to_out(self.attn1.to_v(self.norm1(x)))
        x = x + self.attn2.to_out(self.norm2(x) + self.attn2.to_v(text))
        return x + self.ff.net(self.norm3(x))


class UNet(nn.Module):
    """Blocks IN1 and OUT1 of width 16; 12 sites."""

    def __init__(self, width=16):
        super().__init__()
        for name in ("input_blocks", "output_blocks"):
            inner = nn.Module()
            inner.proj_in = nn.Conv2d(width, width, 1)
            inner.transformer_blocks = nn.ModuleList([Block(width)])
            setattr(self, name, nn.ModuleList([nn.Identity(), nn.ModuleList([nn.Identity(), inner])]))

    def forward(self, x, text):
        for blocks in (self.input_blocks, self.output_blocks):
            x = blocks[1][1].transformer_blocks[0](x, text)
        return x


def unet(seed=0, width=16):
    torch.manual_seed(seed)
    model = UNet(width).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.normal_(1, 0.3)
    return model


def half(network, base="", seed=3):
    """A mask with about half of its gates off."""
    _, sites = find_sites({name: tuple(w.shape) for name, w in network.named_parameters()})
    generator = torch.Generator().manual_seed(seed)
    gates = {site.name: (torch.rand(site.units, generator=generator) > 0.5).float() for site in sites}
    return GateMask(gates, {site.name: site.kind for site in sites}, MaskInfo("sd1", base, "a tiny one"))


def subspace():
    """Directions of two layers; some of them go."""
    generator = torch.Generator().manual_seed(2)
    bases, kinds = {}, {}
    block = "input_blocks.1.1.transformer_blocks.0."
    for name, kind, width in ((f"{block}ff.net.2", "ffn", 64), (f"{block}attn1.to_out.0", "attn", 16)):
        vectors = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        energy = 0.5 ** torch.arange(1, width + 1).float()
        bases[name], kinds[name] = Basis(vectors, energy / energy.sum()), kind
    return SubspaceMask(bases, {name: name for name in bases}, kinds, 0.05, MaskInfo("sd1", "", method="subspace"))


INPUT = (torch.linspace(-1, 1, 2 * 3 * 16).view(2, 3, 16), torch.linspace(1, -1, 2 * 3 * 768).view(2, 3, 768))


class Processing:
    """A generation: draws one number per seed with the model, and calls scripts as both hosts do."""

    def __init__(self, host, values, **fields):
        self.host, self.values = host, values
        self.prompt, self.negative_prompt, self.styles, self.seed, self.subseed = "a cat", "", ["photo"], -1, -1
        self.extra_generation_params, self.comments = {}, {}
        self.n_iter, self.enable_hr, self.switch_to, self.closed = 1, False, None, False
        self.__dict__.update(fields)

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        self.closed = True

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        host = self.host
        self.sampler = self
        if host.forge:
            # before scripts, the host takes a model without their patches
            host.shared.sd_model.forge_objects = copy(host.shared.sd_model.original)
            host.call("process_before_every_sampling", self, x=INPUT[0], noise=INPUT[0], c=None, uc=None)
        return self.sampler.sample_steps(seeds) if self.sampler is self else self.sampler.sample(self)

    def sample_steps(self, seeds):
        out = []
        for seed in seeds:
            if self.switch_to is not None:
                self.host.shared.sd_model = self.switch_to
            self.host.denoiser(CFGDenoiserParams(INPUT[0], None, None, 0, 1, None, None, SimpleNamespace(p=self)))
            out.append(self.host.predict().sum().item() + seed)
        if self.host.fail_in_sampling:
            raise RuntimeError("out of memory")
        return out


class Processed(SimpleNamespace):
    pass


class Host:
    """One of the two hosts with a model in it, and the script loaded as the host loads it."""

    def __init__(self, monkeypatch, folder, forge, model=None):
        self.forge, self.fail_in_sampling, self.reports, self.callbacks = forge, False, [], {}
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(sampling_prepare, "prepared", [], raising=False)
        self.plot = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
        data = [SimpleNamespace(path="/host/scripts/xyz_grid.py", module=self.plot)]
        opts = SimpleNamespace(add_option=lambda name, info: self.options.update({name: info}))
        self.options = {}
        state = SimpleNamespace(interrupted=False, stopping_generation=False, job_count=1)
        self.modules(
            "gradio", **{n: Component for n in ("Dropdown", "Slider", "Textbox", "Checkbox", "Markdown", "Row")}, update=dict
        )
        self.modules("modules")
        self.modules("modules.paths", data_path=str(folder), models_path=str(folder / "models"))
        self.scripts = self.modules("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=data)
        on = {name: self.on(name) for name in ("on_before_ui", "on_ui_settings", "on_cfg_denoiser", "on_script_unloaded")}
        self.modules("modules.script_callbacks", **on)
        self.shared = self.modules("modules.shared", opts=opts, state=state, OptionInfo=OptionInfo, sd_model=None)
        self.processing = self.modules("modules.processing", process_images=self.process_images)
        self.modules("modules.ui_common", create_refresh_button=lambda component, method, args, elem_id: None)
        self.modules("modules.ui_components", InputAccordion=Component)
        self.sd_unet = self.modules("modules.sd_unet", current_unet=None)
        self.calculators = {}
        if forge:
            self.modules("modules_forge").__spec__ = importlib.machinery.ModuleSpec("modules_forge", None)
            for name in ("backend", "backend.patcher", "backend.sampling"):
                self.modules(name)
            self.modules("backend.patcher.lora", extra_weight_calculators=self.calculators)
            sys.modules["backend.patcher"].lora = sys.modules["backend.patcher.lora"]
            self.modules("backend.sampling.sampling_function", sampling_prepare=sampling_prepare)
        else:
            monkeypatch.delitem(sys.modules, "modules_forge", raising=False)
        self.shared.sd_model = self.model(unet() if model is None else model)
        self.folder = folder / "models" / "UniForget"
        self.folder.mkdir(parents=True)
        self.script = self.load()

    def modules(self, name, **contents):
        module = ModuleType(name)
        vars(module).update(contents)
        self.monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
        return module

    def on(self, name):
        return lambda callback: self.callbacks.setdefault(name, []).append(callback)

    def model(self, network):
        if not self.forge:
            return Model(model=SimpleNamespace(diffusion_model=network))
        holder = nn.Module()
        holder.diffusion_model = network
        objects = SimpleNamespace(unet=ModelPatcher(holder, None, None))
        return Model(forge_objects=objects, original=copy(objects))

    def load(self):
        """Execute the script as both hosts do: the extension first on sys.path, its classes looked for in the module."""
        self.monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        module = execute(SCRIPT)
        [found] = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Script)]
        self.webui = sys.modules[f"{PACKAGE}.hosts.webui.script"]
        return found()

    def call(self, method, *args, **kwargs):
        """Hosts log what scripts raise, and go on."""
        values = args[0].values
        try:
            getattr(self.script, method)(*args, *values, **kwargs)
        except Exception as error:
            self.reports.append(error)

    def denoiser(self, params):
        for callback in self.callbacks.get("on_cfg_denoiser", []):
            callback(params)

    def network(self):
        model = self.shared.sd_model
        return model.forge_objects.unet.model.diffusion_model if self.forge else model.model.diffusion_model

    def predict(self):
        if not self.forge:
            return self.network()(*INPUT)
        patched = self.shared.sd_model.forge_objects.unet
        weights = {k.removeprefix("diffusion_model."): v for k, v in patched.weights(self.calculators).items()}
        return torch.func.functional_call(self.network(), weights, INPUT)

    def process_images(self, p):
        self.call("before_process", p)
        seeds = p.seed if isinstance(p.seed, list) else [7 if p.seed == -1 else p.seed]
        p.all_seeds, p.all_subseeds = seeds, seeds
        styled = f"{p.prompt}, {p.styles[0]}" if p.styles else p.prompt
        p.all_prompts = styled if isinstance(styled, list) else [styled]
        p.all_negative_prompts = p.negative_prompt if isinstance(p.negative_prompt, list) else [p.negative_prompt]
        self.call("process", p)
        images = p.sample(None, None, seeds, seeds, 0.0, p.all_prompts)
        infotexts = [deepcopy(p.extra_generation_params) for _ in images]
        more = {name: list(getattr(p, name)) for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds")}
        comments = "".join(f"{comment}\n" for comment in p.comments)
        processed = Processed(images=images, infotexts=infotexts, index_of_first_image=0, comments=comments, **more)
        self.call("postprocess", p, processed)
        return processed

    def draw(self, *values, **fields):
        self.p = Processing(self, values, **fields)
        return self.process_images(self.p)


class Model(SimpleNamespace):
    """A loaded checkpoint; can be referred to weakly and told by identity, as theirs can."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def execute(path):
    """A file as a module, as both hosts load scripts."""
    spec = importlib.util.spec_from_file_location(path.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
