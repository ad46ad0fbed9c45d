"""The step cache on ComfyUI's own WAN and samplers. Its numbers are in test_parity.py, items 06 and 11."""

import itertools
import re

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")

STEPS, SHIFT, SEED = 10, 5.0, 7
FORMS = [(4.0, 3.0, 3), (1.0, 3.0, 2), (4.0, 1.0, 2), (1.0, 1.0, 1)]  # text and audio scale, evaluations a step


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tiny(comfy):
    from multitalk_nodes.tests import tiny

    return tiny


@pytest.fixture(scope="module")
def wan(tiny):
    """Its time embedding is mostly constant, so that steps are near each other, as they are in a trained model."""
    model = tiny.wan()
    model.model.diffusion_model.time_projection[1].bias.data.add_(4.0)
    return model


@pytest.fixture(scope="module")
def weights(tiny):
    return tiny.weights()


def rule(threshold=0.2, first_steps=2, last_steps=0, table="none"):
    from multitalk_nodes.multitalk_core.step_cache import TABLES, Rule

    return Rule(threshold, TABLES[table], first_steps, last_steps)


def patched(tiny, wan, weights, speakers=2):
    from multitalk_nodes.comfy_bridge.patches import patch_model

    return patch_model(wan, weights, tiny.halves(speakers) if speakers > 1 else None)


def cached(model, *args, **kwargs):
    from multitalk_nodes.comfy_bridge.step_cache import cache_steps

    return cache_steps(model, rule(*args, **kwargs))


def guide(tiny, model, weights, text_scale, audio_scale, speakers=2):
    from multitalk_nodes.comfy_bridge.guider import MultiTalkGuider

    return MultiTalkGuider(model, *tiny.conditionings(weights, speakers), text_scale, audio_scale)


def run(tiny, guider, noise=None, sampler="euler", steps=STEPS, callback=None):
    import comfy.sample
    import comfy.samplers

    from multitalk_nodes.multitalk_core.schedule import sigmas

    noise = comfy.sample.prepare_noise(tiny.known_latent(), SEED) if noise is None else noise
    chosen = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, torch.zeros_like(noise), chosen, sigmas(steps, SHIFT), callback=callback, disable_pbar=True, seed=SEED)


class Blocks:
    """Which branches of which forward went through a block, and the time embeddings that they had."""

    def __init__(self, model, number=0):
        self.block, self.forwards = model.model.diffusion_model.blocks[number], []

    def __enter__(self):
        self.hook = self.block.register_forward_pre_hook(self.see, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def see(self, _block, _args, kwargs):
        options = kwargs["transformer_options"]
        self.forwards.append((round(float(options["sigmas"][0]), 6), tuple(options["cond_or_uncond"]), kwargs["e"].clone()))

    def ran(self, branch):
        """Noise levels at which a branch went through the block."""
        return [level for level, branches, _ in self.forwards if branch in branches]


def teacache(embeddings, threshold, first_steps=2):
    """The published rule for a single branch, in plain numbers: the steps in which its blocks run."""
    ran, total = [], 0.0
    for step, e0 in enumerate(embeddings):
        if step < first_steps:
            total = 0.0
            ran.append(step)
            continue
        before = embeddings[step - 1]
        total += sum(abs(a - b) for a, b in zip(e0, before, strict=True)) / sum(map(abs, before))
        if total >= threshold:
            total = 0.0
            ran.append(step)
    return ran


@pytest.fixture(scope="module")
def embeddings(tiny, wan, weights):
    """Each step's time embedding, as numbers."""
    with torch.inference_mode(), Blocks(wan) as blocks:
        run(tiny, guide(tiny, patched(tiny, wan, weights), weights, 1.0, 1.0))
    return [e0[0].flatten().tolist() for _, _, e0 in blocks.forwards]


@pytest.fixture(scope="module")
def threshold(embeddings):
    """One with which about every other step is reused."""
    jumps = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) / sum(map(abs, pair[0])) for pair in itertools.pairwise(embeddings)]
    return 1.5 * sorted(jumps)[len(jumps) // 2]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("text_scale", "audio_scale", "evaluations"), FORMS)
def test_each_branch_runs_its_blocks_by_the_published_rule(
    tiny, wan, weights, embeddings, threshold, monkeypatch, text_scale, audio_scale, evaluations, apart
):
    from multitalk_nodes.multitalk_core.schedule import sigmas

    if apart:
        monkeypatch.setattr(wan.model, "memory_usage_factor", 1e15)
    expected = [round(float(sigmas(STEPS, SHIFT)[step]), 6) for step in teacache(embeddings, threshold)]
    assert 2 < len(expected) < STEPS, "something is reused, and something is not"
    for number in (0, 1):  # every block of the model
        with Blocks(wan, number) as blocks:
            run(tiny, guide(tiny, cached(patched(tiny, wan, weights), threshold), weights, text_scale, audio_scale))
        for branch in range(evaluations):
            assert blocks.ran(branch) == expected


@pytest.mark.parametrize(("text_scale", "audio_scale", "evaluations"), FORMS)
def test_a_reused_step_is_the_head_on_the_last_residual(tiny, wan, weights, embeddings, threshold, text_scale, audio_scale, evaluations):
    """Against an oracle without wrappers: the model's blocks are exchanged for ones that add what each branch's own blocks added last."""
    steps = teacache(embeddings, threshold)
    network = wan.model.diffusion_model
    ours = run(tiny, guide(tiny, cached(patched(tiny, wan, weights), threshold), weights, text_scale, audio_scale))
    forwards = [network.blocks[i].forward for i in range(2)]
    kept, entered, level = {}, {}, []

    def first(x, **kwargs):
        sigma = float(kwargs["transformer_options"]["sigmas"][0])
        if sigma not in level:
            level.append(sigma)
        entered["x"], entered["skip"] = x, len(level) - 1 not in steps
        return x if entered["skip"] else forwards[0](x, **kwargs)

    def second(x, **kwargs):
        branches = kwargs["transformer_options"]["cond_or_uncond"]
        parts = entered["x"].chunk(len(branches))
        if entered["skip"]:
            return torch.cat([part + kept[branch] for branch, part in zip(branches, parts, strict=True)])
        x = forwards[1](x, **kwargs)
        kept.update({branch: part - start for branch, part, start in zip(branches, x.chunk(len(branches)), parts, strict=True)})
        return x

    network.blocks[0].forward, network.blocks[1].forward = first, second
    try:
        expected = run(tiny, guide(tiny, patched(tiny, wan, weights), weights, text_scale, audio_scale))
    finally:
        del network.blocks[0].forward, network.blocks[1].forward
    assert torch.equal(ours, expected)
    plain = run(tiny, guide(tiny, patched(tiny, wan, weights), weights, text_scale, audio_scale))
    assert (ours - plain).abs().max() > 1e-3, "reuse shows"


@pytest.mark.parametrize("form", [{"threshold": 0.0}, {"threshold": 1e-9}, {"threshold": 9.0, "first_steps": STEPS}])
def test_a_cache_that_reuses_nothing_changes_no_bit(tiny, wan, weights, form):
    model = patched(tiny, wan, weights)
    plain = run(tiny, guide(tiny, model, weights, 4.0, 3.0))
    assert torch.equal(run(tiny, guide(tiny, cached(model, **form), weights, 4.0, 3.0)), plain)


def test_together_or_one_by_one_gives_the_same_also_when_branches_disagree(tiny, wan, weights, threshold, monkeypatch):
    """The negative prompt begins in the middle: its branch has nothing to reuse there, and the positive one has."""
    import comfy.sample
    import comfy.samplers
    import node_helpers

    from multitalk_nodes.multitalk_core.schedule import sigmas

    positive, negative = tiny.conditionings(weights)
    late = node_helpers.conditioning_set_values(negative, {"start_percent": 0.5, "end_percent": 1.0})
    model = cached(patched(tiny, wan, weights), threshold)
    noise = comfy.sample.prepare_noise(tiny.known_latent(), SEED)

    def sample():
        euler = comfy.samplers.sampler_object("euler")
        levels = sigmas(STEPS, SHIFT)
        return comfy.sample.sample_custom(model, noise, 4.0, euler, levels, positive, late, 0 * noise, disable_pbar=True, seed=SEED)

    with Blocks(wan) as together:
        batched = sample()
    monkeypatch.setattr(wan.model, "memory_usage_factor", 1e15)
    with Blocks(wan) as apart:
        split = sample()
    assert len(together.ran(0)) > len(apart.ran(0)), "blocks ran for both where one of them needed it"
    torch.testing.assert_close(batched, split, atol=1e-3, rtol=1e-3)


def test_a_batch_of_two_latents_is_two_runs(tiny, wan, weights, threshold):
    guider = guide(tiny, cached(patched(tiny, wan, weights), threshold), weights, 4.0, 3.0)
    noise = torch.randn(2, *tiny.known_latent().shape[1:], generator=torch.Generator().manual_seed(1))
    each = torch.cat([run(tiny, guider, noise[:1]), run(tiny, guider, noise[1:])])
    torch.testing.assert_close(run(tiny, guider, noise), each, atol=1e-3, rtol=1e-3)


def test_nothing_is_left_of_a_run(tiny, wan, weights, threshold):
    import gc

    import comfy.model_management

    from multitalk_nodes.comfy_bridge.step_cache import Run

    def interrupt(step, *_):
        if step == 5:
            raise comfy.model_management.InterruptProcessingException()

    guider = guide(tiny, cached(patched(tiny, wan, weights), threshold), weights, 4.0, 3.0)
    fresh = run(tiny, guider)
    assert torch.equal(run(tiny, guider), fresh), "a second run begins anew"
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(tiny, guider, callback=interrupt)
    assert torch.equal(run(tiny, guider), fresh), "and one after an interrupt"
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Run]


def test_the_log_tells_how_much_was_reused(tiny, wan, weights, embeddings, threshold, caplog):
    with caplog.at_level("INFO"):
        run(tiny, guide(tiny, cached(patched(tiny, wan, weights), threshold), weights, 4.0, 3.0))
    (told,) = re.findall(r"Step Cache: (\d+) of (\d+) evaluations were reused", caplog.text)
    assert tuple(map(int, told)) == (3 * (STEPS - len(teacache(embeddings, threshold))), 3 * STEPS)


def test_first_and_last_steps_are_always_made(tiny, wan, weights):
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=3, last_steps=2), weights, 1.0, 1.0))
    assert len(blocks.forwards) == 5
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=0), weights, 1.0, 1.0))
    assert len(blocks.forwards) == 1, "the first step has nothing to reuse"


def test_a_second_node_replaces_the_first_and_zero_takes_it_away(tiny, wan, weights):
    model = patched(tiny, wan, weights)
    twice = cached(cached(model, 9.0), 9.0, first_steps=4)
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, twice, weights, 1.0, 1.0))
    assert len(blocks.forwards) == 4
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(twice, 0.0), weights, 1.0, 1.0))
    assert len(blocks.forwards) == STEPS


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral", "uni_pc"])
def test_other_samplers_count_by_steps_not_by_evaluations(tiny, wan, weights, sampler):
    from multitalk_nodes.multitalk_core.schedule import sigmas

    with Blocks(wan) as blocks:
        latent = run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=4), weights, 1.0, 1.0), sampler=sampler)
    assert latent.isfinite().all()
    assert blocks.forwards and min(level for level, *_ in blocks.forwards) > float(sigmas(STEPS, SHIFT)[4])


def test_what_replaces_blocks_is_kept_and_has_a_cache_of_its_own(tiny, wan, weights, threshold):
    """Core's skip layer guidance asks the same conditioning twice a step, once without a block."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    def guided(model):
        return SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, double_layers="1", single_layers="")[0]

    model = guided(patched(tiny, wan, weights))
    plain = run(tiny, guide(tiny, model, weights, 4.0, 1.0))
    unguided = run(tiny, guide(tiny, patched(tiny, wan, weights), weights, 4.0, 1.0))
    assert (plain - unguided).abs().max() > 1e-2
    for cache_last in (True, False):
        nothing = cached(model, 1e-9) if cache_last else guided(cached(patched(tiny, wan, weights), 1e-9))
        assert torch.equal(run(tiny, guide(tiny, nothing, weights, 4.0, 1.0)), plain)
        ours = cached(model, threshold) if cache_last else guided(cached(patched(tiny, wan, weights), threshold))
        with Blocks(wan) as blocks:
            near = run(tiny, guide(tiny, ours, weights, 4.0, 1.0))
        assert len(blocks.ran(0)) < 2 * STEPS
        assert (near - plain).abs().max() < (near - unguided).abs().max()


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize(("text_scale", "audio_scale", "evaluations"), FORMS)
def test_cores_caches_save_evaluations_of_every_branch_and_motion_latents_end_clean(
    tiny, wan, weights, text_scale, audio_scale, evaluations, name
):
    import comfy_extras.nodes_easycache

    from multitalk_nodes.comfy_bridge.patches import hold_motion, motion_noise
    from multitalk_nodes.multitalk_core.generate import Motion

    clean = tiny.known_latent(seed=9)[:, :, :1]
    caching = getattr(comfy_extras.nodes_easycache, name).execute(wan, 9.0, 0.0, 1.0, False)[0]
    model = hold_motion(patched(tiny, caching, weights), Motion(clean, noised=False), motion_noise)
    guider = guide(tiny, model, weights, text_scale, audio_scale)
    with Blocks(wan) as blocks:
        latent = run(tiny, guider)
    torch.testing.assert_close(latent[:, :, :1], clean, atol=1e-3, rtol=1e-3)
    made = [blocks.ran(branch) for branch in range(evaluations)]
    assert 0 < len(made[0]) < STEPS and all(levels == made[0] for levels in made)
    assert torch.equal(run(tiny, guider), latent), "nothing is left of the first run"


def test_cores_easycache_skips_whole_evaluations_beside_ours(tiny, wan, weights, threshold):
    from comfy_extras.nodes_easycache import EasyCacheNode

    both = cached(EasyCacheNode.execute(wan, 1.0, 0.0, 1.0, False)[0], threshold)
    counts = []
    for model in (wan, cached(wan, threshold), both):
        with Blocks(wan) as blocks:
            latent = run(tiny, guide(tiny, patched(tiny, model, weights), weights, 4.0, 3.0))
        assert latent.isfinite().all()
        counts.append(sum(len(branches) for _, branches, _ in blocks.forwards))
    assert counts[0] > counts[1] > counts[2] > 0


def test_a_lora_and_a_context_window_keep_working(tiny, wan, weights, threshold):
    """Windows of a long latent share a conditioning; each has a residual of its own."""
    from comfy import context_windows

    model = tiny.wan()
    model.model.diffusion_model.time_projection[1].bias.data.add_(4.0)
    key = "diffusion_model.blocks.1.self_attn.q.weight"
    delta = torch.randn(tiny.SHAPE.dim, tiny.SHAPE.dim, generator=torch.Generator().manual_seed(8)) * 0.2
    model.add_patches({key: ("diff", (delta,))})
    listening = patched(tiny, model, weights)
    listening.model_options["context_handler"] = context_windows.IndexListContextHandler(
        context_schedule=context_windows.get_matching_context_schedule(context_windows.ContextSchedules.STATIC_STANDARD),
        fuse_method=context_windows.get_matching_fuse_method(context_windows.ContextFuseMethods.PYRAMID),
        context_length=2,
        context_overlap=1,
        dim=2,
    )
    plain = run(tiny, guide(tiny, listening, weights, 4.0, 1.0))
    assert torch.equal(run(tiny, guide(tiny, cached(listening, 1e-9), weights, 4.0, 1.0)), plain)
    with Blocks(model) as blocks:
        near = run(tiny, guide(tiny, cached(listening, threshold), weights, 4.0, 1.0))
    assert 0 < len(blocks.ran(0)) < 2 * STEPS
    assert near.isfinite().all()


def test_a_model_without_plain_blocks_is_refused(comfy):
    from types import SimpleNamespace

    from multitalk_nodes.comfy_bridge.step_cache import cache_steps
    from multitalk_nodes.multitalk_core.model import WeightsError

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(WeightsError, match="needs a WAN 2.1"):
        cache_steps(other, rule())


def test_the_rule_is_told_to_a_jobs_key(tiny, wan, weights):
    from multitalk_nodes.comfy_bridge.job_key import model_fingerprint

    model = patched(tiny, wan, weights)
    told = [str(model_fingerprint(m)) for m in (model, cached(model, 0.1), cached(model, 0.2), cached(model, 0.2, table="multitalk-480"))]
    assert len(set(told)) == 4
    assert str(model_fingerprint(cached(cached(model, 0.1), 0.0))) == told[0]
