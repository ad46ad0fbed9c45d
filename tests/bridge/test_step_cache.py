"""The step cache on ComfyUI's own WAN and samplers. Its numbers are in test_parity.py, items 06 and 11."""

import contextlib
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
    from multitalk_nodes.tests.support import tiny

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


@contextlib.contextmanager
def residuals_again(network, steps):
    """An oracle without wrappers: the model's blocks are exchanged for ones that, but in these steps, add what each branch's (and
    window's) own blocks added last."""
    forwards = [network.blocks[i].forward for i in range(2)]
    kept, entered, level = {}, {}, []

    def first(x, **kwargs):
        sigma = float(kwargs["transformer_options"]["sigmas"][0])
        if sigma not in level:
            level.append(sigma)
        entered["x"], entered["skip"] = x, len(level) - 1 not in steps
        return x if entered["skip"] else forwards[0](x, **kwargs)

    def second(x, **kwargs):
        options = kwargs["transformer_options"]
        window = tuple(getattr(options.get("context_window"), "index_list", ()))
        names = [(branch, window) for branch in options["cond_or_uncond"]]
        parts = entered["x"].chunk(len(names))
        if entered["skip"]:
            return torch.cat([part + kept[name] for name, part in zip(names, parts, strict=True)])
        x = forwards[1](x, **kwargs)
        kept.update({name: part - start for name, part, start in zip(names, x.chunk(len(names)), parts, strict=True)})
        return x

    network.blocks[0].forward, network.blocks[1].forward = first, second
    try:
        yield kept
    finally:
        del network.blocks[0].forward, network.blocks[1].forward


@pytest.mark.parametrize(("text_scale", "audio_scale", "evaluations"), FORMS)
def test_a_reused_step_is_the_head_on_the_last_residual(tiny, wan, weights, embeddings, threshold, text_scale, audio_scale, evaluations):
    model = patched(tiny, wan, weights)
    ours = run(tiny, guide(tiny, cached(model, threshold), weights, text_scale, audio_scale))
    with residuals_again(wan.model.diffusion_model, teacache(embeddings, threshold)) as kept:
        expected = run(tiny, guide(tiny, model, weights, text_scale, audio_scale))
    assert torch.equal(ours, expected) and len(kept) == evaluations
    plain = run(tiny, guide(tiny, model, weights, text_scale, audio_scale))
    assert (ours - plain).abs().max() > 1e-3, "reuse shows"


@pytest.mark.parametrize("form", [{"threshold": 0.0}, {"threshold": 1e-9}, {"threshold": 9.0, "first_steps": STEPS}])
def test_a_cache_that_reuses_nothing_changes_no_bit(tiny, wan, weights, form):
    model = patched(tiny, wan, weights)
    plain = run(tiny, guide(tiny, model, weights, 4.0, 3.0))
    assert torch.equal(run(tiny, guide(tiny, cached(model, **form), weights, 4.0, 3.0)), plain)


@pytest.mark.parametrize("sampler", ["heun", "heunpp2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "res_multistep"])
def test_it_changes_no_bit_of_any_sampler_either(tiny, wan, weights, sampler):
    """Some ask a level twice, with another latent: the distance of 0 there says nothing of the latent."""
    model = patched(tiny, wan, weights)
    plain = run(tiny, guide(tiny, model, weights, 1.0, 1.0), sampler=sampler, steps=6)
    assert torch.equal(run(tiny, guide(tiny, cached(model, 1e-9), weights, 1.0, 1.0), sampler=sampler, steps=6), plain)


def with_sampler(model, function, noise, levels, positive, negative=None, text_scale=1.0):
    """Sample with a sampler of the test's own, function(model, x, sigmas, extra_args)."""
    import comfy.sample
    import comfy.samplers

    def plain(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return function(lambda x, sigma: model(x, sigma * x.new_ones(x.shape[0]), **extra_args), x, sigmas)

    negative = positive if negative is None else negative
    own = comfy.samplers.KSAMPLER(plain)
    return comfy.sample.sample_custom(model, noise, text_scale, own, levels, positive, negative, 0 * noise, disable_pbar=True, seed=SEED)


def test_levels_that_differ_by_rounding_are_one(tiny, wan, weights):
    """Each level is asked just above, and again just below: the second time runs, and the first one is no step before it."""
    from multitalk_nodes.multitalk_core.schedule import sigmas

    def asks_twice(model, x, sigmas):
        for sigma in sigmas[:-1]:
            x = model(x, sigma * (1 + 3e-7))
            x = model(x, sigma * (1 - 3e-7))
        return x

    positive, _ = tiny.conditionings(weights)
    model = cached(patched(tiny, wan, weights), 9.0, first_steps=4)
    with Blocks(wan) as blocks:
        with_sampler(model, asks_twice, tiny.known_latent(), sigmas(STEPS, SHIFT), positive)
    assert len(blocks.forwards) == 2 * 4 + (STEPS - 4)


def test_a_latent_of_another_size_is_cached_by_itself(tiny, comfy):
    """As samplers ask that begin small: every other step is of half the width."""
    from multitalk_nodes.multitalk_core.schedule import sigmas

    model = tiny.wan(model_type="t2v")
    model.model.diffusion_model.time_projection[1].bias.data.add_(4.0)
    seen = []

    def two_sizes(model, x, sigmas):
        for number, sigma in enumerate(sigmas[:-1]):
            seen.append(model(x[..., : 6 if number % 2 else 12], sigma))
        return x

    positive, _ = tiny.prompts()
    for threshold in (0.0, 1e-9, 9.0):
        with_sampler(cached(model, threshold, first_steps=0), two_sizes, tiny.known_latent(), sigmas(4, SHIFT), positive)
    plain, nothing, most = seen[:4], seen[4:8], seen[8:]
    assert all(map(torch.equal, plain, nothing)) and [torch.equal(*pair) for pair in zip(plain, most, strict=True)] == [1, 1, 0, 0]


def test_an_area_that_core_gives_to_both_branches_is_no_mix_of_them(tiny):
    """Core copies a positive with an area to the negatives, mark and all, and fills it with the negative's text."""
    import node_helpers

    from multitalk_nodes.multitalk_core.schedule import sigmas

    def euler(model, x, sigmas):
        for now, following in itertools.pairwise(sigmas):
            x = x + (x - model(x, now)) / now * (following - now)
        return x

    model = tiny.wan(model_type="t2v")
    model.model.diffusion_model.time_projection[1].bias.data.add_(4.0)
    positive, negative = tiny.prompts()
    positive = node_helpers.conditioning_set_values(positive, {"area": (2, 8, 12, 0, 0, 0)})  # two of the three latent frames
    with Blocks(model) as blocks:
        with_sampler(cached(model, 9.0), euler, tiny.known_latent(), sigmas(STEPS, SHIFT), positive, negative, 4.0)
    assert [len(blocks.ran(branch)) for branch in (0, 1)] == [2, 2 + 2], "the first steps: the positive; the negative and its copy"


def test_what_the_step_before_did_not_ask_for_is_forgotten():
    from multitalk_nodes.comfy_bridge.step_cache import Run

    kept = Run(rule())
    window, other = kept.branch("window", 0, 1.0)[0], kept.branch("other", 0, 1.0)[0]
    assert kept.branch("window", 1, 0.9)[0] is window is not other
    kept.branch("window", 2, 0.8)
    assert kept.branch("other", 2, 0.8)[0] is not other
    assert kept.branch("window", 2, 0.8) == (window, True)


def test_branches_can_be_asked_in_several_threads(monkeypatch):
    """As ComfyUI does with a thread for each GPU."""
    import sys
    from concurrent.futures import ThreadPoolExecutor

    from multitalk_nodes.comfy_bridge.step_cache import Run

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        kept = Run(rule())

        def ask(thread):
            own = {kept.branch((thread, key), 0, 1.0)[0] for _ in range(20) for key in range(20)}
            kept.count([True] * 400)
            return len(own)

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(ask, range(4))) == [20] * 4
    finally:
        sys.setswitchinterval(before)
    assert kept.asked == 1600


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
    (item,) = re.findall(r"Step Cache: (\d+) of (\d+) evaluations were reused", caplog.text)
    assert tuple(map(int, item)) == (3 * (STEPS - len(teacache(embeddings, threshold))), 3 * STEPS)


def test_first_and_last_steps_are_always_made(tiny, wan, weights):
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=3, last_steps=2), weights, 1.0, 1.0))
    assert len(blocks.forwards) == 5
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=0), weights, 1.0, 1.0))
    assert len(blocks.forwards) == 1, "the first step has nothing to reuse"


def test_a_label_map_takes_the_last_steps_from_the_whole_schedule(tiny, wan, weights):
    """Of ten steps the last two are made; step 3 is none of them, though sampling ends with it."""
    from multitalk_nodes.comfy_bridge.label_map import watch_maps
    from multitalk_nodes.comfy_bridge.sampling import Sampling
    from multitalk_nodes.multitalk_core.errors import SpeakerError

    model, latent = cached(patched(tiny, wan, weights), 9.0, last_steps=2), {"samples": tiny.known_latent()}

    def watch(step):
        return watch_maps(guide(tiny, model, weights, 1.0, 1.0), latent, Sampling(STEPS, SHIFT, 1.0, 1.0), SEED, 1, step)

    for step in (2, 9):
        assert watch(step)[0].shape[0] == 3
    for step in (3, 8):
        with pytest.raises(SpeakerError, match="with a step cache choose another step"):
            watch(step)


def test_a_network_called_outside_of_sampling_goes_past_the_cache(tiny, wan):
    from comfy.patcher_extension import WrappersMP

    from multitalk_nodes.comfy_bridge.step_cache import RUN, Run

    wrappers = cached(wan, 9.0).wrappers
    assert wrappers[WrappersMP.DIFFUSION_MODEL]
    network, generator = wan.model.diffusion_model, torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 36, 3, 8, 12, generator=generator), torch.randn(1, 8, tiny.TEXT_DIM, generator=generator)
    plain = network(x, torch.tensor([500.0]), text, transformer_options={})
    for more in ({}, {RUN: Run(rule(9.0)), "sample_sigmas": torch.tensor([1.0, 0.5, 0.0])}):
        for _ in range(2):
            assert torch.equal(network(x, torch.tensor([500.0]), text, transformer_options={"wrappers": wrappers, **more}), plain)


def test_a_second_node_replaces_the_first_and_zero_takes_it_away(tiny, wan, weights):
    model = patched(tiny, wan, weights)
    twice = cached(cached(model, 9.0), 9.0, first_steps=4)
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, twice, weights, 1.0, 1.0))
    assert len(blocks.forwards) == 4
    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(twice, 0.0), weights, 1.0, 1.0))
    assert len(blocks.forwards) == STEPS


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "uni_pc"])
def test_other_samplers_count_by_steps_not_by_evaluations(tiny, wan, weights, sampler):
    from multitalk_nodes.multitalk_core.schedule import sigmas

    with Blocks(wan) as blocks:
        latent = run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=4), weights, 1.0, 1.0), sampler=sampler)
    assert latent.isfinite().all()
    assert blocks.forwards and min(level for level, *_ in blocks.forwards) > float(sigmas(STEPS, SHIFT)[4])


def test_of_two_evaluations_at_a_level_only_the_first_is_reused(tiny, wan, weights):
    """Heun asks every level but the first for the step before as well: that counts as the level's own step."""
    from multitalk_nodes.multitalk_core.schedule import sigmas

    with Blocks(wan) as blocks:
        run(tiny, guide(tiny, cached(patched(tiny, wan, weights), 9.0, first_steps=4), weights, 1.0, 1.0), sampler="heun")
    levels = [round(float(level), 6) for level in sigmas(STEPS, SHIFT)]
    assert blocks.ran(0) == levels[:1] + [level for level in levels[1:4] for _ in range(2)] + levels[4:-1]


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


def test_a_lora_and_a_context_window_keep_working(tiny, weights, embeddings, threshold):
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
    listening.model_options["context_handler"].causal_window_fix = False  # so that all windows have as many frames
    plain = run(tiny, guide(tiny, listening, weights, 4.0, 1.0))
    assert torch.equal(run(tiny, guide(tiny, cached(listening, 1e-9), weights, 4.0, 1.0)), plain)
    near = run(tiny, guide(tiny, cached(listening, threshold), weights, 4.0, 1.0))
    with residuals_again(model.model.diffusion_model, teacache(embeddings, threshold)) as kept:
        assert torch.equal(near, run(tiny, guide(tiny, listening, weights, 4.0, 1.0)))
    assert {window for _, window in kept} == {(0, 1), (1, 2)} and not torch.equal(near, plain)


def test_a_model_without_plain_blocks_is_refused(comfy):
    from types import SimpleNamespace

    from multitalk_nodes.comfy_bridge.step_cache import cache_steps
    from multitalk_nodes.multitalk_core.errors import WeightsError

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(WeightsError, match="needs a WAN 2.1"):
        cache_steps(other, rule())


def test_the_rule_is_told_to_a_jobs_key(tiny, wan, weights):
    from multitalk_nodes.comfy_bridge.fingerprints import model_fingerprint

    model = patched(tiny, wan, weights)
    lines = [str(model_fingerprint(m)) for m in (model, cached(model, 0.1), cached(model, 0.2), cached(model, 0.2, table="multitalk-480"))]
    assert len(set(lines)) == 4
    assert str(model_fingerprint(cached(cached(model, 0.1), 0.0))) == lines[0]
