"""Attack Check: could somebody dig this picture out of the model again?"""

import logging

import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..uniforget import config
from ..uniforget.checks import attack as check
from ..uniforget.config.copies import ATTACK
from ..uniforget.errors import SettingError
from ..uniforget.hosts.comfy.attack import attacked
from ..uniforget.hosts.comfy.learn import empty_latent
from .checking import encoder, forgotten
from .inputs import CATEGORY, MaskType, say, search, show, to_input
from .picturecheck import cropped


class AttackCheck(io.ComfyNode):
    """Attacks a model with a picture and with one that it never saw, before and after forgetting."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetAttackCheck",
            display_name="Attack Check",
            category=CATEGORY,
            description=(
                "Could somebody dig my picture out of the model again? Tries to, as an attacker would who has the picture: before and after forgetting, and "
                "beside a picture that the model cannot know. One sentence for a report."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model, without the mask."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("picture", tooltip="Your picture; the first one counts."),
                io.Image.Input(
                    "control",
                    tooltip="A picture of the same kind that the model cannot know, such as a photograph you took today. Without it the answer would mean nothing.",
                ),
                MaskType.Input("mask", optional=True, tooltip="With a mask, the model is attacked before and after forgetting."),
                to_input(config.STRENGTH),
                *(to_input(p) for p in ATTACK.values()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(
                    id="images",
                    display_name="IMAGE",
                    tooltip="What the model draws after each attack: the tries for the picture, those for the control; then the same after forgetting.",
                ),
                io.String.Output(id="report", display_name="report", tooltip="What was found, in one sentence."),
            ],
            is_output_node=True,
            **search("copyright", "memorization", "adversarial", "extraction", "red team"),
        )

    @classmethod
    def execute(cls, model, clip, vae, picture, control, strength, mask=None, **values):
        config.STRENGTH.check(strength)
        for name, param in ATTACK.items():
            values[name] = param.check(values[name])
        empty_latent(model, values["width"], values["height"])  # refuses sizes that the model does not take
        size = values["width"], values["height"]
        inputs = {"picture": picture, "control": control}
        pair = torch.cat([cropped(one, *size, "Attack Check", name)[:1] for name, one in inputs.items()])
        if torch.equal(pair[0], pair[1]):
            raise SettingError(
                "Attack Check: 'picture' and 'control' are the same. Connect a picture to 'control' that the model cannot know."
            )
        latents = torch.cat([vae.encode(one[None]) for one in pair]).float().cpu()
        encode = encoder(clip)
        models = [m for m in (model, forgotten(model, mask, strength)) if m is not None]
        bar = comfy.utils.ProgressBar(2 * len(models) * values["steps"])

        def tell(cost):
            text = f"{2 * len(models)} attacks of {values['steps']} steps: {cost}"
            logging.info("UniForget: %s", text)
            say(cls, text)

        found, images = [], []
        for one in models:
            drawn = attacked(
                one, encode(values["caption"]), encode(""), latents, values["sampling_steps"], values["tries"], values["cfg"], values["steps"],
                values["seed"], lambda done, of: bar.update(1), tell,
            )  # fmt: skip
            shown = [vae.decode(tries).reshape(values["tries"], *pair.shape[1:]).float().cpu() for tries in drawn]
            found.append(check.Dug(*(check.likeness(tries, target) for tries, target in zip(shown, pair, strict=True))))
            images += shown
        text = check.sentence(*found, *[None] * (2 - len(found)))
        logging.info("UniForget: %s", text)
        batch = torch.cat(images).clamp(0, 1)
        saved = ui.ImageSaveHelper.save_images(batch, "uniforget_attack", io.FolderType.temp, cls=cls, compress_level=1)
        return io.NodeOutput(batch, text, ui={"images": saved, **show(cls, text).as_dict()})
