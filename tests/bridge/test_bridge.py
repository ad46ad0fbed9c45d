"""MultiTalk on ComfyUI's own WAN, sampler and model manager. The numbers themselves are in test_parity.py."""

import json
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")

STEPS, SHIFT, SEED = 3, 5.0, 7


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
    return tiny.wan()


@pytest.fixture(scope="module")
def weights(tiny):
    return tiny.weights()


def patched(tiny, wan, weights, speakers=2):
    from multitalk_nodes.comfy_bridge.patches import patch_model

    return patch_model(wan, weights, tiny.halves(speakers) if speakers > 1 else None)


def guide(tiny, model, weights, text_scale, audio_scale, speakers=2, projection=None):
    from multitalk_nodes.comfy_bridge.guider import MultiTalkGuider

    positive, negative = tiny.conditionings(weights, speakers)
    return MultiTalkGuider(model, positive, negative, text_scale, audio_scale, projection)


def run(tiny, guider, sampler="euler", noise=None, callback=None, steps=STEPS):
    import comfy.sample
    import comfy.samplers

    from multitalk_nodes.multitalk_core.schedule import sigmas

    noise = comfy.sample.prepare_noise(tiny.known_latent(), SEED) if noise is None else noise
    chosen = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, torch.zeros_like(noise), chosen, sigmas(steps, SHIFT), callback=callback, disable_pbar=True, seed=SEED)


class Forwards:
    """Counts forwards of the diffusion model and their batch sizes."""

    def __init__(self, model):
        self.network, self.batches = model.model.diffusion_model, []

    def __enter__(self):
        self.hook = self.network.register_forward_pre_hook(lambda _module, args: self.batches.append(args[0].shape[0]))
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize(("text_scale", "audio_scale", "evaluations"), [(1, 1, 1), (1, 3, 2), (4, 1, 2), (4, 3, 3)])
def test_only_the_needed_branches_are_evaluated(tiny, wan, weights, text_scale, audio_scale, evaluations):
    guider = guide(tiny, patched(tiny, wan, weights), weights, text_scale, audio_scale)
    with Forwards(wan) as forwards:
        run(tiny, guider)
    assert sum(forwards.batches) == evaluations * STEPS


def test_branches_together_or_one_by_one_give_the_same(tiny, wan, weights, monkeypatch):
    guider = guide(tiny, patched(tiny, wan, weights), weights, 4.0, 3.0)
    with Forwards(wan) as together:
        batched = run(tiny, guider)
    monkeypatch.setattr(wan.model, "memory_usage_factor", 1e15)
    with Forwards(wan) as apart:
        split = run(tiny, guider)
    assert together.batches == [3] * STEPS
    assert apart.batches == [1] * 3 * STEPS
    torch.testing.assert_close(batched, split, atol=1e-3, rtol=1e-3)


def test_nothing_of_a_call_outlives_it(tiny, wan, weights):
    """Not even until the garbage collector runs: what a step cache keeps is a gigabyte."""
    import gc
    import weakref

    heard = []
    hook = weights.adapter.blocks[0].audio_cross_attn.register_forward_pre_hook(lambda _m, args: heard.append(weakref.ref(args[1])))
    guider = guide(tiny, patched(tiny, wan, weights), weights, 4.0, 3.0)
    gc.collect()
    gc.disable()
    try:
        run(tiny, guider)
        assert len(heard) == STEPS and not any(audio() is not None for audio in heard)
    finally:
        gc.enable()
        hook.remove()


@pytest.mark.parametrize("takes", [1, 2])
def test_the_watcher_gets_the_voiced_branch_of_the_prompt(tiny, wan, weights, takes):
    """Three branches and several takes in one forward: the map of the positive one, not of the negative one with the same voices."""
    from multitalk_nodes.comfy_bridge.patches import RECORD

    seen = []

    class Watcher:
        def see(self, options, branch, maps, masks):
            seen.append((branch, options["block_index"], maps.shape, options["cond_or_uncond"]))

    model = patched(tiny, wan, weights)
    model.model_options["transformer_options"][RECORD] = Watcher()
    noise = torch.randn(takes, *tiny.known_latent().shape[1:], generator=torch.Generator().manual_seed(1))
    run(tiny, guide(tiny, model, weights, 4.0, 3.0), noise=noise, steps=1)
    branches = [branch for branch, block, _, _ in seen if block == 0]
    assert seen[0][3] == [2, 1, 0] and branches == [1] * takes + [0] * takes, "2 is null audio, and has no map"
    assert {shape for _, _, shape, _ in seen} == {torch.Size((3, 3 * 24))}


@pytest.mark.parametrize("speakers", [1, 2, 3, 4])
def test_a_batch_of_two_latents_is_two_runs(tiny, wan, weights, speakers):
    guider = guide(tiny, patched(tiny, wan, weights, speakers), weights, 4.0, 3.0, speakers)
    noise = torch.randn(2, *tiny.known_latent().shape[1:], generator=torch.Generator().manual_seed(1))
    both = run(tiny, guider, noise=noise)
    each = torch.cat([run(tiny, guider, noise=one[None]) for one in noise])
    torch.testing.assert_close(both, each, atol=1e-3, rtol=1e-3)


def test_projected_guidance_limits_each_sample_of_a_batch_by_itself(tiny, wan, weights):
    from multitalk_nodes.multitalk_core.guidance import Projection

    guider = guide(tiny, patched(tiny, wan, weights), weights, 4.0, 3.0, projection=Projection(norm_threshold=2.0))
    noise = (
        torch.randn(2, *tiny.known_latent().shape[1:], generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 3.0])[:, None, None, None, None]
    )
    each = torch.cat([run(tiny, guider, noise=one[None]) for one in noise])
    torch.testing.assert_close(run(tiny, guider, noise=noise), each, atol=1e-3, rtol=1e-3)


def test_cores_sampler_is_audio_scale_one(tiny, wan, weights):
    import comfy.sample
    import comfy.samplers

    from multitalk_nodes.multitalk_core.schedule import sigmas

    model = patched(tiny, wan, weights)
    positive, negative = tiny.conditionings(weights)
    noise = comfy.sample.prepare_noise(tiny.known_latent(), SEED)
    euler = comfy.samplers.sampler_object("euler")
    core = comfy.sample.sample_custom(
        model, noise, 4.0, euler, sigmas(STEPS, SHIFT), positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=SEED
    )
    torch.testing.assert_close(core, run(tiny, guide(tiny, model, weights, 4.0, 1.0)), atol=1e-3, rtol=1e-3)


def test_cores_ksampler_node_is_audio_scale_one(tiny, wan, weights):
    import comfy.sample
    import comfy.samplers

    model = patched(tiny, wan, weights)
    positive, negative = tiny.conditionings(weights)
    noise = comfy.sample.prepare_noise(tiny.known_latent(), SEED)
    core = comfy.sample.sample(
        model, noise, STEPS, 4.0, "euler", "simple", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=SEED
    )
    guider = guide(tiny, model, weights, 4.0, 1.0)
    levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    ours = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), levels, disable_pbar=True, seed=SEED)
    torch.testing.assert_close(core, ours, atol=1e-3, rtol=1e-3)


def core_samplers():
    import comfy.samplers

    # dpm_fast and dpm_adaptive choose their own levels and divide by log σ, which a schedule that starts at 1 does not allow
    return [name for name in comfy.samplers.SAMPLER_NAMES if name not in ("dpm_fast", "dpm_adaptive")]


@pytest.mark.parametrize("scales", [(4.0, 3.0), (1.0, 1.0)])
def test_every_core_sampler_runs_and_ends_with_the_motion_latents_clean(tiny, wan, weights, scales):
    from multitalk_nodes.comfy_bridge.patches import hold_motion, motion_noise
    from multitalk_nodes.multitalk_core.generate import Motion

    clean = tiny.known_latent(seed=9)[:, :, :1]
    model = hold_motion(patched(tiny, wan, weights), Motion(clean, noised=False), motion_noise)
    guider = guide(tiny, model, weights, *scales)
    wrong = {}
    for name in core_samplers():
        latent = run(tiny, guider, sampler=name, steps=4)
        error = (latent[:, :, :1] - clean).abs().max().item()
        # core's uni_pc stops at σ = 0.001 in place of 0
        if not latent.isfinite().all() or error > (2e-2 if name.startswith("uni_pc") else 1e-3):
            wrong[name] = error
    assert not wrong


@pytest.mark.parametrize("noised", [False, True])
def test_motion_latents_hold_with_cores_sampler_too(tiny, wan, weights, noised):
    import comfy.sample
    import comfy.samplers

    from multitalk_nodes.comfy_bridge.patches import hold_motion, motion_noise
    from multitalk_nodes.multitalk_core.generate import Motion
    from multitalk_nodes.multitalk_core.schedule import sigmas

    clean = tiny.known_latent(seed=9)[:, :, :2]
    model = hold_motion(patched(tiny, wan, weights), Motion(clean, noised), motion_noise)
    positive, negative = tiny.conditionings(weights)
    noise = comfy.sample.prepare_noise(tiny.known_latent(), SEED)
    euler = comfy.samplers.sampler_object("euler")
    core = comfy.sample.sample_custom(
        model, noise, 4.0, euler, sigmas(STEPS, SHIFT), positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=SEED
    )
    torch.testing.assert_close(core[:, :, :2], clean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(core, run(tiny, guide(tiny, model, weights, 4.0, 1.0)), atol=1e-3, rtol=1e-3)


def test_motion_noise_is_a_function_of_seed_and_level():
    from multitalk_nodes.comfy_bridge.patches import motion_noise

    shape = torch.Size((1, 16, 2, 4, 4))
    state = torch.get_rng_state()
    first = motion_noise(shape, 0.5, 3)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
    assert torch.equal(first, motion_noise(shape, 0.5, 3))
    assert not torch.equal(first, motion_noise(shape, 0.25, 3))
    assert not torch.equal(first, motion_noise(shape, 0.5, 4))
    assert abs(first.std().item() - 1) < 0.1


@pytest.mark.parametrize("lora_first", [True, False])
def test_a_lora_acts_as_weights_that_were_merged(tiny, weights, lora_first):
    key = "diffusion_model.blocks.1.self_attn.q.weight"
    delta = torch.randn(tiny.SHAPE.dim, tiny.SHAPE.dim, generator=torch.Generator().manual_seed(8)) * 0.2
    merged = tiny.wan()
    merged.model.diffusion_model.blocks[1].self_attn.q.weight.data.add_(delta)
    wanted = run(tiny, guide(tiny, patched(tiny, merged, weights), weights, 4.0, 3.0))

    model = tiny.wan()
    plain = run(tiny, guide(tiny, patched(tiny, model, weights), weights, 4.0, 3.0))
    base = model.clone() if lora_first else patched(tiny, model, weights)
    base.add_patches({key: ("diff", (delta,))})
    ours = run(tiny, guide(tiny, patched(tiny, base, weights) if lora_first else base, weights, 4.0, 3.0))
    torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-3)
    assert (plain - wanted).abs().max() > 1e-2, "the LoRA matters"


def test_two_graphs_in_one_process_do_not_touch_each_other(tiny, wan, weights):
    other_weights = tiny.weights(seed=11, family="infinitetalk")
    first = guide(tiny, patched(tiny, wan, weights), weights, 4.0, 3.0)
    second = guide(tiny, patched(tiny, wan, other_weights, 3), other_weights, 1.0, 2.0, 3)
    alone, other = run(tiny, first), run(tiny, second)
    for _ in range(2):
        assert torch.equal(run(tiny, first), alone)
        assert torch.equal(run(tiny, second), other)
    assert not torch.equal(alone, other)


def test_a_run_after_an_interrupt_gives_the_bits_of_a_fresh_one(tiny, wan, weights):
    import comfy.model_management

    from multitalk_nodes.multitalk_core.guidance import Projection

    def interrupt(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException()

    guider = guide(tiny, patched(tiny, wan, weights), weights, 4.0, 3.0, projection=Projection())
    fresh = run(tiny, guider)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(tiny, guider, callback=interrupt)
    assert torch.equal(run(tiny, guider), fresh)


def test_the_model_that_was_patched_stays_what_it_was(tiny, wan, weights):
    from multitalk_nodes.comfy_bridge.patches import hold_motion, motion_noise
    from multitalk_nodes.multitalk_core.generate import Motion

    plain = guide(tiny, wan, weights, 4.0, 1.0)
    before = run(tiny, plain)
    listening = patched(tiny, wan, weights)
    hold_motion(listening, Motion(tiny.known_latent()[:, :, :1], noised=False), motion_noise)
    assert not torch.equal(run(tiny, guide(tiny, listening, weights, 4.0, 1.0)), before)
    assert torch.equal(run(tiny, plain), before)
    assert not wan.model_options["transformer_options"].get("patches")
    assert not wan.wrappers.get("diffusion_model")


def test_the_manager_loads_and_counts_the_weights(tiny, wan, weights):
    import comfy.model_management

    model = patched(tiny, wan, weights)
    assert weights.patcher in model.model_patches_models()
    assert weights.patcher.model_size() == sum(t.nbytes for t in weights.adapter.state_dict().values())
    comfy.model_management.unload_all_models()
    run(tiny, guide(tiny, model, weights, 1.0, 1.0))
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert any(patcher is not None and patcher.is_clone(weights.patcher) for patcher in loaded)


def test_half_precision_weights_stay_as_they_are_and_sound_nearly_the_same(tiny, wan, weights):
    from multitalk_nodes.comfy_bridge.weights import build_weights

    half = build_weights(tiny.adapter_tensors(), "tiny", weights.family, torch.float16)
    assert {t.dtype for t in half.adapter.state_dict().values()} == {torch.float16}
    wanted = run(tiny, guide(tiny, patched(tiny, wan, weights), weights, 1.0, 1.0))
    ours = run(tiny, guide(tiny, patched(tiny, wan, half), half, 1.0, 1.0))
    assert (ours - wanted).norm() / wanted.norm() < 0.02


def test_post_cfg_functions_see_guided_and_unguided(tiny, wan, weights):
    seen = []

    def halve(args):
        seen.append((args["denoised"], args["cond_denoised"], args["uncond_denoised"]))
        return args["denoised"] / 2

    model = patched(tiny, wan, weights)
    model.set_model_sampler_post_cfg_function(halve)
    plain = run(tiny, guide(tiny, patched(tiny, wan, weights), weights, 4.0, 3.0), steps=1)
    halved = run(tiny, guide(tiny, model, weights, 4.0, 3.0), steps=1)
    out = wan.model.process_latent_in
    torch.testing.assert_close(out(halved), out(plain) / 2, atol=1e-3, rtol=1e-3)
    assert len(seen) == 1 and not torch.equal(seen[0][1], seen[0][2])


def test_context_windows_of_core_take_each_window_its_own_audio(tiny, wan, weights):
    """A video of two windows whose halves are alone what they are in it: audio is sliced along with the latent."""
    import comfy.context_windows

    model = patched(tiny, wan, weights)
    guider = guide(tiny, model, weights, 1.0, 1.0)
    heard = []
    hook = weights.adapter.blocks[0].audio_cross_attn.register_forward_pre_hook(lambda _m, args: heard.append(args[1].clone()))
    window = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("flat"),
        context_length=2,
        context_overlap=1,
        dim=2,
    )
    guider.model_options = {**guider.model_options, "context_handler": window}
    run(tiny, guider, steps=1)
    hook.remove()
    whole = weights.tokens(tiny.windows(2))[0]
    torch.testing.assert_close(heard[0], whole[:, 0:2])
    torch.testing.assert_close(heard[1][:, -2:], whole[:, 1:3])  # newer cores put an anchor frame before a later window


@pytest.mark.parametrize("stable", [False, True])
def test_cores_audio_encoder_is_read_in_the_published_way(tiny, stable):
    """Core's network against transformers' with the same weights."""
    from types import SimpleNamespace

    import comfy.ops
    from comfy.audio_encoders.wav2vec2 import Wav2Vec2Model

    from multitalk_nodes.comfy_bridge.encoder import as_encoder
    from multitalk_nodes.multitalk_core.audio.wav2vec_files import EncoderFiles, build_encoder, infer_config

    core = Wav2Vec2Model(
        embed_dim=64, num_heads=2, num_layers=3, conv_norm=stable, conv_bias=stable, do_normalize=stable, do_stable_layer_norm=stable,
        device="cpu", dtype=torch.float32, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    core.load_state_dict(tiny._fill(core, 6, 0.1))
    tensors = {key: tensor.clone() for key, tensor in core.state_dict().items()}
    ours = build_encoder(EncoderFiles(tensors, {**infer_config(tensors, "core"), "num_attention_heads": 2}, None, "core"))
    patcher = SimpleNamespace(model=core, load_device=torch.device("cpu"))
    managed = as_encoder(SimpleNamespace(model=core, load_device=torch.device("cpu"), patcher=patcher))
    voice = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert (managed.layers, managed.dim) == (ours.layers, ours.dim) == (3, 64)
    torch.testing.assert_close(managed.network.encode(voice), ours.encode(voice), atol=1e-4, rtol=1e-4)


class TestRefusals:
    def test_a_text_to_video_model(self, tiny, weights):
        from multitalk_nodes.multitalk_core.errors import WeightsError

        with pytest.raises(WeightsError, match="text-to-video"):
            patched(tiny, tiny.wan(model_type="t2v"), weights)

    @pytest.mark.parametrize(("dim", "layers"), [(48, 2), (96, 3)])
    def test_a_model_of_another_size_names_both(self, tiny, weights, dim, layers):
        from multitalk_nodes.multitalk_core.errors import WeightsError

        with pytest.raises(WeightsError, match=f"dimension {dim} and {layers} blocks.*dimension 96 and 2 blocks"):
            patched(tiny, tiny.wan(dim=dim, layers=layers), weights)

    def test_a_conditioning_without_audio(self, tiny, wan, weights):
        from multitalk_nodes.comfy_bridge.guider import MultiTalkGuider, guide
        from multitalk_nodes.multitalk_core.errors import SpeakerError, WeightsError

        bare = (patched(tiny, wan, weights), *tiny.prompts(), 4.0, 1.0)
        with pytest.raises(SpeakerError, match="Positive and negative did not go through MultiTalk Conditioning"):
            guide(*bare)
        with pytest.raises(WeightsError, match="a conditioning has none"):  # where core's nodes run it
            run(tiny, MultiTalkGuider(*bare))

    def test_a_model_from_before_the_conditioning(self, tiny, wan, weights):
        from multitalk_nodes.comfy_bridge.guider import guide
        from multitalk_nodes.multitalk_core.errors import SpeakerError

        with pytest.raises(SpeakerError, match="Model did not go through"):
            guide(wan, *tiny.conditionings(weights, 2), 4.0, 1.0)

    def test_a_negative_that_is_not_asked_for_may_be_bare(self, tiny, wan, weights):
        from multitalk_nodes.comfy_bridge.guider import guide

        prompts = (patched(tiny, wan, weights), tiny.conditionings(weights, 2)[0], tiny.prompts()[1])
        guide(*prompts, 1.0, 4.0)
        with pytest.raises(ValueError, match="Negative did not go through"):
            guide(*prompts, 4.0, 4.0)

    @pytest.mark.parametrize(("cut", "given"), [((slice(None, -1), slice(None)), "frames"), ((slice(None), slice(None, -2)), "pixels")])
    def test_a_latent_of_another_length_or_size(self, tiny, wan, weights, cut, given):
        frames, rows = cut
        guider = guide(tiny, patched(tiny, wan, weights), weights, 1.0, 1.0)
        with pytest.raises(ValueError, match=f"The latent is for .*{given}.*but MultiTalk Conditioning prepared"):
            run(tiny, guider, noise=torch.randn_like(tiny.known_latent())[:, :, frames, rows])

    def test_two_voices_without_masks(self, tiny, wan, weights):
        from multitalk_nodes.multitalk_core.errors import SpeakerError

        with pytest.raises(SpeakerError, match="2 voices"):
            run(tiny, guide(tiny, patched(tiny, wan, weights, 1), weights, 1.0, 1.0, speakers=2))

    def test_masks_of_another_grid(self, tiny, wan, weights):
        from multitalk_nodes.comfy_bridge.patches import patch_model
        from multitalk_nodes.multitalk_core.errors import SpeakerError

        model = patch_model(wan, weights, tiny.halves(2)[:, :-2])
        with pytest.raises(SpeakerError, match="tokens a frame"):
            run(tiny, guide(tiny, model, weights, 1.0, 1.0))


def test_a_clip_counts_its_steps_and_says_when_it_is_done(tiny, wan, weights):
    import comfy.utils

    from multitalk_nodes.comfy_bridge.sampling import Sampling, sample_clip

    guider, lines = guide(tiny, patched(tiny, wan, weights), weights, 1.0, 1.0), []
    latent = {"samples": torch.zeros_like(tiny.known_latent()), "kept": "this"}
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, node_id=None: lines.append((done, total)))
    try:
        made = sample_clip(guider, latent, Sampling(STEPS, SHIFT, 1.0, 1.0), SEED)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert lines[-1] == (STEPS, STEPS) and {total for _, total in lines} == {STEPS}
    assert made["kept"] == "this" and torch.equal(made["samples"], run(tiny, guider))


class TestFiles:
    def save(self, folder, tensors, name="multitalk.safetensors", metadata=None):
        from safetensors.torch import save_file

        save_file(tensors, folder / name, metadata)
        return str(folder / name), name

    def test_what_is_not_multitalks_is_left_out(self, tiny, tmp_path):
        from multitalk_nodes.comfy_bridge.weights import load_weights

        path, name = self.save(tmp_path, {**tiny.adapter_tensors(), "blocks.0.self_attn.q.weight": torch.zeros(2, 2)})
        assert load_weights(path, name).shape == tiny.SHAPE

    def test_a_missing_tensor_is_named(self, tiny, tmp_path):
        from multitalk_nodes.comfy_bridge.weights import load_weights
        from multitalk_nodes.multitalk_core.errors import WeightsError

        tensors = tiny.adapter_tensors()
        del tensors["blocks.1.norm_x.bias"]
        with pytest.raises(WeightsError, match=r"blocks\.1\.norm_x\.bias"):
            load_weights(*self.save(tmp_path, tensors))

    def test_a_wrong_shape_is_named(self, tiny, tmp_path):
        from multitalk_nodes.comfy_bridge.weights import load_weights
        from multitalk_nodes.multitalk_core.errors import WeightsError

        tensors = {**tiny.adapter_tensors(), "audio_proj.proj2.bias": torch.zeros(5)}
        with pytest.raises(WeightsError, match=r"audio_proj\.proj2\.bias.*\(5,\).*\(24,\)"):
            load_weights(*self.save(tmp_path, tensors))

    @pytest.mark.parametrize("content", [b"<!DOCTYPE html><html></html>", b"\x00" * 4, None])
    def test_a_damaged_file_is_named(self, tiny, tmp_path, content):
        from multitalk_nodes.comfy_bridge.weights import load_weights
        from multitalk_nodes.multitalk_core.errors import WeightsError

        path, name = self.save(tmp_path, tiny.adapter_tensors())
        data = (tmp_path / name).read_bytes()[:-1000] if content is None else content
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=name):
            load_weights(path, name)

    @pytest.mark.parametrize(
        ("asked", "name", "metadata", "family"),
        [
            ("auto", "multitalk.safetensors", {}, "multitalk"),
            ("auto", "WanVideo_2_1_Multitalk_14B_fp8_e4m3fn.safetensors", {}, "multitalk"),
            ("auto", "Wan2_1-InfiniTetalk-Single_fp16.safetensors", {}, "infinitetalk"),
            ("auto", "wan2.1_infiniteTalk_multi_fp16.safetensors", {}, "infinitetalk"),
            ("auto", "multitalk.safetensors", {"multitalk_family": "infinitetalk"}, "infinitetalk"),
            ("multitalk", "infinitetalk.safetensors", {"multitalk_family": "infinitetalk"}, "multitalk"),
        ],
    )
    def test_the_family_is_what_the_user_says_then_metadata_then_name(self, asked, name, metadata, family):
        from multitalk_nodes.comfy_bridge.weights import choose_family

        assert choose_family(asked, name, metadata).name == family

    def test_a_file_that_does_not_tell_its_family_is_not_guessed(self):
        from multitalk_nodes.comfy_bridge.weights import choose_family
        from multitalk_nodes.multitalk_core.errors import WeightsError

        with pytest.raises(WeightsError, match="Choose the family"):
            choose_family("auto", "audio_14B.safetensors", {})

    def test_a_renamed_copy_of_a_published_file_is_known_by_its_hash(self, tmp_path):
        import hashlib

        from multitalk_nodes.comfy_bridge.weights import choose_family
        from multitalk_nodes.multitalk_core.errors import WeightsError
        from multitalk_nodes.multitalk_core.upkeep.published import Manifest

        file = tmp_path / "audio_14B.safetensors"
        file.write_bytes(b"published")
        row = {"repository": "A/B", "path": "infinite.safetensors", "folder": "model_patches", "kind": "multitalk", "size": 9}
        row |= {"sha256": hashlib.sha256(b"published").hexdigest(), "family": "infinitetalk"}
        (tmp_path / "models.json").write_text(json.dumps({"files": [row], "presets": {}}))
        published = Manifest.load(tmp_path / "models.json")
        assert choose_family("auto", file.name, {}, file, published).name == "infinitetalk"
        file.write_bytes(b"otherwise")
        with pytest.raises(WeightsError, match="Choose the family"):
            choose_family("auto", file.name, {}, file, published)


def test_clip_sees_the_stretched_picture_through_cores_model(tiny, tmp_path):
    """Against core's own encode_image on a picture that is already 224×224, where only the preprocessing's rounding differs."""
    import comfy.clip_vision

    from multitalk_nodes.comfy_bridge.conditioning import encode_clip
    from multitalk_nodes.comfy_bridge.scene import Models, Scene

    config = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 3, "num_channels": 3, "image_size": 224, "patch_size": 56, "projection_dim": 16, "hidden_act": "gelu"}
    config |= {"layer_norm_eps": 1e-5, "initializer_range": 0.02, "num_positions": 17}
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = comfy.clip_vision.ClipVisionModel(str(tmp_path / "config.json"))
    clip.load_sd(tiny._fill(clip.model, 3, 0.05))
    picture = (torch.rand(1, 224, 224, 3, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    ours, core = encode_clip(clip, picture), clip.encode_image(picture, crop=False)
    assert ours.penultimate_hidden_states.shape == (1, 17, 32)
    torch.testing.assert_close(ours.penultimate_hidden_states, core.penultimate_hidden_states, atol=1e-3, rtol=1e-3)
    wide = encode_clip(clip, torch.rand(1, 64, 160, 3))
    assert wide.penultimate_hidden_states.shape == (1, 17, 32)
    fits = SimpleNamespace(model=SimpleNamespace(diffusion_model=SimpleNamespace(img_emb=SimpleNamespace(proj=[torch.nn.LayerNorm(32)]))))
    scene = Scene(Models(fits, None, None, [], [], clip_vision=clip), None)
    looks = []
    with clip.model.register_forward_pre_hook(lambda *_: looks.append(1)):
        seen = [each.see(SimpleNamespace(clip_picture=picture)) for each in (scene, scene)]
        scene.see(SimpleNamespace(clip_picture=1 - picture))
    assert len(looks) == 2, "the same picture is seen once"
    for again in seen:
        assert torch.equal(again.penultimate_hidden_states, ours.penultimate_hidden_states)


def test_a_watcher_keeps_the_positive_branch_of_its_block_and_step(comfy):
    from multitalk_nodes.comfy_bridge.label_map import MapRecorder

    maps = torch.arange(3 * 8.0).reshape(3, 8)
    options = {"sigmas": torch.tensor([0.9]), "block_index": 1, "grid_sizes": (2, 2, 2)}
    recorder = MapRecorder(1, 0.9)
    for other, branch in (({"block_index": 0}, 0), ({"sigmas": torch.tensor([0.9003])}, 0), ({}, 1), ({}, 2)):
        recorder.see({**options, **other}, branch, maps, torch.ones(3, 4))
        assert recorder.maps is None
    recorder.see(options, 0, maps, torch.ones(3, 4))
    assert torch.equal(recorder.maps, maps.reshape(3, 2, 2, 2)) and recorder.masks.shape == (3, 2, 2)
    recorder.see(options, 0, 0 * maps, torch.ones(3, 4))
    assert recorder.maps.any(), "the first evaluation counts"


@pytest.fixture
def output_folder(comfy, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def finished(folder, prefix):
    """The file that a finished video of that prefix becomes, relative to the output folder."""
    from multitalk_nodes.comfy_bridge.output import NumberedFile

    place = NumberedFile(prefix, ".mp4")
    assert not [path for path in folder.rglob("*") if path.is_file()], "nothing is left of the trial"
    partial = place.folder / "partial"
    partial.write_bytes(b"a video")
    out = place.keep(partial)
    assert out.read_bytes() == b"a video"
    return out.relative_to(folder).as_posix()


@pytest.mark.parametrize("prefix", ["", "  ", ".", "multitalk/video"])
def test_an_empty_prefix_is_the_default(output_folder, prefix):
    assert finished(output_folder, prefix) == "multitalk/video_00001_.mp4"


def test_a_name_is_as_long_as_the_disk_allows(output_folder):
    room = 255 - len("_00001_.mp4")
    assert finished(output_folder, "a/" + "n" * room) == f"a/{'n' * room}_00001_.mp4"


@pytest.mark.parametrize("prefix", ["n" * 245, "folder" * 50 + "/video", "日本語" * 50, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_at_once(output_folder, prefix):
    from multitalk_nodes.comfy_bridge.output import NumberedFile, OutputError

    with pytest.raises(OutputError, match=r"No file can be written as filename_prefix '.{1,41}' says \(.*Choose a shorter one"):
        NumberedFile(prefix, ".mp4")
    assert not list(output_folder.rglob("*.mp4"))


@pytest.mark.parametrize(("size", "expected"), [((65, 63), (64, 62)), ((64, 63), (64, 62)), ((64, 64), (64, 64))])
def test_pictures_of_odd_sides_are_made_even_and_that_is_said(size, expected):
    from multitalk_nodes.comfy_bridge.clip import decode_clip
    from multitalk_nodes.multitalk_core.notes import noting
    from multitalk_nodes.multitalk_core.people.speakers import Speaker
    from multitalk_nodes.multitalk_core.people.voices import Voices

    made = torch.rand(1, 5, *size, 3)
    vae = SimpleNamespace(latent_channels=16, latent_dim=3, decode=lambda samples: made)
    voices = Voices((Speaker(),), (), 5, torch.zeros(1, 3200), 16_000)
    with noting() as said:
        frames, _ = decode_clip({"samples": torch.zeros(1, 16, 2, 8, 8)}, vae, voices, 0.0)
    assert torch.equal(frames, made[0, :, : expected[0], : expected[1]])
    assert (said == []) if size == expected else f"Pictures of 63×{size[0]} became 62×64" in said[0]


def test_core_s_compiled_model_makes_the_same_with_every_conditioning_and_cache(tiny, wan, weights):
    """Core drops the guards on transformer_options: what was traced for one scene must not serve another. Without a compiler: eager."""
    pytest.importorskip("comfy_extras.nodes_torch_compile")
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    from multitalk_nodes.comfy_bridge.patches import patch_model
    from multitalk_nodes.comfy_bridge.step_cache import cache_steps
    from multitalk_nodes.multitalk_core.step_cache import TABLES, Rule

    made = TorchCompileModel.execute(wan, "eager")
    compiled = getattr(made, "args", made)[0]
    halves = tiny.halves(2)
    rule = Rule(0.2, TABLES["none"], 1, 0)
    for masks, speakers in ((halves, 2), (halves[[1, 0, 2]], 2), (None, 1)):
        for cache in (False, True):
            models = [patch_model(cache_steps(model, rule) if cache else model, weights, masks) for model in (wan, compiled)]
            expected, found = (run(tiny, guide(tiny, model, weights, 1.0, 3.0, speakers)) for model in models)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
