"""One clip in an ordinary graph: what MultiTalk Conditioning hands to any guider and sampler, and what comes back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ..multitalk_core.audio.sound import playable
from ..multitalk_core.clock import FPS
from ..multitalk_core.colour import match_colours
from ..multitalk_core.generate import condition_clip
from ..multitalk_core.notes import note
from ..multitalk_core.people.speakers import Speaker, called, capital, check_places, ref_target_masks, source_masks, token_masks
from ..multitalk_core.people.voices import Voices
from ..multitalk_core.sizes import BUCKETS, TOKEN_STRIDE, fit_picture, opaque
from ..multitalk_core.windows import Clip, fitting_frames
from .backend import Scene, device_with
from .conditioning import Conditioning, PictureError
from .patches import check_model
from .weights import MultiTalkWeights

logger = logging.getLogger(__name__)

LONGEST_STRIP = 16  # times as long as high
USUAL_PICTURE = max(height * width for _, height, width in BUCKETS["multitalk-480"])  # pixels; more than that is said, if unasked
LARGEST_PICTURE = 1920 * 1088  # pixels that are taken unasked; trained sizes have less than half
PICTURE = "multitalk_picture"  # beside the latent's samples: what the decoder matches colours to


@dataclass(frozen=True)
class Prepared:
    """The four things that a sampler node takes."""

    model: comfy.model_patcher.ModelPatcher
    positive: Conditioning
    negative: Conditioning
    latent: dict[str, Any]


def prepare_clip(
    model: comfy.model_patcher.ModelPatcher,
    weights: MultiTalkWeights,
    voices: Voices,
    picture: Tensor,
    vae: Any,
    positive: Conditioning,
    negative: Conditioning,
    width: int,
    height: int,
    frames: int,
    clip_vision: Any = None,
    clip_vision_output: Any = None,
) -> Prepared:
    """Everything of a video's first clip, by its family's rules.

    Args:
        picture: [B, H, W, C]; the first is used, and what it shows is cropped to width × height.
        width, height: pixels, rounded to multiples of 16; 0 follows the picture.
        frames: rounded up to 4n + 1.
    Raises:
        PictureError, SpeakerError, WeightsError: what cannot work, in the user's words.
    """
    scene, fit = fit_scene(model, weights, voices, picture, vae, positive, negative, width, height, clip_vision, clip_vision_output)
    clip_frames = whole_clip(frames)
    clip = Clip(0, start=0, stop=clip_frames, drop=0, keep=min(voices.frames, clip_frames))
    _note_cut(voices, clip.keep)
    scene = scene.at(clip.keep / 2 / FPS)
    condition = condition_clip(scene, weights.family, clip, fit, None, voices.tracks)
    latent = {"samples": torch.zeros_like(condition.known_latent), PICTURE: fit}
    return Prepared(scene.listening_model(condition), *scene.conditionings(condition), latent)


def fit_scene(
    model: comfy.model_patcher.ModelPatcher,
    weights: MultiTalkWeights,
    voices: Voices,
    picture: Tensor,
    vae: Any,
    positive: Conditioning,
    negative: Conditioning,
    width: int,
    height: int,
    clip_vision: Any = None,
    clip_vision_output: Any = None,
) -> tuple[Scene, Tensor]:
    """What all clips have in common, and the picture [1, H, W, 3] at the video's size; everything is checked to fit together."""
    check_model(model, weights)
    check_prompts(model, positive, negative)
    if clip_vision is None and clip_vision_output is None:
        logger.info("MultiTalk: no CLIP vision is connected; the published models always have it (clip_vision_h).")
    picture = _one_picture(picture)
    weights.shape.check_encoder(*voices.tracks[0].shape[1:])
    height, width = _size(picture, height, width)
    _, tokens = _masks(voices.speakers, picture, height, width)
    _note_parts(voices.speakers)
    masks = tokens if len(voices.speakers) > 1 else None  # a single speaker needs none, because nobody else could be heard
    scene = Scene(model, weights, vae, positive, negative, masks, clip_vision, clip_vision_output)
    return scene, fit_picture(picture, height, width)


def fit_speakers(speakers: Sequence[Speaker], picture: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the model will see: the picture [1, H, W, 3], the masks [S, h, w] in the source, the classes [S + 1, N] on the token grid."""
    picture = _one_picture(picture)
    height, width = _size(picture, height, width)
    masks, tokens = _masks(speakers, picture, height, width)
    return fit_picture(picture, height, width), masks, tokens


def whole_clip(frames: int) -> int:
    """Frames of a clip as the VAE can hold them."""
    if (fitting := fitting_frames(frames)) != frames:
        note(f"{frames} frames were rounded up to {fitting}: the VAE makes 4n + 1.")
    return fitting


def decode_clip(latent: dict[str, Any], vae: Any, voices: Voices, colour_strength: float) -> tuple[Tensor, dict[str, Any]]:
    """The finished pictures [F, H, W, 3] and their AUDIO: both end where the voices end, or where the clip does.

    The takes of a latent batch follow one another, each with its sound.
    """
    channels = getattr(vae, "latent_channels", latent["samples"].shape[1])
    if channels != latent["samples"].shape[1] or getattr(vae, "latent_dim", 3) != 3:
        raise PictureError("The VAE is not the one that WAN 2.1's latents are made with. Load wan_2.1_vae.safetensors.")
    takes = [_even(vae.decode(samples[None]).flatten(end_dim=-4)) for samples in latent["samples"]]
    if colour_strength and PICTURE not in latent:
        raise PictureError(
            "The latent has lost the picture that colours are matched to. Connect the sampler's latent directly, or set colour to 0."
        )
    count = min(voices.frames, takes[0].shape[0])
    _note_cut(voices, count)
    frames = [match_colours(take[:count], latent.get(PICTURE, take), colour_strength, device_with) for take in takes]
    samples = round(count / FPS * voices.rate) if voices.frames > count else voices.sound.shape[-1]
    waveform, rate = playable(voices.sound[:, :samples], voices.rate)
    if rate != voices.rate or waveform.shape[0] != voices.sound.shape[0]:
        note(
            f"The sound of {voices.sound.shape[0]} channels at {voices.rate} Hz became {waveform.shape[0]} at {rate} Hz, which video files "
            "can hold."
        )
    return torch.cat(frames), {"waveform": waveform.repeat(1, len(takes))[None], "sample_rate": rate}


def _masks(speakers: Sequence[Speaker], picture: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Masks at the source's size, and classes on the token grid."""
    for speaker in speakers:
        if speaker.mask is not None and speaker.mask.shape != picture.shape[1:3]:
            (mask_height, mask_width), (height_there, width_there) = speaker.mask.shape, picture.shape[1:3]
            note(f"A mask of {mask_width}×{mask_height} pixels was scaled and cropped to the picture's {width_there}×{height_there}.")
    masks = source_masks(speakers, *picture.shape[1:3])
    tokens = token_masks(ref_target_masks(masks, height, width))
    check_places(tokens)
    return masks, tokens


def _even(frames: Tensor) -> Tensor:
    """Frames [F, H, W, 3] without a last row or column that would make a side odd: H.264 files, and so Save Video, cannot hold them."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        note(f"Pictures of {width}×{height} became {width // 2 * 2}×{height // 2 * 2}, because video files need even sides.")
    return frames[:, : height // 2 * 2, : width // 2 * 2]


def _note_cut(voices: Voices, frames: int) -> None:
    if voices.frames > frames:
        note(
            f"The voices last {voices.frames / FPS:.2f} s, but this clip only {frames / FPS:.2f} s: the rest of the audio is cut. "
            "MultiTalk Long Video makes all of it."
        )


def _note_parts(speakers: Sequence[Speaker]) -> None:
    """Says who has no place of their own."""
    without = [called(speakers, i) for i, speaker in enumerate(speakers) if speaker.mask is None and speaker.box is None]
    if len(speakers) > 1 and without:
        note(
            f"{capital(' and '.join(without))} {'have' if len(without) > 1 else 'has'} neither a box nor a mask: an equal part of the "
            "picture, counted from the left, is theirs. If a face is elsewhere, draw a box over it."
        )


def check_picture(picture: Tensor) -> None:
    """Raises PictureError for pictures [B, H, W, C] that no face can be in."""
    height, width = picture.shape[1:3]
    if min(height, width) < TOKEN_STRIDE or max(height, width) > LONGEST_STRIP * min(height, width):
        raise PictureError(
            f"The picture has {width}×{height} pixels; at least {TOKEN_STRIDE}×{TOKEN_STRIDE} were expected, and no "
            f"side more than {LONGEST_STRIP} times the other."
        )


def check_prompts(model: comfy.model_patcher.ModelPatcher, positive: Conditioning, negative: Conditioning) -> None:
    """Raises PictureError for prompts of another text encoder than WAN's."""
    expected = model.model.diffusion_model.text_dim
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for text, _ in conditioning:
            if text.shape[-1] != expected:
                raise PictureError(
                    f"The {name} prompt comes from another text encoder: {text.shape[-1]} numbers a word, but WAN takes {expected}. "
                    "Load umt5_xxl_fp8_e4m3fn_scaled.safetensors with type 'wan'."
                )


def _one_picture(picture: Tensor) -> Tensor:
    check_picture(picture)
    if picture.shape[0] > 1:
        note(f"The first of {picture.shape[0]} pictures is used.")
    if picture.shape[-1] > 3 and (picture[0, ..., 3] < 1).any():
        note("What is see-through in the picture was made white.")
    return opaque(picture[:1])


def _size(picture: Tensor, height: int, width: int) -> tuple[int, int]:
    """What the user asked for in multiples of 16; a side that is 0 follows the picture."""
    if not height and not width and picture.shape[1] * picture.shape[2] > LARGEST_PICTURE:
        raise PictureError(
            f"The picture has {picture.shape[2]}×{picture.shape[1]} pixels, far more than a clip can. Connect width and height of "
            "MultiTalk Image Size."
        )
    asked, ratio = bool(height or width), picture.shape[2] / picture.shape[1]
    if not height:
        height = round(width / ratio) if width else picture.shape[1]
    height, width = _side("height", height), _side("width", width or round(height * ratio))
    if not asked and height * width > USUAL_PICTURE:
        note(
            f"The video is as large as the picture, {width}×{height} pixels: {height * width / (640 * 640):.1f} times 640×640, and it "
            "takes more than that many times as long. For less, connect width and height of MultiTalk Image Size."
        )
    return height, width


def _side(name: str, pixels: int) -> int:
    rounded = max(TOKEN_STRIDE, round(pixels / TOKEN_STRIDE) * TOKEN_STRIDE)
    if rounded != pixels:
        note(f"The {name} of {pixels} pixels was rounded to {rounded}, a multiple of {TOKEN_STRIDE}.")
    return rounded
