"""Audio encoders under ComfyUI's model manager: our own loader's, and core's AUDIO_ENCODER."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.audio_encoders.audio_encoders
import comfy.model_management
import comfy.model_patcher
import comfy.utils
from torch import Tensor

from ..multitalk_core.audio.wav2vec import Wav2Vec2
from ..multitalk_core.audio.wav2vec_files import build_encoder, read_encoder
from ..multitalk_core.errors import EncoderError, WeightsError
from ..multitalk_core.notes import OnProgress
from ..multitalk_core.weights.files import read_header
from ..multitalk_core.weights.identify import ENCODER_FILE, KINDS_IN_WORDS, identify
from ..multitalk_core.windows import Embeds
from .progress import interruptible_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManagedEncoder:
    """multitalk_core.audio.wav2vec.AudioEncoder that ComfyUI loads before it is used. Travels as AUDIO_ENCODER."""

    patcher: comfy.model_patcher.ModelPatcher
    network: Wav2Vec2

    @property
    def layers(self) -> int:
        return self.network.layers

    @property
    def dim(self) -> int:
        return self.network.dim

    def encode(self, voice: Tensor, folder: Path | None = None, on_progress: OnProgress | None = None) -> Embeds:
        """Embeddings [F, L, D] of a voice [N] at 16 kHz; progress goes to ComfyUI's bar by default."""
        # Whole, because modules without ComfyUI's casting cannot be split between two devices.
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.network.encode(voice, folder, on_progress or interruptible_bar())

    def encode_audio(self, audio: Tensor, sample_rate: int) -> dict[str, Any]:
        """What core's Audio Encoder Encode calls; it expects core's own network."""
        raise EncoderError("This encoder was loaded by MultiTalk Wav2Vec2 Loader. Connect it to MultiTalk Wav2Vec2 Embeds.")


def load_encoder(path: Path, do_normalize: bool | None = None) -> ManagedEncoder:
    """Load a Wav2Vec2 file, alone or of a Hugging Face folder.

    Raises:
        EncoderError: not a Wav2Vec2 encoder, not the one that MultiTalk was trained with, or damaged.
    """
    _check_file(path)
    network = build_encoder(read_encoder(path), do_normalize)
    patcher = comfy.model_patcher.CoreModelPatcher(
        network,
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    return ManagedEncoder(patcher, network)


def _check_file(path: Path) -> None:
    """Refuse another model's file by its header; the files beside it tell the parts of a folder."""
    if path.is_dir() or path.suffix != ".safetensors" or path.with_suffix(".safetensors.index.json").exists():
        return
    name = f"{path.parent.name}/{path.name}"
    try:
        found = identify(read_header(path), name)
    except WeightsError as error:
        raise EncoderError(str(error)) from error
    if found.kind != "wav2vec" or found.problem:
        value = found.problem if found.kind in ("wav2vec", "other") else None  # what is wrong with another model is no matter here
        value = value or f"is {KINDS_IN_WORDS.get(found.kind, 'another model')}, not a Wav2Vec2 encoder. Get {ENCODER_FILE}."
        raise EncoderError(f"'{path.name}' {value}")
    logger.info("%s: %s", path.name, found.note)


def as_encoder(audio_encoder: Any) -> ManagedEncoder:
    """Our own encoder as it is; core's Wav2Vec2 read in the published way.

    Raises:
        EncoderError: another kind of encoder (Whisper, for example).
    """
    if isinstance(audio_encoder, ManagedEncoder):
        return audio_encoder
    model = getattr(audio_encoder, "model", None)
    if not isinstance(model, comfy.audio_encoders.audio_encoders.Wav2Vec2Model):
        raise EncoderError(
            f"MultiTalk hears through Wav2Vec2, but the AUDIO_ENCODER is {type(model or audio_encoder).__name__}. "
            "Load, for example, wav2vec2-chinese-base_fp16.safetensors."
        )
    network = Wav2Vec2(
        model,
        stable_layer_norm=model.encoder.do_stable_layer_norm,
        do_normalize=model.do_normalize,
        dim=model.encoder.layer_norm.weight.shape[0],
        layers=len(model.encoder.layers),
        compute_device=audio_encoder.load_device,
    )
    return ManagedEncoder(audio_encoder.patcher, network)
