"""Voices of other packs: the dictionary that WanVideoWrapper calls MULTITALK_EMBEDS, in and out.

{"audio_features": [per speaker float [F, L, D] at 25 frames a second], "audio_scale": float, "audio_cfg_scale": float,
 "ref_target_masks": None or [speakers, or speakers and the background, H, W]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..clock import FPS
from ..errors import SpeakerError
from ..notes import note
from .speakers import MAX_SPEAKERS, Speaker, source_masks
from .voices import Voices

TOLERANCE = 0.2  # s by which features and sound may differ: the wrapper rounds down


def to_wrapper(voices: Voices, size: tuple[int, int] | None, audio_scale: float = 1.0, audio_cfg_scale: float = 1.0) -> dict[str, Any]:
    """Our voices as WanVideoWrapper's samplers take them; where our speakers begin and end is already in the features.

    Args:
        size: (height, width) of the picture that masks and boxes belong to; None for a single speaker who needs none.
    Raises:
        SpeakerError: several speakers without a picture.
    """
    if size is None and len(voices.speakers) > 1:
        raise SpeakerError("Connect the picture: without it nobody can tell which speaker is where.")
    masks = None
    if size is not None and len(voices.speakers) > 1:
        spoken = source_masks(voices.speakers, *size)
        masks = torch.cat([spoken, 1 - spoken.amax(dim=0, keepdim=True)])
    features = [track[0 : track.shape[0]].float() for track in voices.tracks]
    return {"audio_features": features, "audio_scale": audio_scale, "audio_cfg_scale": audio_cfg_scale, "ref_target_masks": masks}


def from_wrapper(embeds: Mapping[str, Any], sound: Tensor, rate: int) -> Voices:
    """WanVideoWrapper's embeddings as our voices; its scales are not taken over (they are settings of MultiTalk Guider here).

    Args:
        sound: [C, N], what the video plays.
    Raises:
        SpeakerError: a dictionary without features, features of different lengths, or masks that do not fit them.
    """
    features = embeds.get("audio_features") if isinstance(embeds, Mapping) else None
    features = [features] if isinstance(features, Tensor) else features  # as the wrapper's silent embeddings have it
    if not isinstance(features, (list, tuple)) or not 1 <= len(features) <= MAX_SPEAKERS:
        raise SpeakerError(f"The embeddings have no 'audio_features' of 1 to {MAX_SPEAKERS} speakers. Connect MULTITALK_EMBEDS.")
    if any(not isinstance(track, Tensor) or track.ndim != 3 for track in features) or len({tuple(t.shape) for t in features}) > 1:
        shapes = [tuple(getattr(track, "shape", ())) for track in features]
        raise SpeakerError(f"The speakers' features have shapes {shapes}; [frames, layers, numbers], the same for all, was expected.")
    if not features[0].shape[0] or not all(torch.isfinite(track).all() for track in features):
        raise SpeakerError("The speakers' features are empty, or not numbers (NaN or infinite). Make them again.")
    seconds = sound.shape[-1] / rate
    if abs(features[0].shape[0] / FPS - seconds) > TOLERANCE:
        note(
            f"The embeddings last {features[0].shape[0] / FPS:.2f} s at {FPS} frames a second, but the audio {seconds:.2f} s. "
            f"Make them with fps {FPS}."
        )
    masks = embeds.get("ref_target_masks")
    if masks is not None and (not isinstance(masks, Tensor) or masks.ndim != 3 or masks.shape[0] not in (len(features), len(features) + 1)):
        raise SpeakerError(
            f"The masks have shape {tuple(getattr(masks, 'shape', ()))} for {len(features)} speakers; "
            "one for each (and one for the background) was expected."
        )
    speakers = tuple(Speaker(mask=None if masks is None else masks[i].float()) for i in range(len(features)))
    tracks = tuple(track.float().cpu() for track in features)
    return Voices(speakers, tracks, tracks[0].shape[0], sound, rate)
