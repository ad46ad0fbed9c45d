"""Files of Wav2Vec2 encoders: Hugging Face folders and single safetensors, in all their spellings.

A single file may carry its whole configuration in its metadata ("config"); without, it is read from the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EncoderError
from .wav2vec import Wav2Vec2

STANDARD_STRIDES = (5, 2, 2, 2, 2, 2, 2)  # Wav2Vec2 paper, section 4.2; shapes cannot tell strides
HEAD_DIM = 64  # of every published Wav2Vec2 (768/12, 1024/16)


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
    value = files.do_normalize if files.do_normalize is not None else config["feat_extract_norm"] == "layer"
    return Wav2Vec2(
        network.eval().requires_grad_(False),
        stable_layer_norm=stable,
        do_normalize=value if do_normalize is None else do_normalize,
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


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)})


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
