"""One step of denoising: counted at the true sizes, timed where there is a device, and what guidance asks for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.ldm.wan.model
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.ldm.wan import model_multitalk as core_multitalk

from ...comfy_bridge.conditioning import with_clip
from ...comfy_bridge.guider import MultiTalkGuider
from ...comfy_bridge.patches import patch_model
from ...multitalk_core.schedule import sigmas
from . import counted, paired
from .sized import SIZES, Size, Sized

SPEAKERS = (1, 2, 4)
CORE_SPEAKERS = (1, 2)  # what ComfyUI's own node knows
OVERRIDE = "optimized_attention_override"  # ComfyUI's key of transformer_options
FORMS = ((1.0, 1.0), (1.0, 2.0), (5.0, 1.0), (5.0, 4.0))  # text scale, audio scale; the first is one evaluation
TIMED = (FORMS[1], FORMS[3])  # of two evaluations and of three


def count_steps(size: Size) -> list[dict[str, Any]]:
    """Operations, memory and modelled time of one evaluation beside the bare one, on shapes alone; see `as_on_a_card`.

    All blocks are alike, so two models are counted, of one block and of two; the memory is the same of any number.
    """
    with counted.fake(), as_on_a_card():
        one, two = (Sized(replace(size, blocks=blocks), dtype=torch.bfloat16, filled=False) for blocks in (1, 2))

        def found(who: str, *speakers: int) -> counted.Counted:
            first, second = (counted.count(getattr(sized, who)(*speakers)) for sized in (one, two))

            def whole(one: float, two: float) -> float:
                return two + (size.blocks - 2) * (two - one)  # every further block takes what the second does

            return replace(
                second,
                operations=whole(first.operations, second.operations),
                attention_calls=whole(first.attention_calls, second.attention_calls),
                seconds=tuple(map(whole, first.seconds, second.seconds)),
            )

        for sized in (one, two):
            sized.extra = {OVERRIDE: counted.fused_attention}
        bare, rows = found("bare"), []
        for who, speakers in ways():
            ours = found(who, speakers)
            row = {
                "operations": ours.operations / bare.operations,
                "peak_memory": ours.peak_bytes / bare.peak_bytes,
                "largest_tensor": ours.largest_bytes / bare.largest_bytes,
                "modelled": [a / b for a, b in zip(ours.seconds, bare.seconds, strict=True)],
                "attention_calls": ours.attention_calls,
            }
            rows.append({"who": who, "speakers": speakers, **row, "bare": asdict(bare)})
    return rows


def time_steps(sized: Sized, rounds: int, compared: Sequence[tuple[str, int]] = ()) -> list[dict[str, Any]]:
    """The ratio of one evaluation to the bare one, timed in turn; on a card the memory too.

    Args:
        compared: whose patches, for how many speakers; all `ways` if empty, and bare against itself: what differs by chance.
    """
    named = {(who, speakers): getattr(sized, who)(speakers) for who, speakers in compared or ways()}
    bare, wait = sized.bare(), synchroniser(sized.device)
    if not compared:
        named = {("bare", 0): bare, **named}
    rows = [{"who": who, "speakers": n, **paired.compare(way, bare, rounds, wait)} for (who, n), way in named.items()]
    if sized.device.type == "cuda":
        needed = peak_on_card(bare)
        for row in rows:
            row["peak_memory"] = peak_on_card(named[row["who"], row["speakers"]]) / needed
    return rows


def ways() -> Iterator[tuple[str, int]]:
    """What is compared with the bare step: whose patches, for how many speakers."""
    yield from (("ours", speakers) for speakers in SPEAKERS)
    yield from (("core", speakers) for speakers in CORE_SPEAKERS)


def guided_steps(sized: Sized, rounds: int, forms: Sequence[tuple[float, float]] = FORMS) -> list[dict[str, Any]]:
    """A step in each form of guidance: its evaluations. Of those in TIMED, its time over the first form's, batched and one by one."""
    forwards: list[int] = []
    hook = sized.model.model.diffusion_model.register_forward_pre_hook(lambda _module, given: forwards.append(given[0].shape[0]))
    steps = {form: partial(one_step, sized, guider(sized, 2, *form)) for form in forms}
    one, wait, rows = steps[forms[0]], synchroniser(sized.device), []
    for form, step in steps.items():
        forwards.clear()
        step()
        row = {"text_scale": form[0], "audio_scale": form[1], "evaluations": sum(forwards), "forwards": len(forwards)}
        if form in TIMED:
            row["batched"] = paired.compare(step, one, rounds, wait)
            row["one_by_one"] = paired.compare(partial(without_memory, step), one, rounds, wait)
        rows.append(row)
    hook.remove()
    return rows


def guider(sized: Sized, speakers: int, text_scale: float, audio_scale: float) -> MultiTalkGuider:
    """As MultiTalk Guider makes it, with random conditioning."""
    latent = torch.randn(1, 16, *sized.size.latent)
    seen = SimpleNamespace(penultimate_hidden_states=sized.seen.float().cpu())
    null = sized.tokens(1).float().cpu()
    clip = (latent, 1, seen, sized.tokens(speakers).float().cpu(), null)
    positive, negative = (with_clip([[text.float().cpu(), {}]], *clip) for text in (sized.text, sized.text.flip(1)))
    patched = patch_model(sized.model, sized.weights, sized.masks(speakers) if speakers > 1 else None)
    return MultiTalkGuider(patched, positive, negative, text_scale, audio_scale)


def one_step(sized: Sized, guider: MultiTalkGuider) -> torch.Tensor:
    noise = torch.randn(1, 16, *sized.size.latent, generator=torch.Generator().manual_seed(0))
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas(1, 5.0), disable_pbar=True, seed=0)


def without_memory(step: Callable[[], Any]) -> Any:
    """As where ComfyUI finds no memory for two branches at once; everything stays loaded."""
    patcher = comfy.model_patcher.ModelPatcher
    before, patcher.get_free_memory = patcher.get_free_memory, lambda *_: 0
    try:
        return step()
    finally:
        patcher.get_free_memory = before


def let_go() -> None:
    """What nothing holds any more leaves the card; ComfyUI's models have cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchroniser(device: torch.device) -> Callable[[], Any]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def peak_on_card(compute: Callable[[], Any]) -> int:
    """Bytes that a computation needs beside what is there: weights and inputs."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    compute()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """RMS norm, the video's RoPE and core's audio attention are one kernel each, as on CUDA; on a CPU they make tensors in float32.

    So bare WAN needs as little memory as it does on a card, and what ours adds is not hidden behind it. For shapes only.
    """
    network, functional = comfy.ldm.wan.model, torch.nn.functional
    before = network.apply_rope1, functional.rms_norm, core_multitalk.optimized_attention
    network.apply_rope1 = functional.rms_norm = lambda x, *_, **__: x.clone()
    core_multitalk.optimized_attention = partial(counted.fused_attention, None)  # which is called without options, and so without OVERRIDE
    try:
        yield
    finally:
        network.apply_rope1, functional.rms_norm, core_multitalk.optimized_attention = before


def counted_sizes() -> dict[str, list[dict[str, Any]]]:
    """WAN 14B at both trained sizes, and what is timed on a CPU."""
    return {SIZES[name].name: count_steps(SIZES[name]) for name in ("480p", "720p", "cpu")}
