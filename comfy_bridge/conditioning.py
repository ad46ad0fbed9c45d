"""What a clip is conditioned on, in the form that ComfyUI's WAN model takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.clip_vision
import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ..multitalk_core.errors import MultiTalkError, SpeakerError
from ..multitalk_core.sizes import LATENT_STRIDE, clip_input
from ..multitalk_core.video.prompts import Prompt
from ..multitalk_core.windows import whole_frames
from .patches import AUDIO, NULL, listens

NULL_AUDIO = "multitalk_null_audio"  # beside the voices, for the guider
SECONDS = "multitalk_seconds"  # beside a prompt that does not hold all the time: from when and until when

Conditioning = list[Any]  # ComfyUI's: [[tensor, {…}], …]


class PictureError(MultiTalkError, ValueError):
    """The picture, or what looks at it, cannot be used; the message says what to change."""


def with_clip(
    conditioning: Conditioning, known_latent: Tensor, known_latent_frames: int, clip_vision_output: Any, tokens: Tensor, null_tokens: Tensor
) -> Conditioning:
    """A copy of a prompt's conditioning that carries one clip's picture, mask and voices.

    Args:
        known_latent: [1, C, T, h, w] as the VAE gives it.
        known_latent_frames: how many of its first frames are known.
        clip_vision_output: of `encode_clip`, or None.
        tokens, null_tokens: [1, T, S · M, C] and [1, T, M, C] of MultiTalkWeights.tokens.
    """
    mask = torch.ones_like(known_latent[:, :1])  # 1 is unknown here; core turns it round for the model
    mask[:, :, :known_latent_frames] = 0
    speakers = tokens.shape[2] // null_tokens.shape[2]
    values = {"concat_latent_image": known_latent, "concat_mask": mask, NULL_AUDIO: null_tokens.repeat(1, 1, speakers, 1)}
    if clip_vision_output is not None:
        values["clip_vision_output"] = clip_vision_output
    return [[text, _hearing({**extra, **values}, tokens, null=False)] for text, extra in conditioning]


def with_null_audio(conditioning: Conditioning) -> Conditioning:
    """The same conditioning with null audio in place of the voices, of the same shape, so that ComfyUI can ask for both at once."""
    return [[text, _hearing(extra, extra[NULL_AUDIO], null=True) if NULL_AUDIO in extra else extra] for text, extra in conditioning]


def check_prepared(model: comfy.model_patcher.ModelPatcher, prompts: Mapping[str, Conditioning]) -> None:
    """Raises SpeakerError unless model and prompts come from MultiTalk Conditioning: else nobody would talk, without a word."""
    bare = ["model"] * (not listens(model))
    bare += [name for name, prompt in prompts.items() if any(NULL_AUDIO not in extra for _, extra in prompt)]
    if bare:
        raise SpeakerError(
            f"{' and '.join(bare).capitalize()} did not go through MultiTalk Conditioning, so nobody would talk. Connect the model, "
            "positive and negative of the same MultiTalk Conditioning."
        )


def check_latent(latent: Tensor, prepared: Sequence[Mapping[str, Any]]) -> None:
    """Raises PictureError for a latent [B, C, T, h, w] of another size or length than what MultiTalk Conditioning prepared."""
    for extra in prepared:
        known = extra.get("concat_latent_image")
        if known is not None and known.shape[-3:] != latent.shape[-3:]:
            raise PictureError(
                f"The latent is for {_extent(latent)}, but MultiTalk Conditioning prepared {_extent(known)}. Connect its own "
                "latent, and choose size and length there."
            )


def _extent(latent: Tensor) -> str:
    frames, height, width = latent.shape[-3:]
    return f"{LATENT_STRIDE * width}×{LATENT_STRIDE * height} pixels and {whole_frames(frames)} frames"


def by_time(clip: comfy.sd.CLIP, prompts: Sequence[Prompt]) -> Conditioning:
    """The prompts through a text encoder; each knows when it holds."""
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in dict.fromkeys(prompt.text for prompt in prompts)}
    return [[text, {**extra, SECONDS: (prompt.start, prompt.stop)}] for prompt in prompts for text, extra in encoded[prompt.text]]


def at_second(conditioning: Conditioning, second: float) -> Conditioning:
    """What holds at a time of the video: of a schedule's prompts one, of anything else all."""
    always = (0.0, math.inf)
    return [entry for entry in conditioning if entry[1].get(SECONDS, always)[0] <= second < entry[1].get(SECONDS, always)[1]]


def encode_clip(clip_vision: comfy.clip_vision.ClipVisionModel, picture: Tensor) -> comfy.clip_vision.Output:
    """CLIP's penultimate hidden states of a picture [1, H, W, 3], preprocessed as published (core crops and antialiases)."""
    comfy.model_management.load_models_gpu([clip_vision.patcher])
    with torch.inference_mode():
        last, penultimate, embeds, _ = clip_vision.model(
            pixel_values=clip_input(picture).to(clip_vision.load_device), intermediate_output=-2
        )
    output = comfy.clip_vision.Output()
    output["last_hidden_state"] = last.cpu()
    output["penultimate_hidden_states"] = penultimate.cpu()
    output["image_embeds"] = embeds.cpu()
    return output


def check_clip(model: comfy.model_patcher.ModelPatcher, seen: comfy.clip_vision.Output) -> None:
    """Raises PictureError for the features of another CLIP vision model than WAN's."""
    width, expected = seen.penultimate_hidden_states.shape[-1], model.model.diffusion_model.img_emb.proj[0].weight.shape[0]
    if width != expected:
        raise PictureError(f"The CLIP vision model gives {width} features, but WAN takes {expected}. Load clip_vision_h.safetensors.")


def _hearing(extra: dict[str, Any], tokens: Tensor, null: bool) -> dict[str, Any]:
    """model_conds is what core itself adds per conditioning; a tensor put there reaches the model as a keyword, batch on dim 0."""
    heard = {AUDIO: comfy.conds.CONDRegular(tokens), NULL: comfy.conds.CONDRegular(torch.tensor([float(null)]))}
    return {**extra, "model_conds": {**extra.get("model_conds", {}), **heard}}
