"""What stays the same for every clip of a video: models, prompts, the picture and who is where; and the checks that they fit together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import comfy.samplers
import torch
from torch import Tensor

from ..multitalk_core.generate import Condition, with_grey
from ..multitalk_core.notes import note
from ..multitalk_core.people.speakers import Speaker, called, capital, check_places, ref_target_masks, source_masks, token_masks
from ..multitalk_core.people.voices import Voices
from ..multitalk_core.sizes import BUCKETS, LATENT_STRIDE, TOKEN_STRIDE, fit_picture, opaque
from ..multitalk_core.windows import fitting_frames, latent_frames
from .conditioning import Conditioning, PictureError, at_second, check_clip, encode_clip, with_clip
from .patches import MotionNoise, check_model, hold_motion, motion_noise, patch_model
from .weights import MultiTalkWeights

logger = logging.getLogger(__name__)

LONGEST_STRIP = 16  # times as long as high
USUAL_PICTURE = max(height * width for _, height, width in BUCKETS["multitalk-480"])  # pixels; more than that is said, if unasked
LARGEST_PICTURE = 1920 * 1088  # pixels that are taken unasked; trained sizes have less than half

Made = TypeVar("Made")


class Remembered(Generic[Made]):
    """A function whose latest result is remembered, for when it is asked the same again: an image is the source of every clip."""

    def __init__(self, function: Callable[..., Made]) -> None:
        self._function = function
        self._kept: tuple[tuple[Any, ...], Made] | None = None

    def __call__(self, *given: Any) -> Made:
        if self._kept is None or not all(map(_same, given, self._kept[0])):
            made = self._function(*given)
            self._kept = tuple(g.clone() if isinstance(g, Tensor) else g for g in given), made
        return self._kept[1]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device) and torch.equal(one, other)
    return one == other


def make_room(memory: int) -> torch.device:
    """Free so many bytes on the device that ComfyUI computes on, by unloading models, and name the device."""
    device = comfy.model_management.get_torch_device()
    if not comfy.model_management.is_device_cpu(device):
        comfy.model_management.free_memory(memory, device)
    return device


def encode_with_grey(vae: Any, known: Tensor, frames: int) -> Tensor:
    """Known frames [n, H, W, 3] and grey up to `frames` through a comfy.sd.VAE → [1, C, T, h, w]."""
    return vae.encode(with_grey(known, frames))


@dataclass(frozen=True)
class Models:
    """What a node is given: the loaded models, and the prompts that ComfyUI has encoded."""

    model: comfy.model_patcher.ModelPatcher
    weights: MultiTalkWeights
    vae: Any  # comfy.sd.VAE
    positive: Conditioning
    negative: Conditioning
    clip_vision: comfy.clip_vision.ClipVisionModel | None = None
    clip_vision_output: comfy.clip_vision.Output | None = None  # in place of the model's, the same for every clip

    def check(self) -> None:
        """Raise PictureError or WeightsError if they do not fit together."""
        check_model(self.model, self.weights)
        expected = self.model.model.diffusion_model.text_dim
        for name, conditioning in (("positive", self.positive), ("negative", self.negative)):
            for text, _ in conditioning:
                if text.shape[-1] != expected:
                    raise PictureError(
                        f"The {name} prompt comes from another text encoder: {text.shape[-1]} numbers a word, but WAN takes {expected}. "
                        "Load umt5_xxl_fp8_e4m3fn_scaled.safetensors with type 'wan'."
                    )
        if self.clip_vision is None and self.clip_vision_output is None:
            logger.info("MultiTalk: no CLIP vision is connected; the published models always have it (clip_vision_h).")


@dataclass(frozen=True)
class Scene:
    """Models, prompts and places: what stays the same for every clip of a video."""

    models: Models
    masks: Tensor | None  # [S + 1, N] on the token grid; None for a single speaker
    motion_noise: MotionNoise = motion_noise
    encode_known: Callable[[Any, Tensor, int], Tensor] = field(
        default_factory=lambda: Remembered(encode_with_grey), repr=False, compare=False
    )
    look_at: Callable[[Any, Tensor], comfy.clip_vision.Output] = field(
        default_factory=lambda: Remembered(encode_clip), repr=False, compare=False
    )

    def encode(self, frames: Tensor) -> Tensor:
        """VAE: [F, H, W, 3] → [1, C, T, h, w].

        Raises:
            PictureError: a VAE of another model.
        """
        return self._checked(self.models.vae.encode(frames[..., :3]), frames.shape[0], frames)

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        """VAE: the source [1, H, W, 3] and grey up to `frames` → [1, C, T, h, w], made once for clips that have it in common.

        Raises:
            PictureError: a VAE of another model.
        """
        return self._checked(self.encode_known(self.models.vae, source[..., :3], frames), frames, source)

    def _checked(self, latent: Tensor, frames: int, shown: Tensor) -> Tensor:
        height, width = (side // LATENT_STRIDE for side in shown.shape[1:3])
        expected = (1, self.models.model.model.latent_format.latent_channels, latent_frames(frames), height, width)
        if latent.shape != expected:
            raise PictureError(
                f"The VAE makes latents of shape {tuple(latent.shape)}, but WAN 2.1 needs {expected}. Load wan_2.1_vae.safetensors."
            )
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """VAE: [1, C, T, h, w] → [F, H, W, 3]."""
        return self.models.vae.decode(latent).flatten(end_dim=-4)

    def see(self, condition: Condition) -> Any:
        """CLIP's view of the clip's picture, or None without CLIP vision."""
        seen = self.models.clip_vision_output
        if seen is None and self.models.clip_vision is not None:
            seen = self.look_at(self.models.clip_vision, condition.clip_picture)
        if seen is not None:
            check_clip(self.models.model, seen)
        return seen

    def conditionings(self, condition: Condition) -> tuple[Conditioning, Conditioning]:
        """Positive and negative that hold at the clip's time, with its picture, mask and voices."""
        tokens, null_tokens = self.models.weights.tokens(condition.windows)
        clip = (condition.known_latent, condition.known_latent_frames, self.see(condition), tokens, null_tokens)
        positive, negative = (at_second(prompt, condition.second) for prompt in (self.models.positive, self.models.negative))
        return with_clip(positive, *clip), with_clip(negative, *clip)

    def listening_model(self, condition: Condition) -> comfy.model_patcher.ModelPatcher:
        """The model with the audio patches, its first latents held where the family says so."""
        model = patch_model(self.models.model, self.models.weights, self.masks)
        return model if condition.motion is None else hold_motion(model, condition.motion, self.motion_noise)


def fit_scene(models: Models, voices: Voices, picture: Tensor, width: int, height: int) -> tuple[Scene, Tensor]:
    """What all clips have in common, and the picture [1, H, W, 3] at the video's size; everything is checked to fit together.

    Args:
        picture: [B, H, W, C]; the first is used, and what it shows is cropped to width × height.
        width, height: pixels, rounded to multiples of 16; 0 follows the picture.
    Raises:
        PictureError, SpeakerError, WeightsError: what cannot work, in the user's words.
    """
    models.check()
    picture = _one_picture(picture)
    models.weights.shape.check_encoder(*voices.tracks[0].shape[1:])
    height, width = _size(picture, height, width)
    _, tokens = _masks(voices.speakers, picture, height, width)
    _note_parts(voices.speakers)
    masks = tokens if len(voices.speakers) > 1 else None  # a single speaker needs none, because nobody else could be heard
    return Scene(models, masks), fit_picture(picture, height, width)


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
