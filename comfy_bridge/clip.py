"""One clip in an ordinary graph: what MultiTalk Conditioning hands to any guider and sampler, and what comes back."""

from __future__ import annotations

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
from ..multitalk_core.people.voices import Voices
from ..multitalk_core.windows import Clip
from .conditioning import Conditioning, PictureError
from .scene import Models, fit_scene, make_room, whole_clip

PICTURE = "multitalk_picture"  # beside the latent's samples: what the decoder matches colours to


@dataclass(frozen=True)
class Prepared:
    """The four things that a sampler node takes."""

    model: comfy.model_patcher.ModelPatcher
    positive: Conditioning
    negative: Conditioning
    latent: dict[str, Any]


def prepare_clip(models: Models, voices: Voices, picture: Tensor, size: tuple[int, int], frames: int) -> Prepared:
    """Everything of a video's first clip, by its family's rules.

    Args:
        picture: [B, H, W, C]; the first is used, and what it shows is cropped to the size.
        size: width and height in pixels, rounded to multiples of 16; 0 follows the picture.
        frames: rounded up to 4n + 1.
    Raises:
        PictureError, SpeakerError, WeightsError: what cannot work, in the user's words.
    """
    scene, fit = fit_scene(models, voices, picture, *size)
    clip_frames = whole_clip(frames)
    clip = Clip(0, start=0, stop=clip_frames, drop=0, keep=min(voices.frames, clip_frames))
    _note_cut(voices, clip.keep)
    condition = condition_clip(scene, models.weights.family, clip, fit, None, voices.tracks)
    latent = {"samples": torch.zeros_like(condition.known_latent), PICTURE: fit}
    return Prepared(scene.listening_model(condition), *scene.conditionings(condition), latent)


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
    frames = [match_colours(take[:count], latent.get(PICTURE, take), colour_strength, make_room) for take in takes]
    samples = round(count / FPS * voices.rate) if voices.frames > count else voices.sound.shape[-1]
    waveform, rate = playable(voices.sound[:, :samples], voices.rate)
    if rate != voices.rate or waveform.shape[0] != voices.sound.shape[0]:
        note(
            f"The sound of {voices.sound.shape[0]} channels at {voices.rate} Hz became {waveform.shape[0]} at {rate} Hz, which video files "
            "can hold."
        )
    return torch.cat(frames), {"waveform": waveform.repeat(1, len(takes))[None], "sample_rate": rate}


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
