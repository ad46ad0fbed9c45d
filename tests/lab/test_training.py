"""The demo's training: what is computed instead of learned, what must equal the product, and that a run can be broken off."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from multitalk_nodes.lab.evaluation.metadata import tensors_hash
from multitalk_nodes.lab.training.muon import Muon, orthogonal
from multitalk_nodes.lab.training.stage import Stage, StageError, commit, cosine, histories
from multitalk_nodes.tools.launch import launched

RANDOM = 7
ROOT = Path(__file__).resolve().parents[2]


def quiet(line: str) -> None:
    """A report that nobody reads."""


class Halt(Exception):
    """The machine goes off."""


def fit(file, steps, stop=None) -> torch.nn.Linear:
    """A small regression, broken off before `stop`."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    stage = Stage(file, steps, {"model": model, "adam": torch.optim.Adam(model.parameters(), lr=0.1)}, quiet)
    stage.seconds_between_saves = 0.0
    for step in stage:
        if step == stop:
            raise Halt
        x = torch.from_numpy(stage.random(step).normal(size=(8, 3))).float() + 0.01 * torch.randn(8, 3)
        stage.optimise((model(x) - x.sum(dim=1, keepdim=True)).square().mean(), step)
    return model


def test_a_run_that_was_broken_off_goes_on_to_the_same_weights(tmp_path):
    whole = fit(tmp_path / "whole.pt", 12)
    with pytest.raises(Halt):
        fit(tmp_path / "parts.pt", 12, stop=7)
    again = fit(tmp_path / "parts.pt", 12)
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)
    assert torch.equal(fit(tmp_path / "parts.pt", 12).weight, whole.weight)  # nothing is left to do


@pytest.mark.parametrize("change", [{"steps": 13}, {"seed": 1}, {"made_from": "other weights"}])
def test_a_file_of_another_run_is_refused(tmp_path, change):
    fit(tmp_path / "a.pt", 12)
    options = {"steps": 12, "seed": 0, "made_from": ""} | change
    with pytest.raises(StageError, match=r"a\.pt belongs to another run: steps 12, seed 0, made_from .*Remove it"):
        Stage(tmp_path / "a.pt", options.pop("steps"), {}, quiet, **options)


def test_a_file_tells_who_trained_it(tmp_path):
    with pytest.raises(Halt):
        fit(tmp_path / "a.pt", 12, stop=7)
    fit(tmp_path / "a.pt", 12)
    value = histories(tmp_path)["a"]
    assert value["steps"] == 12
    assert value["history"] == [{"commit": commit(), "first_step": 0, "steps": 12}]


def test_learning_rates_rise_and_fall():
    rates = [cosine(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05 and max(rates) > 0.98 and rates[-1] < 0.02
    assert np.argmax(rates) == pytest.approx(40, abs=2)


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 6, 20), (3, 20, 6)])
def test_muon_makes_updates_nearly_orthogonal(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(RANDOM))
    singular = torch.linalg.svdvals(orthogonal(matrices))
    assert singular.min() > 0.3 and singular.max() < 1.3


def test_muon_fits_a_convolution():
    torch.manual_seed(0)
    wanted, made = torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(4, 8, 3)
    optimiser = Muon([made.weight], lr=0.02)
    x = torch.randn(4, 4, 10, 10)
    errors = []
    for _ in range(60):
        error = (made(x) - wanted(x) + (wanted.bias - made.bias).detach()[None, :, None, None]).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]


@pytest.fixture(scope="module")
def computed(comfy):
    """A VAE with the computed encoder, and the examples that it was computed from."""
    from multitalk_nodes.lab.training import train_vae
    from multitalk_nodes.lab.training.vae import compute_encoder, empty_vae

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vae, "EXAMPLES", 18)
        videos, weights = train_vae.example_videos(seed=0)
    torch.manual_seed(0)
    vae = empty_vae()
    compute_encoder(vae, videos, weights)
    return vae, videos, weights


def test_the_computed_encoder_keeps_what_sixteen_components_can(computed):
    from multitalk_nodes.lab.training.vae import to_latent

    vae, videos, _ = computed
    with torch.no_grad():
        latent = to_latent(vae.encode(videos))
    stacked = latent.permute(0, 2, 3, 4, 1).flatten(end_dim=-2)
    pictures = torch.nn.functional.pixel_unshuffle(videos[:, :, 0], 8).permute(0, 2, 3, 1).flatten(end_dim=-2)
    first = latent[:, :, 0].permute(0, 2, 3, 1).flatten(end_dim=-2)
    rows = torch.cat([first, torch.ones_like(first[:, :1])], dim=1)
    left = pictures - rows @ torch.linalg.lstsq(rows, pictures).solution
    assert left.square().mean() < 0.1 * pictures.var(dim=0).mean()
    assert stacked.std(dim=0)[:11].min() > 0.5 and stacked.std(dim=0)[:11].max() < 1.6


def test_the_light_encoder_gives_the_same_latents(computed):
    from multitalk_nodes.lab.training.vae import without_zero_branches

    vae, videos, _ = computed
    with torch.no_grad():
        assert torch.equal(without_zero_branches(vae).encode(videos[:4]), vae.encode(videos[:4]))


def test_standardised_latents_decode_to_the_same_video(computed):
    from multitalk_nodes.lab.training.train_vae import standardise
    from multitalk_nodes.lab.training.vae import to_latent, without_zero_branches

    vae, videos, weights = computed
    light = without_zero_branches(vae)
    with torch.no_grad():
        before = light.decode(light.encode(videos[:2]))
        moved = light.encoder.head[2]
        moved.bias.add_(0.3)
        moved.weight.mul_(1.7)
        shifted = light.decode(light.encode(videos[:2]))
        assert not torch.allclose(before, shifted, atol=1e-2)
        standardise(light, videos, weights)
        latent = to_latent(light.encode(videos))
        assert latent.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-2
        torch.testing.assert_close(light.decode(light.encode(videos[:2])), shifted, atol=2e-3, rtol=0)


def test_long_grey_needs_no_encoding(computed):
    from multitalk_nodes.lab.training.clips import encode, known_latents
    from multitalk_nodes.lab.training.vae import without_zero_branches
    from multitalk_nodes.multitalk_core.generate import GREY

    vae = without_zero_branches(computed[0])
    with torch.no_grad():
        torch.nn.init.normal_(vae.encoder.head[2].weight, std=0.05)  # all taps, as after training
        picture = computed[1][:2, :, :1].permute(0, 2, 3, 4, 1) / 2 + 0.5
        whole = encode(vae, torch.cat([picture, torch.full((2, 40, *picture.shape[2:]), GREY)], dim=1))
        torch.testing.assert_close(known_latents(vae, picture, 41), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("speakers", [1, 2])
def test_training_sees_the_velocity_that_the_product_computes(comfy, speakers):
    """The same forward as under ComfyUI's own apply_model, through which the sampler goes."""
    import comfy.model_management

    from multitalk_nodes.comfy_bridge.patches import AUDIO, patch_model
    from multitalk_nodes.lab.training import dit

    try:
        torch.manual_seed(RANDOM)
        talker = dit.build()
        noisy, known = torch.randn(2, 1, 16, 3, 8, 8)
        mask = torch.zeros(1, 4, 3, 8, 8)
        mask[:, :, :1] = 1
        masks = None
        if speakers == 2:
            masks = torch.zeros(3, 4, 4)
            masks[0, :, :2] = masks[1, :, 2:] = masks[2, 0] = 1
            masks = masks.flatten(1)
        with torch.no_grad():
            tokens = talker.tokens(torch.randn(1, speakers, 9, 5, 4, 32), heard=True)
            made = talker.velocity(noisy, known, mask, torch.tensor([0.6]), tokens, masks)
            patched = patch_model(talker.model, talker.weights, masks)
            options = {**patched.model_options["transformer_options"], "cond_or_uncond": [0], "wrappers": patched.wrappers}
            comfy.model_management.in_training = False
            denoised = talker.model.model.apply_model(
                noisy,
                torch.tensor([0.6]),
                c_concat=torch.cat([mask, known], dim=1),
                c_crossattn=torch.zeros(1, 512, dit.TEXT_DIM),
                transformer_options=options,
                **{AUDIO: tokens},
            )
        torch.testing.assert_close((noisy - denoised) / 0.6, made, atol=2e-4, rtol=1e-4)
    finally:
        comfy.model_management.in_training = False


def test_every_trained_weight_gets_a_gradient_from_two_speakers(comfy):
    import comfy.model_management

    from multitalk_nodes.lab.training import dit
    from multitalk_nodes.lab.training.clips import Group
    from multitalk_nodes.lab.training.train_dit import TALKING, Practice

    try:
        torch.manual_seed(RANDOM)
        talker = dit.build()
        for parameter in talker.trained().values():
            parameter.requires_grad_(True)
        latents = torch.randn(2, 16, 9, 8, 16)
        masks = torch.zeros(3, 4, 8)
        masks[0, 1:3, 1:3] = masks[1, 1:3, 5:7] = 1
        masks[2] = 1 - masks[:2].sum(dim=0)
        known = dict.fromkeys(("frame", "motion_9", "motion_25", "reference"), latents)
        group = Group(latents, known, torch.randn(2, 2, 33, 5, 4, 32), torch.ones(2, 1, 1, 8, 16), masks.flatten(1))
        for seed in range(4):
            Practice(TALKING, talker).loss(group, np.random.default_rng(seed))[0].backward()
        without = [name for name, p in talker.trained().items() if p.grad is None or not p.grad.any()]
        assert not without
    finally:
        comfy.model_management.in_training = False


def test_errors_of_a_round_trip_are_as_large_as_they_were_measured(comfy):
    from multitalk_nodes.lab.training.round_trip import RoundTrip, local_variance

    torch.manual_seed(RANDOM)
    latent = torch.zeros(64, 16, 5, 8, 8)
    latent[..., 4:] = 1  # an edge in the middle
    flat, edge = torch.linspace(0.01, 0.02, 16).view(16, 1, 1, 1), torch.full((16, 1, 1, 1), 0.5)
    error = RoundTrip(flat, edge, torch.tensor(0.6))(latent) - latent
    variance = local_variance(latent)
    assert variance[..., :3].max() == 0 and variance[..., 3:5].min() == pytest.approx(2 / 9)
    assert error[:, 0, :, :, :3].square().mean() == pytest.approx(0.01, rel=0.05)
    assert error[:, 0, :, :, 3:5].square().mean() == pytest.approx(0.01 + 0.5 * 2 / 9, rel=0.05)
    together = (error[:, :, 0] * error[:, :, 4]).mean() / error.square().mean()
    assert together == pytest.approx(0.6, rel=0.05)


class Copier:
    """A clip whose model continues exactly what it is shown, and adds the same fault every time."""

    def __init__(self, fault):
        self.clean = torch.randn(1, 16, 9, 4, 4)
        self.known, self.fault = self.clean.clone(), fault

    def velocity(self, noisy, sigma):
        wrong = (self.known[:, :, :7] - self.clean[:, :, :7]).mean(dim=2, keepdim=True)
        return (noisy - (self.clean + wrong + self.fault)) / sigma.view(-1, 1, 1, 1, 1)


def test_what_clips_get_wrong_adds_up_in_an_aged_beginning(comfy):
    from multitalk_nodes.lab.training.train_dit import GOING_ON, Practice

    class Three:
        def integers(self, low, high):
            return 3

        def uniform(self, low, high):
            return 1.0

    torch.manual_seed(RANDOM)
    clip = Copier(fault=0.1)
    aged = Practice(GOING_ON, None, round_trip=lambda latent: latent + 0.01)._aged(clip, 7, Three())
    wrong = (aged - clip.clean[:, :, :7]).mean()
    assert abs(float(wrong) - (0.01 + 3 * 0.11)) < 1e-4


def test_every_mouth_counts_alike(comfy):
    from multitalk_nodes.lab.training.train_dit import FAINTEST, MOTION, MOUTHS, balanced

    weights = torch.ones(1, 1, 1, 8, 16)
    weights[..., 2:4, 1:3] = weights[..., 4:6, 10:14] = 4  # 4 latents on the left, 8 on the right
    clean = torch.zeros(1, 16, 9, 8, 16)
    clean[:, :, ::2] = 2 * (MOTION / 40) ** 0.5  # faint
    clean[:, :, ::2, :, :8] = 2 * MOTION**0.5  # clearer than most
    balance = balanced(weights, clean, 2)
    assert balance[..., :8].max() * 4 == pytest.approx(MOUTHS * 128 / 2)
    assert balance[..., 8:].max() * 8 == pytest.approx(MOUTHS * 128 / 2)  # it stands still
    clean[:, :, ::2, :, 8:] = 2 * (MOTION / 4) ** 0.5
    assert balanced(weights, clean, 2)[..., 8:].max() * 8 == pytest.approx(FAINTEST * MOUTHS * 128 / 2)
    assert (balance[weights == 1] == 1).all()


# the command


def train_demo(work, *arguments):
    program = [*launched("lab.training.run"), "--work", str(work), "--device", "cpu", "--jobs", "1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*program, *arguments], capture_output=True, text=True, env=environment, timeout=900)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work folder after all stages of the smallest plan."""
    work = tmp_path_factory.mktemp("trained")
    ended = train_demo(work, "--plan", "smoke")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return work


@pytest.mark.slow
def test_training_makes_four_files_that_the_product_loads(comfy, trained):
    from multitalk_nodes.comfy_bridge.demo import VAE, load_demo
    from multitalk_nodes.multitalk_core.families import MULTITALK

    demo = load_demo(trained / "weights", MULTITALK)
    with torch.inference_mode():
        assert demo.vae.decode(demo.vae.encode(torch.rand(5, 64, 64, 3))).shape[-4:] == (5, 64, 64, 3)
    with safe_open(trained / "weights" / VAE, framework="np") as opened:
        metadata = opened.metadata()
    training = json.loads(metadata["training"])
    assert metadata["license"] == "Apache-2.0" and training["seeds"]["going_on"] == 6
    assert set(training["stages"]) == {"wav2vec2", "vae_joint", "vae", "vae_lasting", "dit", "going_on"}
    assert all(stage["history"][0]["first_step"] == 0 for stage in training["stages"].values())


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again_nor_mixed_with_another_plan(trained):
    files = sorted((trained / "weights").glob("*.safetensors"))
    before = [tensors_hash(file) for file in files]
    (trained / "going_on.pt").unlink()  # as if the machine had gone off before
    assert train_demo(trained, "--plan", "smoke", "--stages", "files").returncode == 0
    assert [tensors_hash(file) for file in files] == before
    mixed = train_demo(trained, "--stages", "decoder")
    assert mixed.returncode == 1 and "encoder.pt belongs to another run: steps 3" in mixed.stderr
    (trained / "clips" / "00002.pt").unlink()
    gone = train_demo(trained, "--plan", "smoke", "--stages", "dit")
    assert gone.returncode == 1 and "1 of 6 groups of clips are missing" in gone.stderr
