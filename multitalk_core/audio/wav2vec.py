"""Wav2Vec2 as MultiTalk reads it: every layer's hidden states at 25 frames a second.

The one difference from the published Wav2Vec2 forward: the 50 Hz convolution features are interpolated to the video's frame rate
*before* the feature projection and the transformer. Source: MeiGen-AI/MultiTalk@c1ad840 src/audio_analysis/wav2vec2.py.

Shapes: N samples at 16 kHz, P positions of the convolutions (50 Hz), F video frames (25 Hz), L layers, D hidden size.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clock import FPS, SAMPLE_RATE, embed_frames
from ..errors import AudioError, EncoderError
from ..notes import OnProgress
from ..windows import Embeds

WINDOW_FRAMES = 1500  # 60 s: up to here one pass, as published
CONTEXT_FRAMES = 250  # 10 s on each side of a window are computed and thrown away
CHUNK_POSITIONS = 500  # 10 s of convolution positions at a time, so that a long track never needs more memory
NORMALISE_EPSILON = 1e-7  # transformers Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm


@runtime_checkable
class AudioEncoder(Protocol):
    """Anything that turns a voice [N] at 16 kHz into embeddings [F, L, D] at 25 frames a second."""

    layers: int
    dim: int

    def encode(self, voice: Tensor, folder: Path | None = None, on_progress: OnProgress = ...) -> Embeds: ...


def normalise_samples(voice: Tensor) -> Tensor:
    """Zero mean and unit variance over the whole track, its silence included.

    Source: transformers Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm (do_normalize).
    """
    mean, deviation = _moments(voice)
    return (voice - mean) / deviation


def at_video_rate(features: Tensor, frames: int) -> Tensor:
    """Convolution features [C, P] at 50 Hz → [frames, C], linearly interpolated with aligned corners."""
    return F.interpolate(features[None], size=frames, mode="linear", align_corners=True)[0].T


class Wav2Vec2(nn.Module):
    """A Wav2Vec2 network with the published way of reading it.

    `network` needs the parts `feature_extractor.conv_layers`, `feature_projection` and `encoder` with `pos_conv_embed`,
    `layer_norm` and `layers`: transformers' model has them, from 4.50 to 5.x, and so has ComfyUI's. Its forward() is not called,
    because every version collects hidden states in another way (and 4.x draws from the global random generator there).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        stable_layer_norm: bool,
        do_normalize: bool,
        dim: int,
        layers: int,
        compute_device: torch.device | None = None,  # where it computes, if that is not where its weights are
    ) -> None:
        super().__init__()
        self.compute_device = compute_device
        self.network = network
        self.stable_layer_norm = stable_layer_norm
        self.do_normalize = do_normalize
        self.dim = dim
        self.layers = layers

    @torch.inference_mode()
    def encode(self, voice: Tensor, folder: Path | None = None, on_progress: OnProgress = lambda done, total: None) -> Embeds:
        """Embeddings of a whole track.

        Up to 60 s this is the single pass as published. A longer track goes through the transformer in windows of 60 s with 10 s
        of context on each side, normalised with the statistics of the whole track, and lands in a temporary file. Against the single
        pass that is 0.8 % (relative L2) away with the demo's encoder on 130 s of recorded speech and song.

        Args:
            voice: [N] float32 at 16 kHz.
            folder: where the temporary file of a long track goes; None is the system's.
            on_progress: called after every window of a long track, with frames.
        Returns:
            [F, L, D] float32: a Tensor, or StreamedEmbeds for a long track.
        """
        if voice.ndim != 1 or voice.numel() == 0:
            raise AudioError(f"The encoder got audio of shape {tuple(voice.shape)}; samples [N] of one voice were expected.")
        frames = embed_frames(voice.shape[0])
        if frames <= WINDOW_FRAMES:
            return self.encode_in_one(voice)
        embeds = StreamedEmbeds(self.layers, self.dim, folder)
        for block in self.encode_in_windows(voice, WINDOW_FRAMES, CONTEXT_FRAMES):
            embeds.append(block)
            on_progress(embeds.shape[0], frames)
        return embeds

    @torch.inference_mode()
    def encode_in_one(self, voice: Tensor) -> Tensor:
        """`forward`, without what gradients need."""
        return self(voice)

    def forward(self, voice: Tensor) -> Tensor:
        """The published single pass: [N] → [F, L, D]."""
        frames = embed_frames(voice.shape[0])
        voice = _at_least_one_frame(voice)
        samples = normalise_samples(voice) if self.do_normalize else voice
        return self._hidden_states(at_video_rate(self.conv_features(samples.to(self._device())), frames))

    @torch.inference_mode()
    def encode_in_windows(self, voice: Tensor, window: int, context: int) -> Iterator[Tensor]:
        """Blocks of embeddings in order, [≤ window − 2·context, L, D] each, from a track of any length in constant memory."""
        voice = _at_least_one_frame(voice)
        frames = embed_frames(voice.shape[0])
        features = _ConvFeatures(self, voice)
        step = window - 2 * context
        for first in range(0, frames, step):
            last = min(first + step, frames)
            begin, end = max(0, first - context), min(frames, last + context)
            hidden = self._hidden_states(features.at_frames(begin, end, frames))
            yield hidden[first - begin : last - begin]

    def conv_features(self, samples: Tensor) -> Tensor:
        """[N] samples, already normalised → [C, P] features at 50 Hz."""
        features = samples[None, None]
        for layer in self.conv_layers():
            features = layer(features)
        return features[0]

    def conv_layers(self) -> list[nn.Module]:
        return list(self.network.get_submodule("feature_extractor.conv_layers").children())

    def _hidden_states(self, features: Tensor) -> Tensor:
        """Interpolated features [F, C] → the transformer's states after every layer [F, L, D], on the CPU.

        A pre-norm ("stable layer norm") encoder normalises once more after its last layer, as transformers' hidden_states[-1].
        """
        encoder = self.network.get_submodule("encoder")
        norm = encoder.get_submodule("layer_norm")
        states = _first(self.network.get_submodule("feature_projection")(features[None]))
        states = states + encoder.get_submodule("pos_conv_embed")(states)
        if not self.stable_layer_norm:
            states = norm(states)
        collected = []
        for layer in encoder.get_submodule("layers").children():
            states = _first(layer(states))
            collected.append(states[0])
        if self.stable_layer_norm:
            collected[-1] = norm(collected[-1])
        embeds = torch.stack(collected, dim=1).float().cpu()
        if not embeds.isfinite().all():
            raise EncoderError("The speech encoder answers with NaN: its weights are damaged or incomplete. Download the file again.")
        return embeds

    def _device(self) -> torch.device:
        return self.compute_device or next(self.network.parameters()).device


class StreamedEmbeds:
    """Embeddings [F, L, D] in a temporary file, read by slices of frames: an hour of a base model is 3.3 GB.

    The file has no name that outlives the object. Plain reads, not a memory map: mapped pages would count as resident memory.
    """

    def __init__(self, layers: int, dim: int, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix="multitalk-embeds-")  # noqa: SIM115 - closed with the object
        self._lock = threading.Lock()
        self._frames, self._layers, self._dim = 0, layers, dim

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._frames, self._layers, self._dim))

    def append(self, block: Tensor) -> None:
        """Write [n, L, D] behind what is there."""
        with self._lock:
            self._file.seek(0, 2)
            self._file.write(block.contiguous().numpy().tobytes())
        self._frames += block.shape[0]

    def __getitem__(self, frames: slice) -> Tensor:
        first, last, step = frames.indices(self._frames)
        if step != 1:
            raise IndexError("StreamedEmbeds reads consecutive frames only.")
        rows = np.empty((max(0, last - first), self._layers, self._dim), dtype=np.float32)
        if not len(rows):
            return torch.from_numpy(rows)
        with self._lock:
            self._file.seek(first * rows[0].nbytes)
            self._file.readinto(memoryview(rows).cast("B"))  # type: ignore[attr-defined]
        return torch.from_numpy(rows)


class _ConvFeatures:
    """Convolution features of a long track, computed where they are needed, with the statistics of the whole track.

    The convolutions have no padding, so any stretch of positions can be computed exactly from its own samples. Two things look at
    the whole track: the input's mean and variance, and the group norm behind the first convolution.
    """

    def __init__(self, encoder: Wav2Vec2, voice: Tensor) -> None:
        self.encoder, self.voice = encoder, voice
        self.mean, self.deviation = _moments(voice) if encoder.do_normalize else (0.0, 1.0)
        convs = [layer.get_submodule("conv") for layer in encoder.conv_layers()]
        self.stride = math.prod(_only(conv.stride) for conv in convs)
        self.field = 1  # samples that one position sees
        for conv in reversed(convs):
            self.field = (self.field - 1) * _only(conv.stride) + _only(conv.kernel_size)
        self.positions = (voice.shape[0] - self.field) // self.stride + 1
        first = encoder.conv_layers()[0]
        grouped = isinstance(getattr(first, "layer_norm", None), nn.GroupNorm)
        self.group_moments = self._group_moments(first) if grouped else None

    def at_frames(self, begin: int, end: int, frames: int) -> Tensor:
        """Features [end − begin, C] at video frames begin…end of `frames`, linearly interpolated with aligned corners."""
        scale = (self.positions - 1) / max(1, frames - 1)
        where = torch.arange(begin, end, dtype=torch.float64) * scale
        left = where.floor().long().clamp(max=self.positions - 1)
        right = (left + 1).clamp(max=self.positions - 1)
        offset = int(left[0])
        features = self._between(offset, int(right[-1]) + 1)
        weight = (where - left).float().to(features.device)[:, None]
        return torch.lerp(features[left - offset], features[right - offset], weight)

    def _between(self, first: int, last: int) -> Tensor:
        """Features [last − first, C] of the positions first…last."""
        chunks = []
        for begin in range(first, last, CHUNK_POSITIONS):
            end = min(begin + CHUNK_POSITIONS, last)
            samples = self._samples(begin * self.stride, (end - 1) * self.stride + self.field)
            layers = self.encoder.conv_layers()
            features = samples[None, None]
            if self.group_moments is not None:
                features = self._first_with_track_statistics(layers.pop(0), features)
            for layer in layers:
                features = layer(features)
            chunks.append(features[0].T)
        return torch.cat(chunks)

    def _first_with_track_statistics(self, layer: nn.Module, samples: Tensor) -> Tensor:
        """The group norm has a group for every channel, so with statistics of its own it is a batch norm that learns nothing."""
        norm = cast(nn.GroupNorm, layer.get_submodule("layer_norm"))
        mean, variance = self.group_moments  # type: ignore[misc]
        values = layer.get_submodule("conv")(samples)
        weight, bias = norm.weight.to(values), norm.bias.to(values)  # ComfyUI may keep them in half precision, or on the CPU
        normal = F.batch_norm(values, mean.to(values), variance.to(values), weight, bias, eps=norm.eps)
        return F.gelu(normal)

    def _group_moments(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Mean and population variance [C] of the first convolution over the whole track, in float64 (Chan et al. 1979)."""
        conv = layer.get_submodule("conv")
        kernel, stride = _only(conv.kernel_size), _only(conv.stride)
        outputs = (self.voice.shape[0] - kernel) // stride + 1
        chunk = CHUNK_POSITIONS * self.stride // stride
        count, mean, spread = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for begin in range(0, outputs, chunk):
            end = min(begin + chunk, outputs)
            values = conv(self._samples(begin * stride, (end - 1) * stride + kernel)[None, None])[0].cpu().double()
            n, m = values.shape[1], values.mean(dim=1)
            spread = spread + ((values - m[:, None]) ** 2).sum(dim=1) + (m - mean) ** 2 * (count * n / (count + n))
            mean = mean + (m - mean) * (n / (count + n))
            count += n
        device = self.encoder._device()
        return mean.float().to(device), (spread / count).float().to(device)

    def _samples(self, first: int, last: int) -> Tensor:
        return ((self.voice[first:last].float() - self.mean) / self.deviation).to(self.encoder._device())


def _moments(voice: Tensor) -> tuple[float, float]:
    """Mean and √(population variance + ε) of a track in float64, a stretch at a time."""
    chunks = voice.split(1 << 20)
    mean = sum(float(chunk.double().sum()) for chunk in chunks) / voice.shape[0]
    variance = sum(float((chunk.double() - mean).square().sum()) for chunk in chunks) / voice.shape[0]
    return mean, math.sqrt(variance + NORMALISE_EPSILON)


def _at_least_one_frame(voice: Tensor) -> Tensor:
    """Zero samples up to one embedding (640 samples)."""
    missing = SAMPLE_RATE // FPS - voice.shape[0]
    return F.pad(voice, (0, missing)) if missing > 0 else voice  # padding with nothing would still copy a long track


def _first(output: Any) -> Tensor:
    """transformers 4 wraps what its modules return in tuples, 5 does not."""
    return output[0] if isinstance(output, tuple) else output


def _only(size: Any) -> int:
    return int(size[0])
