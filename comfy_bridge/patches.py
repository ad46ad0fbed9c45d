"""MultiTalk on ComfyUI's own WAN model: two attention patches, one wrapper that brings each call its audio.

All state of a call is in that call's transformer_options; the objects here are never written to after they were made.

Core's TorchCompileModel drops every guard on transformer_options, so a graph that was traced through what reads them would go on with the
first call's masks and branches. What does is `untraced`; the model around it is compiled as ever.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..multitalk_core.errors import SpeakerError, WeightsError
from ..multitalk_core.generate import Motion
from ..multitalk_core.model import audio_positions, reference_attention_map, speaker_positions
from ..multitalk_core.schedule import renoise
from ..multitalk_core.windows import whole_frames
from .weights import MultiTalkWeights

AUDIO = "audio_embed"  # the one name that core's context windows slice, time on dim 1
NULL = "multitalk_null"  # beside it: 1 for null audio, which is not routed to anybody; 0, or without it, voices
CALL = "multitalk"  # key of transformer_options
KEY = "multitalk"  # of our wrappers
RECORD = "multitalk_record"  # key of transformer_options: who watches the maps, as label_map.py does

untraced = torch.compiler.disable
untraced_itself = torch.compiler.disable(recursive=False)  # for a wrapper: what it calls is traced

MotionNoise = Callable[[torch.Size, float, int], Tensor]


@dataclass
class Call:
    """What one forward of the WAN model hears."""

    audio: Tensor  # [B, T, S · M, C]
    heads: int  # of the WAN model
    routed: tuple[int, ...] = ()  # which of the batch hear several voices, so that each token must know which one
    masks: Tensor | None = None  # [S + 1, N]
    audio_labels: Tensor | None = None  # [B, S · M]
    labels: Tensor | None = None  # [B, T · N], from this block's self-attention to its audio attention


def patch_model(
    model: comfy.model_patcher.ModelPatcher, weights: MultiTalkWeights, masks: Tensor | None
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that listens to the audio in its conditioning.

    Args:
        masks: [S + 1, N] on the token grid, background last; None for a single speaker.
    Raises:
        WeightsError: not a WAN 2.1 image-to-video model, or one of another size.
    """
    check_model(model, weights)
    if listens(model):
        raise WeightsError(
            "The MODEL already listens to voices: it went through MultiTalk Conditioning before. Connect the MODEL from before that node."
        )
    patched = model.clone()
    patched.set_model_patch(_SpeakerMap(), "attn1_patch")
    patched.set_model_patch(_AudioAttention(weights), "attn2_patch")
    wrapper = _BringAudio(weights, masks, model.model.diffusion_model.num_heads)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
    return patched


def hold_motion(model: comfy.model_patcher.ModelPatcher, motion: Motion, noise: MotionNoise) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model whose first latent frames are held to `motion` in every evaluation, with whatever guider or sampler.

    Args:
        noise: (shape, σ, seed) → noise for a level: `motion_noise`, or that of a recorded run.
    """
    held, kind = model.clone(), comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    held.add_wrapper_with_key(kind, KEY, _HoldMotion(motion, noise))
    others = held.wrappers[kind]
    held.wrappers[kind] = {KEY: others.pop(KEY), **others}  # outermost: what LazyCache reuses must not let the frames go
    return held


def listens(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a model went through `patch_model`."""
    return bool(model.wrappers.get(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, {}).get(KEY))


def check_model(model: comfy.model_patcher.ModelPatcher, weights: MultiTalkWeights) -> None:
    """Raises WeightsError unless the model is WAN 2.1 image-to-video of the weights' size."""
    base, wan = model.model, getattr(model.model, "diffusion_model", None)
    if not isinstance(base, comfy.model_base.WAN21) or not getattr(base, "image_to_video", False) or wan.img_emb is None:
        kind = " without image input (text-to-video, or WAN 2.2)" if isinstance(base, comfy.model_base.WAN21) else ""
        raise WeightsError(
            f"MultiTalk needs a WAN 2.1 image-to-video model, but the MODEL is {type(base).__name__}{kind}. "
            "Load, for example, wan2.1_i2v_480p_14B_fp16.safetensors."
        )
    weights.shape.check_model(wan.dim, len(wan.blocks))


def motion_noise(shape: torch.Size, sigma: float, seed: int) -> Tensor:
    """Fresh noise for every noise level, from (seed, σ) alone, so that a step can be made again by itself."""
    digest = hashlib.sha256(b"motion" + struct.pack("<qd", seed % (1 << 63), sigma)).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


def options_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """transformer_options among a DIFFUSION_MODEL wrapper's arguments: a dictionary of this call's own. The wrapper came out of it."""
    return next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "wrappers" in a)


class _BringAudio:
    """DIFFUSION_MODEL wrapper: from the model's keyword to this call's own transformer_options."""

    def __init__(self, weights: MultiTalkWeights, masks: Tensor | None, heads: int) -> None:
        self._weights, self._masks, self._heads = weights, masks, heads

    @untraced_itself
    def __call__(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        audio = kwargs.pop(AUDIO, None)
        if audio is None:
            raise WeightsError(
                "The model listens to audio, but a conditioning has none. Use both the positive and the negative output of "
                "MultiTalk Conditioning."
            )
        if audio.shape[1] != x.shape[2]:
            raise WeightsError(
                f"The latent is {whole_frames(x.shape[2])} frames long, but MultiTalk Conditioning prepared "
                f"{whole_frames(audio.shape[1])}. Connect its own latent, and make it longer or shorter there."
            )
        options = options_of(args, kwargs)
        call = options[CALL] = Call(audio, self._heads)  # with nothing that leads back to the options, or they would outlive the call
        speakers = self._weights.adapter.speakers_in(audio)
        null = [0.0] * audio.shape[0] if (found := kwargs.pop(NULL, None)) is None else found.tolist()
        if speakers > 1 and not all(null):
            if self._masks is None or self._masks.shape[0] != speakers + 1:
                raise SpeakerError(f"{speakers} voices are heard, but there are no masks for {speakers} speakers and the background.")
            call.routed = tuple(row for row, is_null in enumerate(null) if not is_null)
            call.masks = self._masks.to(x.device)
            positions = audio_positions(speakers, self._weights.shape.context_tokens, x.device)
            call.audio_labels = (1 - torch.tensor(null, device=x.device))[:, None] * positions  # null audio is at 0, and so is who hears it
        return executor(x, *args, **kwargs)


def _video_attention(options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention that ComfyUI or a node (by transformer_options) chose for the video, [B, H, n, d]."""
    return optimized_attention(q, k, v, heads=q.shape[1], skip_reshape=True, skip_output_reshape=True, transformer_options=options)


class _SpeakerMap:
    """attn1 patch: which speaker each token belongs to, from the block's own q and k. Leaves the attention's output alone."""

    @untraced
    def __call__(self, args: dict[str, Any]) -> Tensor:
        options = args["transformer_options"]
        call: Call = options[CALL]
        if call.masks is not None:
            frames, *grid = options["grid_sizes"]
            if call.masks.shape[1] != grid[0] * grid[1]:
                raise SpeakerError(
                    f"The speakers' masks are for {call.masks.shape[1]} tokens a frame, but the video has {grid[1]}×{grid[0]}. "
                    "Make the latent with MultiTalk Conditioning, and do not restrict the conditioning to an area."
                )
            q, k = args["q"], args["k"]
            call.labels = q.new_zeros(q.shape[:2], dtype=torch.float32)
            for row in call.routed:  # one by one: the map's attention takes as much memory as q, and only for one
                maps = reference_attention_map(q[row : row + 1], k[row : row + 1], call.masks)
                call.labels[row] = speaker_positions(maps)[0]
                if (recorder := options.get(RECORD)) is not None:
                    branch = options["cond_or_uncond"][row * len(options["cond_or_uncond"]) // q.shape[0]]
                    recorder.see(options, branch, maps[0], call.masks)
        return args["x"]


class _AudioAttention:
    """attn2 patch, between text cross-attention and feed-forward: exactly the official slot."""

    def __init__(self, weights: MultiTalkWeights) -> None:
        self._weights = weights

    @untraced
    def __call__(self, args: dict[str, Any]) -> Tensor:
        options, x = args["transformer_options"], args["x"]
        call: Call = options[CALL]
        block = self._weights.adapter.blocks[options["block_index"]]
        labels, call.labels = call.labels, None
        return block(x, call.audio.to(x.dtype), call.heads, labels, call.audio_labels, partial(_video_attention, options))

    def models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """Tells the manager to load the weights along with the model."""
        return [self._weights.patcher]


class _HoldMotion:
    """PREDICT_NOISE wrapper: the model sees the motion latents in place, and the sampler's aim for them is the clean latent.

    For Euler this is the published loop: what stands in those frames between two evaluations is never read, and the last step
    lands on the aim.
    """

    def __init__(self, motion: Motion, noise: MotionNoise) -> None:
        self._motion, self._noise = motion, noise

    def __call__(self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
        clean = executor.class_obj.inner_model.process_latent_in(self._motion.latent.to(x))
        clean = clean.expand(x.shape[0], -1, -1, -1, -1)
        held = clean
        if self._motion.noised:
            sigma = float(timestep.flatten()[0])
            held = renoise(clean, self._noise(self._motion.latent.shape, sigma, seed or 0).to(x), sigma)
        count = clean.shape[2]
        denoised = executor(torch.cat([held, x[:, :, count:]], dim=2), timestep, model_options, seed)
        return torch.cat([clean, denoised[:, :, count:]], dim=2)
