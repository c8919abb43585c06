"""The attack on a model: what it moves, what it leaves alone, and what is said of it."""

import json
import random

import pytest
import torch
from PIL import Image

from testbed import attack as attacks
from testbed import concepts as c
from testbed import model
from tests.unit.test_cli import here
from tests.unit.tiny import TinyModel, info
from tests.unit.tiny_pipelines import pipeline
from uniforget.checks import attack
from uniforget.checks.attack import Dug, dig, drawn, likeness, measure, sentence
from uniforget.errors import LearnError
from uniforget.hosts.diffusers.apply import find_modules
from uniforget.mask.files import save
from uniforget.mask.info import GateMask


class Prey(TinyModel):
    """A tiny transformer as a victim."""

    def __init__(self):
        super().__init__(prompts=2)
        self.now = [{"hidden": self.hidden[i : i + 1], "pooled": self.pooled[i : i + 1]} for i in range(3)]

    def noised(self, latents, noise, sigma):
        s = sigma.view(-1, 1, 1, 1)
        return (1 - s) * latents + s * noise, sigma

    def embedding(self, prompt):
        return self.now[prompt]

    def put(self, prompt, embedding):
        self.now[prompt] = embedding

    def denoise(self, x, sigma, which):
        parts = [torch.cat([self.now[i][name] for i in which]) for name in ("hidden", "pooled")]
        velocity = self.transformer(x, parts[0], parts[1], sigma * 1000, return_dict=False)[0]
        return x - velocity * sigma.view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def latent():
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def error(prey, latent, embedding):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        return float(attack._loss(prey, latent, embedding, *attack._noises(prey, latent, 32, generator)))


def test_the_embedding_moves_until_the_picture_is_restored_better(latent):
    prey = Prey()
    start = dict(prey.embedding(0))
    torch.manual_seed(4)
    before, seen = (torch.get_rng_state(), random.getstate()), []
    found = dig(prey, latent, start, steps=12, report=lambda *state: seen.append(state))
    assert prey.embedding(0) is found and not any(part.requires_grad for part in found.values())
    assert error(prey, latent, found) < 0.95 * error(prey, latent, start)
    assert seen == [(i + 1, 12) for i in range(12)]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert all(torch.equal(start[name], value) for name, value in Prey().embedding(0).items()), "the start stays as it was"
    assert all(p.grad is None for p in prey.transformer.parameters())


def test_fewer_noises_at_a_time_change_memory_alone(latent):
    found = [dig(prey, latent, prey.embedding(0), steps=3, at_once=count) for prey, count in ((Prey(), 8), (Prey(), 3))]
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-3) for name in found[0])
    other = dig(prey := Prey(), latent, prey.embedding(0), steps=3, seed=1)
    assert not torch.allclose(found[0]["hidden"], other["hidden"], atol=1e-2)


def test_the_gradient_is_that_of_finite_differences(latent):
    prey = Prey()
    leaves = {name: part.double().requires_grad_() for name, part in prey.embedding(0).items()}
    prey.transformer.double()
    prey.sigmas, latent = prey.sigmas.double(), latent.double()
    generator = torch.Generator().manual_seed(0)
    sigma, noise = attack._noises(prey, latent, 4, generator)
    attack._add_gradients(prey, latent, leaves, sigma, noise)
    for name, leaf in leaves.items():
        place = tuple(int(i) for i in torch.unravel_index(leaf.grad.abs().argmax(), leaf.shape))
        sides = []
        for step in (1e-2, -1e-2):  # norms inside are float32
            moved = {k: v.detach().clone() for k, v in leaves.items()}
            moved[name][place] += step
            sides.append(float(attack._loss(prey, latent, moved, sigma, noise)))
        assert float(leaf.grad[place]) == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=0.01)


def test_memory_and_time_are_told_before_and_leave_no_trace(latent, monkeypatch):
    prey = Prey()
    start = {name: part.clone() for name, part in prey.embedding(0).items()}
    monkeypatch.setattr(attack, "free_bytes", lambda device: 1 << 40)
    cost = measure(prey, latent, parameters=list(prey.transformer.parameters()))
    assert cost.at_once == 8 and cost.memory > 1e6 and cost.seconds > 0 and "for each picture" in str(cost)
    assert all(torch.equal(start[name], prey.embedding(0)[name]) for name in start)
    monkeypatch.setattr(attack, "free_bytes", lambda device: int(cost.memory / 8 * 3.5))
    assert measure(prey, latent, parameters=list(prey.transformer.parameters())).at_once == 3
    monkeypatch.setattr(attack, "free_bytes", lambda device: 1000)
    with pytest.raises(LearnError, match="GB of memory beside the model"):
        measure(prey, latent)


def test_an_attack_is_on_both_pictures_and_leaves_the_prompt(latent):
    prey, seen, told = Prey(), [], []
    start = {name: part.clone() for name, part in prey.embedding(0).items()}
    both = torch.cat([latent, -latent])
    found = attack.attack(prey, both, tries=2, cfg=2.0, steps=2, report=lambda *s: seen.append(s), tell=told.append)
    assert found.shape == (2, 2, 3, 16, 16) and not torch.equal(found[0], found[1]) and len(told) == 1
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.equal(start[name], prey.embedding(0)[name]) for name in start)
    again = drawn(prey, 0, 2, 2.0)
    assert torch.equal(again, drawn(prey, 0, 2, 2.0)) and not torch.equal(again, found[0])


def test_likeness_sees_copies_mirrored_and_brighter_ones_and_no_others():
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    picture[8:40, 8:30] = torch.tensor([1.0, 0.2, 0.1])
    other = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
    found = likeness(torch.stack([picture, picture.flip(1), 0.5 * picture + 0.3, other]), picture)
    assert found[:3] == pytest.approx([1, 1, 1], abs=0.01) and found[3] < 0.3


@pytest.mark.parametrize(
    ("picture", "control", "verdict"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.1] * 4, "no"),
        ([0.9, 0.9, 0.1, 0.1], [0.1] * 4, "yes"),
        ([0.9, 0.1, 0.1, 0.1], [0.1] * 4, "yes"),
        ([0.9] * 4, [0.9, 0.9, 0.1, 0.1], "unclear"),
        ([0.9] * 4, [0.9, 0.1, 0.1, 0.1], "yes"),
        ([0.9, 0.1, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1], "unclear"),
    ],
)
def test_a_verdict_is_given_beside_the_control(picture, control, verdict):
    assert Dug(picture, control).verdict == verdict


def test_the_answer_is_one_sentence():
    before, after = Dug([0.9, 0.9], [0.2, 0.2]), Dug([0.3, 0.2], [0.2, 0.2])
    assert sentence(before, None) == (
        "Yes: somebody could dig this picture out again, as the model is: 2 of 2 tries show it, and 0 of 2 a picture that the model never saw."
    )
    assert sentence(before, after) == (
        "No: this attack does not bring the picture back, after forgetting: 0 of 2 tries show it, and 0 of 2 a picture that the model never saw; "
        "before forgetting 2 of 2 tries show it, and 0 of 2 a picture that the model never saw."
    )


@pytest.fixture
def pictures(tmp_path):
    for seed, name in enumerate(("own", "control")):
        drawn = torch.randint(0, 256, (80, 100, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(drawn.numpy()).save(tmp_path / f"{name}.png")
    return [f"--{option}={tmp_path / name}.png" for option, name in (("picture", "own"), ("control", "control"))]


def test_the_command_attacks_before_and_after(tmp_path, pictures, monkeypatch):
    pipe = pipeline("sd1")
    monkeypatch.setattr("uniforget.hosts.diffusers.load.load_pipeline", lambda *_: pipe)
    part = pipe.unet
    family, sites, _ = find_modules(part)
    gates = {s.name: (torch.arange(s.units) % 2).float() for s in sites if s.kind == "ffn"}
    save(GateMask(gates, {n: "ffn" for n in gates}, info(family=family.name)), tmp_path / "mask.safetensors")
    before = {k: v.clone() for k, v in part.state_dict().items()}
    small = ["--width=64", "--height=64", "--steps=2", "--tries=2", "--sampling-steps=2", "--dtype=fp32", "--device=cpu"]
    done = here("attack", "model", *pictures, f"--mask={tmp_path / 'mask.safetensors'}", *small, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "no" and len(found["before"]["likeness"]) == len(found["after"]["control_likeness"]) == 2
    assert found["before"]["likeness"] != found["after"]["likeness"] and found["bytes"] > 0
    assert "4 attacks of 2 steps: about" in done.stderr.replace("\n", " ")
    assert any(not torch.equal(before[k], v) for k, v in part.state_dict().items()), "the mask was applied"


def test_the_command_refuses_what_says_nothing(tmp_path, pictures, monkeypatch):
    same = here("attack", "model", pictures[0], pictures[0].replace("--picture", "--control"))
    assert same.returncode == 1 and "this is the same picture" in same.stderr
    (tmp_path / "control.png").write_bytes(b"GIF89a")
    assert "--control" in (wrong := here("attack", "model", *pictures)).stderr and wrong.returncode == 1


def test_the_testbed_is_attacked_by_the_same_function():
    parts, captions = model.load(), [c.MEMORIZED[0].caption, c.NEVER[0].caption]
    latents = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    hidden, pooled = attacks.attack(*parts, captions, latents, steps=2)
    own = attacks.Victim(*parts, captions)
    assert hidden.shape == own.hidden[:-1].shape and not torch.equal(hidden, own.hidden[:-1]) and not hidden.requires_grad
    alone = attacks.attack(*parts, captions[1:], latents[1:], steps=2, seed=1)
    assert torch.allclose(hidden[1:], alone[0], atol=1e-4) and torch.allclose(pooled[1:], alone[1], atol=1e-4)
    drawn = attacks.attack(*parts, captions[:1], latents[:1], start="noise", steps=1)[0]
    assert (drawn - hidden[:1]).abs().mean() > 0.5
