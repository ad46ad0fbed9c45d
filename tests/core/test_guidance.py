"""Guidance by text and by audio, against the published sums and brute force."""

import dataclasses

import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.guidance import ProjectedGuidance, Projection, branches, combine

NAMES = ("cond", "drop_text", "drop_audio", "uncond")
SCALES = [(t, a) for t in (0.0, 1.0, 2.5, 5.0) for a in (0.0, 1.0, 2.0, 4.0)]
SHAPE = (2, 4, 3, 5, 6)


def velocities(seed: int = 0, shape=SHAPE, level: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: level * torch.randn(shape, generator=generator) for name in NAMES}


def additive(seed: int = 0) -> dict[str, torch.Tensor]:
    """A model whose answer is a sum of what it makes of noise, prompt and voices."""
    parts = velocities(seed)
    base, prompt, negative, voices = parts.values()
    return {"cond": base + prompt + voices, "drop_text": base + negative + voices, "drop_audio": base + prompt, "uncond": base + negative}


def only_asked(pred, t: float, a: float):
    return {name: pred[name] for name in branches(t, a)}


def official(pred, t: float, a: float) -> torch.Tensor:
    """As published: three evaluations, or two with text scale 1; never fewer."""
    if t == 1:
        return pred["drop_audio"] + a * (pred["cond"] - pred["drop_audio"])
    return pred["uncond"] + t * (pred["cond"] - pred["drop_text"]) + a * (pred["drop_text"] - pred["uncond"])


@pytest.mark.parametrize(("t", "a"), SCALES)
def test_the_sum_is_the_published_one_though_fewer_branches_are_asked(t, a):
    """The branches that are left out may be anything."""
    pred = velocities()
    torch.testing.assert_close(combine(only_asked(pred, t, a), t, a), official(pred, t, a), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("t", "a"), [(t, a) for t, a in SCALES if t and a])
def test_every_branch_that_is_asked_matters(t, a):
    """With scales that are not 0: those forget a branch."""
    pred = only_asked(velocities(), t, a)
    for name in pred:
        changed = pred | {name: pred[name] + 1}
        assert not torch.equal(combine(changed, t, a), combine(pred, t, a))


@pytest.mark.parametrize(("t", "a", "evaluations"), [(5.0, 4.0, 3), (5.0, 1.0, 2), (1.0, 2.0, 2), (1.0, 1.0, 1)])
def test_scales_of_one_save_evaluations(t, a, evaluations):
    asked = branches(t, a)
    assert len(asked) == evaluations and asked[0] == "cond" and len(set(asked)) == len(asked)


def test_scales_of_one_are_the_model_itself():
    pred = velocities()
    assert torch.equal(combine({"cond": pred["cond"]}, 1.0, 1.0), pred["cond"])


@pytest.mark.parametrize("t", [0.0, 2.5, 5.0])
def test_audio_scale_one_is_plain_guidance_by_text(t):
    pred = velocities()
    plain = pred["drop_text"] + t * (pred["cond"] - pred["drop_text"])
    torch.testing.assert_close(combine(only_asked(pred, t, 1.0), t, 1.0), plain)


@pytest.mark.parametrize(("t", "a"), SCALES)
def test_guiding_an_additive_model_scales_prompt_and_voices(t, a):
    base, prompt, negative, voices = velocities().values()
    expected = base + negative + t * (prompt - negative) + a * voices
    torch.testing.assert_close(combine(only_asked(additive(), t, a), t, a), expected, rtol=0, atol=1e-5)


# adaptive projected guidance


class SlowProjection:
    """arXiv 2410.02416, algorithm 1, for one sample in float64."""

    def __init__(self, settings: Projection):
        self.settings, self.running = settings, None

    def __call__(self, difference: np.ndarray, cond: np.ndarray) -> np.ndarray:
        previous = 0 if self.running is None else self.running
        self.running = difference + self.settings.momentum * previous
        update = self.running
        length = np.sqrt((update**2).sum())
        if length > self.settings.norm_threshold:
            update = update * (self.settings.norm_threshold / length)
        parallel = (update * cond).sum() / (cond**2).sum() * cond
        return update - parallel + self.settings.eta * parallel


def slow_run(steps, t: float, a: float, settings: Projection) -> list[np.ndarray]:
    """Every sample on its own."""
    samples = []
    for i in range(steps[0]["cond"].shape[0]):
        text, audio = SlowProjection(settings), SlowProjection(settings)
        guided = []
        for pred in steps:
            cond, drop_text, drop_audio, uncond = (pred[name][i].double().numpy() for name in NAMES)
            v = cond
            if t != 1:
                v = v + (t - 1) * text(cond - drop_text, cond)
            if a != 1:
                v = v + (a - 1) * audio(cond - drop_audio if t == 1 else drop_text - uncond, cond)
            guided.append(v)
        samples.append(guided)
    return [np.stack(step) for step in zip(*samples, strict=True)]


SETTINGS = [
    Projection(),
    Projection(norm_threshold=5.0),
    Projection(momentum=0.5, norm_threshold=12.0, eta=0.3),
    Projection(momentum=0.0, eta=1.0),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("t", "a"), [(5.0, 4.0), (5.0, 1.0), (1.0, 2.0), (1.0, 1.0), (0.0, 3.0)])
def test_three_steps_are_the_paper_s_algorithm(t, a, settings):
    steps = [velocities(seed) for seed in range(3)]
    guidance = ProjectedGuidance(settings)
    for pred, expected in zip(steps, slow_run(steps, t, a, settings), strict=True):
        np.testing.assert_allclose(guidance.combine(only_asked(pred, t, a), t, a).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("level", [0.1, 1.0, 100.0])
def test_guidance_is_orthogonal_to_cond_and_limited(level):
    pred = velocities(level=level)
    added = (ProjectedGuidance(Projection()).combine(only_asked(pred, 2.0, 1.0), 2.0, 1.0) - pred["cond"]).double().flatten(1)
    cond = pred["cond"].double().flatten(1)
    cosine = (added * cond).sum(dim=1) / (added.norm(dim=1) * cond.norm(dim=1))
    assert cosine.abs().max() < 1e-5
    assert (added.norm(dim=1) <= 55.0 * (1 + 1e-4)).all()


@pytest.mark.parametrize(("t", "a"), [(5.0, 4.0), (1.0, 2.0)])
def test_a_threshold_of_zero_is_no_limit(t, a):
    pred = velocities(level=100.0)
    unlimited = ProjectedGuidance(Projection(norm_threshold=0.0)).combine(pred, t, a)
    assert torch.equal(unlimited, ProjectedGuidance(Projection(norm_threshold=1e9)).combine(pred, t, a))


def test_without_limit_momentum_and_projection_it_is_plain_guidance():
    plain = Projection(momentum=0.0, norm_threshold=1e9, eta=1.0)
    for t, a in SCALES:
        pred = additive()  # for any model, the two sums differ where text scale is 1: they use other differences
        ours = ProjectedGuidance(plain).combine(only_asked(pred, t, a), t, a)
        torch.testing.assert_close(ours, combine(only_asked(pred, t, a), t, a), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("t", "a"), [(5.0, 4.0), (1.0, 2.0)])
def test_a_batch_of_two_is_two_runs(t, a):
    steps = [velocities(seed, level=1 + 3 * seed) for seed in range(3)]
    together = ProjectedGuidance(Projection(norm_threshold=8.0))
    alone = [ProjectedGuidance(Projection(norm_threshold=8.0)) for _ in range(2)]
    for pred in steps:
        each = [g.combine({k: v[i : i + 1] for k, v in pred.items()}, t, a) for i, g in enumerate(alone)]
        torch.testing.assert_close(together.combine(pred, t, a), torch.cat(each))


def test_runs_share_nothing():
    first, second = ProjectedGuidance(Projection()), ProjectedGuidance(Projection())
    fresh = first.combine(velocities(0), 5.0, 4.0)
    first.combine(velocities(1), 5.0, 4.0)
    assert torch.equal(second.combine(velocities(0), 5.0, 4.0), fresh)


def test_momentum_of_text_and_audio_are_apart():
    """A step without guidance by audio leaves its momentum as it was."""
    both, with_text_between = ProjectedGuidance(Projection()), ProjectedGuidance(Projection())
    for guidance in (both, with_text_between):
        guidance.combine(velocities(0), 1.0, 4.0)
    with_text_between.combine(velocities(1), 5.0, 1.0)
    assert torch.equal(both.combine(velocities(2), 1.0, 4.0), with_text_between.combine(velocities(2), 1.0, 4.0))


def test_equal_answers_need_no_guidance():
    same = dict.fromkeys(NAMES, torch.randn(SHAPE))
    assert torch.equal(ProjectedGuidance(Projection()).combine(same, 5.0, 4.0), same["cond"])


def test_a_velocity_of_zero_gives_no_nan():
    pred = velocities() | {"cond": torch.zeros(SHAPE)}
    assert torch.isfinite(ProjectedGuidance(Projection()).combine(pred, 5.0, 4.0)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_number_type_stays(dtype):
    pred = {name: v.to(dtype) for name, v in velocities().items()}
    guided = ProjectedGuidance(Projection()).combine(pred, 5.0, 4.0)
    assert guided.dtype == dtype and torch.isfinite(guided).all()


def test_settings_cannot_change_during_a_run():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Projection().momentum = 0.0
