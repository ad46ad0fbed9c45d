"""Wav2Vec2 as MultiTalk reads it: every layer's hidden states at 25 frames a second.

The one difference from the published Wav2Vec2 forward: the 50 Hz convolution features are interpolated to the video's frame rate
*before* the feature projection and the transformer. Source: MeiGen-AI/MultiTalk@c1ad840 src/audio_analysis/wav2vec2.py.

Shapes: N samples at 16 kHz, P positions of the convolutions (50 Hz), F video frames (25 Hz), L layers, D hidden size.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .audio import SAMPLE_RATE, AudioError

FPS = 25  # video frames a second, the models' training rate
WINDOW_FRAMES = 1500  # 60 s: up to here one pass, as published
CONTEXT_FRAMES = 250  # 10 s on each side of a window are computed and thrown away
CHUNK_POSITIONS = 500  # 10 s of convolution positions at a time, so that a long track never needs more memory
STANDARD_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # Wav2Vec2 paper, section 4.2; shapes cannot tell strides
HEAD_DIM = 64  # of every published Wav2Vec2 (768/12, 1024/16)
NORMALISE_EPSILON = 1e-7  # transformers Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm


class EncoderError(ValueError):
    """The encoder's files cannot be used; the message says what to change."""


Progress = Callable[[int, int], None]  # (frames done, frames in all); may raise to stop


class Embeds(Protocol):
    """Embeddings of one track: [F, L, D], sliced by frame. A Tensor is one; so is a file on disk."""

    @property
    def shape(self) -> torch.Size: ...
    def __getitem__(self, frames: slice, /) -> Tensor: ...


@runtime_checkable
class AudioEncoder(Protocol):
    """Anything that turns a voice [N] at 16 kHz into embeddings [F, L, D] at 25 frames a second."""

    layers: int
    dim: int

    def encode(self, voice: Tensor, folder: Path | None = None, progress: Progress = ...) -> Embeds: ...


def embed_frames(samples: int) -> int:
    """Embeddings of a track of `samples`, never none: int(seconds · 25) in floating point, as get_embedding() computes it."""
    return max(1, int(samples / SAMPLE_RATE * FPS))


def video_frames(samples: int, rate: int = SAMPLE_RATE) -> int:
    """Frames of the finished video: it ends with the audio, to the nearest frame, and has at least one."""
    return max(1, round(samples / rate * FPS))


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
    def encode(self, voice: Tensor, folder: Path | None = None, progress: Progress = lambda done, total: None) -> Embeds:
        """Embeddings of a whole track.

        Up to 60 s this is the single pass as published. A longer track goes through the transformer in windows of 60 s with 10 s
        of context on each side, normalised with the statistics of the whole track, and lands in a temporary file. Against the single
        pass that is 0.8 % (relative L2) away with the demo's encoder on 130 s of recorded speech and song.

        Args:
            voice: [N] float32 at 16 kHz.
            folder: where the temporary file of a long track goes; None is the system's.
            progress: told after every window of a long track.
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
            progress(embeds.shape[0], frames)
        return embeds

    @torch.inference_mode()
    def encode_in_one(self, voice: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class EncoderFiles:
    """What was found of an encoder: its tensors, and what the files say about it."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None  # transformers' config.json, or "config" in the safetensors metadata
    do_normalize: bool | None  # None: the files do not say
    name: str


def read_encoder(path: Path) -> EncoderFiles:
    """Read a single safetensors file, or the model of a Hugging Face folder.

    A file named model*.safetensors with a config.json beside it is such a folder's; its preprocessor_config.json is read, and with a
    model.safetensors.index.json all its parts.

    Raises:
        EncoderError: not there, a pickle, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        path = next(iter(sorted(path.glob("model*.safetensors"))), path)
    folder = path.parent if path.name.startswith("model") and (path.parent / "config.json").exists() else None
    sharded = folder is not None and (folder / "model.safetensors.index.json").exists()
    files = sorted(path.parent.glob("model*.safetensors")) if sharded else [path]
    if not files or not files[0].exists() or files[0].suffix != ".safetensors":
        raise EncoderError(
            f"No safetensors weights in '{path.name}'. Expected a .safetensors file or a Hugging Face folder that has one; "
            "pickled files (.bin, .pt) are not opened because they can run code."
        )
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    try:
        for file in files:
            with safe_open(str(file), framework="pt") as handle:
                metadata.update(handle.metadata() or {})
                tensors.update({key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118 — not a dict
        config = json.loads(metadata["config"]) if "config" in metadata else None
        do_normalize = config.get("do_normalize") if config else None
        if folder is not None:
            config = _json(folder / "config.json") or config
            do_normalize = (_json(folder / "preprocessor_config.json") or {}).get("do_normalize", do_normalize)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EncoderError(f"'{path.name}' is damaged or not a safetensors file ({error}). Download it again.") from error
    return EncoderFiles(tensors, config, do_normalize, path.name)


def build_encoder(files: EncoderFiles, do_normalize: bool | None = None) -> Wav2Vec2:
    """Make the network of transformers' Wav2Vec2Model in float32 and fill it; every tensor is checked.

    Args:
        do_normalize: overrides what the files say. When they say nothing, False for group-norm feature extractors (as
            chinese-wav2vec2-base) and True for layer-norm ones.
    Raises:
        EncoderError: not a Wav2Vec2, or tensors missing or of the wrong shape.
    """
    tensors = _plain_keys(files.tensors)
    network = _empty_network(dict(files.config or infer_config(tensors, files.name)))
    config = network.config.to_dict()  # with transformers' defaults for what the files leave out
    expected = network.state_dict()
    _use_parametrized_weight_norm(tensors, expected)
    tensors.setdefault("masked_spec_embed", torch.zeros(config["hidden_size"]))  # training only
    missing = [key for key in expected if key not in tensors]
    if missing:
        raise EncoderError(f"'{files.name}' lacks {len(missing)} tensors of a Wav2Vec2 encoder, the first is '{missing[0]}'.")
    if unknown := [key for key in tensors if key not in expected]:
        raise EncoderError(
            f"'{files.name}' has '{unknown[0]}', which its configuration does not: it is incomplete, or another kind of encoder."
        )
    for key, tensor in expected.items():
        if tensors[key].shape != tensor.shape:
            raise EncoderError(
                f"'{files.name}': tensor '{key}' has shape {tuple(tensors[key].shape)}, but the configuration says {tuple(tensor.shape)}."
            )
    network.load_state_dict({key: tensors[key].float() for key in expected}, assign=True)
    stable = bool(config["do_stable_layer_norm"])
    told = files.do_normalize if files.do_normalize is not None else config["feat_extract_norm"] == "layer"
    return Wav2Vec2(
        network.eval().requires_grad_(False),
        stable_layer_norm=stable,
        do_normalize=told if do_normalize is None else do_normalize,
        dim=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
    )


def infer_config(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """transformers' configuration from the shapes of a published Wav2Vec2 (seven convolutions, head dim 64).

    A layer-norm feature extractor goes with a pre-norm transformer in every published model.
    """
    depth = _count(tensors, "feature_extractor.conv_layers.")
    layers = _count(tensors, "encoder.layers.")
    position = tensors.get(
        "encoder.pos_conv_embed.conv.weight_v", tensors.get("encoder.pos_conv_embed.conv.parametrizations.weight.original1")
    )
    if depth != len(STANDARD_STRIDES) or layers == 0 or position is None:
        raise EncoderError(
            f"'{name}' is not a Wav2Vec2 encoder that can be read without a configuration: {depth} convolutions and {layers} "
            "transformer layers were found, 7 and at least 1 were expected. Choose a wav2vec2 file, for example "
            "wav2vec2-chinese-base_fp16.safetensors."
        )
    feed_forward = "encoder.layers.0.feed_forward.intermediate_dense.weight"
    weights = [f"feature_extractor.conv_layers.{i}.conv.weight" for i in range(depth)]
    if absent := [key for key in (*weights, feed_forward) if key not in tensors]:
        raise EncoderError(f"'{name}' lacks '{absent[0]}' of a Wav2Vec2 encoder. The file is incomplete; get it again.")
    convs = [tensors[key] for key in weights]
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    hidden = position.shape[0]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // HEAD_DIM),
        "intermediate_size": tensors[feed_forward].shape[0],
        "conv_dim": [conv.shape[0] for conv in convs],
        "conv_kernel": [conv.shape[2] for conv in convs],
        "conv_stride": list(STANDARD_STRIDES),
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in tensors,
        "feat_extract_norm": "layer" if layer_norm else "group",
        "do_stable_layer_norm": layer_norm,
        "num_conv_pos_embeddings": position.shape[2],
        "num_conv_pos_embedding_groups": hidden // position.shape[1],
    }


def _empty_network(config: dict[str, Any]) -> Any:
    try:
        from transformers import Wav2Vec2Config, Wav2Vec2Model
    except ImportError as error:
        raise ImportError("Wav2Vec2 needs transformers: pip install transformers") from error
    for key in ("feat_extract_activation", "hidden_act"):
        if config.get(key, "gelu") != "gelu":
            raise EncoderError(f"The encoder's configuration has {key} '{config[key]}'; only 'gelu' is known.")
    # The flags that only matter in training are left at their defaults: the network is never trained here.
    known = Wav2Vec2Config(
        **{k: v for k, v in config.items() if k not in ("do_normalize", "architectures", "model_type", "dtype", "torch_dtype")}
    )
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):  # no memory for weights that are replaced, no trace in the global generator
        return Wav2Vec2Model(known)


def _plain_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the bare encoder: ForCTC and ForPreTraining files have a prefix, and heads that are not needed."""
    roots = ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed")
    plain = {key.removeprefix("wav2vec2."): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in plain.items() if key.startswith(roots)}


def _use_parametrized_weight_norm(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Both spellings of the positional convolution's weight norm, to the one that this torch and transformers have."""
    prefix = "encoder.pos_conv_embed.conv."
    spellings = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))
    for pair in spellings:
        for old, new in (pair, pair[::-1]):
            if prefix + old in tensors and prefix + new in expected:
                tensors[prefix + new] = tensors.pop(prefix + old)


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


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


def _first(output: Any) -> Tensor:
    """transformers 4 wraps what its modules return in tuples, 5 does not."""
    return output[0] if isinstance(output, tuple) else output


def _only(size: Any) -> int:
    return int(size[0])


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
