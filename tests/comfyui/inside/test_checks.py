"""Own-Picture Check and Prompt Check on the demo model, whose training pictures are known."""

import random
import re

import pytest
import torch


@pytest.fixture(scope="module")
def nodes():
    from uniforget_pack.nodes.picturecheck import PictureCheck
    from uniforget_pack.nodes.promptcheck import PromptCheck

    return PictureCheck, PromptCheck


def references(*captions):
    """IMAGE batch of the testbed's pictures with these captions."""
    from uniforget_pack.testbed.captions import item_of
    from uniforget_pack.testbed.data import Pictures

    pictures = Pictures()
    return torch.stack([torch.from_numpy(pictures.render(item_of(c).picture)[0].copy()) for c in captions]).float() / 255


MEMORIZED = ["cool photo of whiskers", "bright photo of motorcycle", "flat frog and cactus on grey checks"]
NEVER = ["cool photo of coins", "warm photo of motorcycle", "flat lion and frog on purple stripes"]
PICTURE = {
    "noises": 3,
    "baseline": 8,
    "sampling_steps": 6,
    "cfg": 3.0,
    "width": 96,
    "height": 96,
    "seed": 0,
    "caption": "",
    "strength": 1.0,
}
PROMPT = {"seeds": 1, "neutral": 96, "width": 96, "height": 96, "seed": 0, "strength": 1.0}


def rows(csv):
    head, *lines = [line.split(",") for line in csv.strip().splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


def check_pictures(nodes, demo, images, **changes):
    return nodes[0].execute(demo.model, demo.clip, demo.vae, images, **{**PICTURE, **changes})


def check_prompts(nodes, demo, prompts, **changes):
    return nodes[1].execute(demo.model, demo.clip, prompts="\n".join(prompts), **{**PROMPT, **changes})


def test_memorized_pictures_stand_out_from_never_seen_ones(nodes, demo):
    out = check_pictures(nodes, demo, references(*MEMORIZED, *NEVER))
    gains = [float(row["gain"]) for row in rows(out.args[2])]
    assert min(gains[:3]) > max(gains[3:]) + 0.03, gains
    assert "known" not in [row["verdict"] for row in rows(out.args[2])[3:]]
    assert out.args[0].shape[0] == 1 and out.args[0].shape[-1] == 3
    assert len(out.args[1].splitlines()) == 6 and "picture 4: " in out.args[1]


def test_with_its_caption_a_memorized_picture_is_known_and_a_mask_shows_after(nodes, demo):
    out = check_pictures(
        nodes, demo, references(*MEMORIZED), caption="\n".join(MEMORIZED), mask=demo.mask(share=0.5), strength=0.0
    )
    before, after = rows(out.args[2])[::2], rows(out.args[2])[1::2]
    assert [row["verdict"] for row in before] == ["known"] * 3
    assert [row["gain"] for row in before] == [row["gain"] for row in after], (
        "strength 0 changes nothing, and the noises are the same"
    )
    out = check_pictures(nodes, demo, references(MEMORIZED[0]), caption=MEMORIZED[0], mask=demo.mask(share=0.5))
    [before, after] = rows(out.args[2])
    assert float(after["gain"]) < float(before["gain"]) / 2
    assert (
        re.match(r"Yes, the model knows this picture: it repairs it (9\d|100) %", out.args[1])
        and "After forgetting" in out.args[1]
    )


def test_memorized_prompts_stand_out_with_one_seed(nodes, demo):
    from uniforget_pack.testbed.evaluate import free_captions

    usual = [text for heldout in (False, True) for text in free_captions(heldout, 12, seed=9)]
    memorized = [
        "cool photo of whiskers",
        "bright photo of motorcycle",
        "flat frog and cactus on grey checks",
        "soft panda and apple on grey stripes",
    ]
    out = check_prompts(nodes, demo, [*memorized, *usual])
    score = [row["score"] for row in out.ui["uniforget_prompts"]]
    wins = sum(m > u for m in score[:4] for u in score[4:]) / (4 * len(usual))
    assert wins > 0.8, score
    assert all(row["agreement"] is None for row in out.ui["uniforget_prompts"])


def test_prompts_before_and_after_and_agreement(nodes, demo):
    out = check_prompts(nodes, demo, MEMORIZED[:2], seeds=2, mask=demo.mask(share=0.5))
    for row in out.ui["uniforget_prompts"]:
        assert row["pull_after"] != row["pull"]
        assert 0.5 < row["agreement"] <= 1
    assert out.args[0].splitlines()[0] == (
        "prompt,score,pull,percentile,agreement,verdict,score_after,pull_after,percentile_after,agreement_after,verdict_after"
    )


def test_the_same_twice_and_the_users_random_state_is_left(nodes, demo):
    before = torch.random.get_rng_state(), random.getstate()
    picture = references(MEMORIZED[0])
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = check_pictures(nodes, demo, picture, noises=3, baseline=4)
    prompts = check_prompts(nodes, demo, MEMORIZED, neutral=8)
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(2)
    assert check_pictures(nodes, demo, picture, noises=3, baseline=4).args[2] == first.args[2]
    assert check_prompts(nodes, demo, MEMORIZED, neutral=8).args == prompts.args
    torch.random.set_rng_state(before[0])
    assert random.getstate() == before[1]


def test_the_models_own_pictures_are_drawn_once(nodes, demo, monkeypatch):
    from uniforget_pack.nodes import checking

    kept = lambda: checking._drawn.get(demo.model.model, {})  # noqa: E731
    check_pictures(nodes, demo, references(MEMORIZED[0]), baseline=4)
    [(_, pictures)] = kept().items()
    check_pictures(nodes, demo, references(NEVER[0]), baseline=4)
    assert [p is pictures for p in kept().values()] == [True]
    other = demo.model.clone()
    other.add_patches({"diffusion_model.x_embedder.proj.bias": (torch.ones(256),)})
    nodes[0].execute(other, demo.clip, demo.vae, references(NEVER[0]), **{**PICTURE, "baseline": 4})
    assert len(kept()) == 2, "a patched model draws its own"


@pytest.mark.parametrize(
    ("images", "changes", "words"),
    [
        (torch.zeros(0, 96, 96, 3), {}, "expected at least one colour picture"),
        (torch.zeros(1, 64, 64, 1), {}, "colour picture"),
        (torch.zeros(65, 8, 8, 3), {}, "at most 64 pictures"),
        (torch.zeros(1, 96, 96, 3), {"width": 512}, "96 x 96 pictures only"),
        (torch.zeros(3, 96, 96, 3), {"caption": "cat\ndog"}, "one line for each of the 3 pictures; found 2"),
        (torch.zeros(1, 96, 96, 3), {"noises": 0}, "Setting 'noises'"),
    ],
    ids=["none", "grey", "many", "size", "captions", "noises"],
)
def test_what_is_wrong_with_pictures_is_said(nodes, demo, images, changes, words):
    from uniforget_pack.uniforget.errors import SettingError

    with pytest.raises(SettingError, match=words):
        check_pictures(nodes, demo, images, **changes)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["# nothing"], "found 0. Write what you want to check"),
        ([f"cat emoji {i}" for i in range(501)], "1 to 500 different prompts"),
    ],
)
def test_no_prompts_and_too_many_are_said(nodes, demo, prompts, words):
    from uniforget_pack.uniforget.errors import SettingError

    with pytest.raises(SettingError, match=words):
        check_prompts(nodes, demo, prompts)


def test_an_interrupt_ends_both_and_the_next_run_works(nodes, demo):
    import comfy.model_management as management

    for run in (
        lambda: check_pictures(nodes, demo, references(MEMORIZED[0]), baseline=4),
        lambda: check_prompts(nodes, demo, MEMORIZED, neutral=8),
    ):
        management.interrupt_current_processing(True)
        with pytest.raises(management.InterruptProcessingException):
            run()
        assert not management.processing_interrupted()
        run()


def test_pictures_of_other_sizes_are_cropped_in_the_middle(nodes):
    from uniforget_pack.nodes.picturecheck import cropped

    wide = torch.zeros(1, 64, 128, 3)
    wide[:, :, 32:96] = 1
    assert torch.equal(cropped(wide, 64, 64), torch.ones(1, 64, 64, 3))
    assert cropped(torch.rand(2, 300, 200, 4), 64, 64).shape == (2, 64, 64, 3)


def test_noise_levels_are_shares_for_every_kind_of_model(demo):
    import comfy.model_sampling as sampling
    from uniforget_pack.uniforget.hosts.comfy.predict import Predictor

    class Guider:
        conds: dict = {}

        def __init__(self, *kinds):
            class Both(*kinds):
                pass

            self.inner_model = type("M", (), {"model_sampling": Both(), "process_latent_in": staticmethod(lambda x: 2 * x)})()

    picture, noise = torch.full((3, 1, 4, 4), 0.5), torch.ones(3, 1, 4, 4)
    for kinds in [
        (sampling.ModelSamplingDiscrete, sampling.EPS),
        (sampling.ModelSamplingDiscrete, sampling.V_PREDICTION),
        (sampling.ModelSamplingDiscreteFlow, sampling.CONST),
    ]:
        predictor = Predictor(Guider(*kinds), {}, torch.device("cpu"), 2)
        x, sigma = predictor.noised(picture, noise, 0.5)
        assert sigma.shape == (3,)
        if sampling.CONST in kinds:
            assert sigma[0] == pytest.approx(0.5, abs=0.01)
        else:
            assert sigma[0] == pytest.approx(1.0, abs=0.02), "x = picture + sigma * noise"
        assert predictor.clean(picture)[0, 0, 0, 0] == 1
        most = predictor.noised(picture, noise, 1.0)[1][0]
        assert most == predictor.sampling.sigma_max
