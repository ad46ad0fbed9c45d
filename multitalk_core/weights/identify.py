"""Which model a weights file holds, by the names and shapes in its header; and why it cannot be what it was taken for.

The keys of each kind are those that its public code loads: WAN 2.1 and its VAE (Wan-Video/Wan2.1 wan/modules), MultiTalk
(MeiGen-AI/MultiTalk wan/modules/multitalk_model.py), Wav2Vec2 (transformers), CLIP and umt5 (ComfyUI comfy/sd.py, clip_vision.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from .header import Header, TensorEntry
from .layouts import plain_key

BLOCK = re.compile(r"blocks\.(\d+)\.audio_cross_attn\.")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.")  # transformers' and diffusers' names of parts
AUDIO_FILE = "wan2.1_infiniteTalk_single_fp16.safetensors, or multitalk.safetensors"
WAN_FILE = "wan2.1_i2v_480p_14B_fp16.safetensors"
ENCODER_FILE = "wav2vec2-chinese-base_fp16.safetensors"
TEXT_FILE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
CLIP_FILE = "clip_vision_h.safetensors"
VAE_FILE = "wan_2.1_vae.safetensors"
INSTEAD = {
    "multitalk": AUDIO_FILE,
    "wan21": WAN_FILE,
    "wav2vec": ENCODER_FILE,
    "vae": VAE_FILE,
    "clip": CLIP_FILE,
    "text_encoder": TEXT_FILE,
}
PUBLISHED = 5120  # width of WAN 14B, for which the published audio weights are
SMALLER = {1536: "1.3B", 3072: "5B"}  # published, with audio weights of no one's (Wan-Video/Wan2.1 and Wan2.2, wan/configs)
UMT5_WORDS = 256384  # of umt5 (google/umt5-xxl, config.json); T5 has 32128
OTHER_UMT5 = {512: "umt5-small", 768: "umt5-base", 1024: "umt5-large", 2048: "umt5-xl"}  # by width; umt5-xxl has 4096
VIT_H = 1280  # width of CLIP ViT-H (ComfyUI comfy/clip_vision_config_h.json)
# What another file is called in a sentence
KINDS_IN_WORDS = {
    "multitalk": "MultiTalk's or InfiniteTalk's audio weights (for MultiTalk Model Loader)",
    "wan21": "a WAN model (for Load Diffusion Model)",
    "wav2vec": "a Wav2Vec2 encoder (for MultiTalk Wav2Vec2 Loader)",
    "vae": "a VAE",
    "clip": "a CLIP vision model",
    "text_encoder": "a text encoder",
    "lora": "a LoRA (for a LoRA loader, on the WAN model)",
}
# What else a merged or look-alike file has
OTHER_TALKERS = (
    (".audio_cross_attn.q_norm.", "LongCat-Video-Avatar"),
    (".audio_modulation.", "LongCat-Video-Avatar"),
    ("vace_blocks.", "a VACE model"),
)


@dataclass(frozen=True)
class Found:
    """What a file is."""

    kind: str  # multitalk, wan21, wav2vec, vae, clip, text_encoder, lora, or other
    note: str = ""  # what is worth knowing: how its numbers are stored, which size
    problem: str | None = None  # why it is of no use in its own place, and the file to get instead


class Incomplete(str):
    """A problem of a file that lacks a part: another copy of it helps."""


Tensors = Mapping[str, TensorEntry]


def identify(header: Header, name: str) -> Found:
    """Tell a file's kind.

    Args:
        name: the file's name, which tells parts of a larger file.
    """
    tensors = {plain_key(key): entry for key, entry in header.tensors.items()}
    kind, item, problem = next(((kind, *judge(tensors)) for kind, fits, judge in KINDS if fits(tensors)), ("other", "", None))
    if kind == "wav2vec" and problem is None:
        item, problem = _which_wav2vec(header, name.lower(), item)
    if (part := PART.search(PurePath(name).name)) and int(part[2]) > 1:
        problem = Incomplete(f"is part {int(part[1])} of {int(part[2])}. All parts together are the model: get a file that is whole.")
    if kind == "other" and problem is None:
        first = ", ".join(f"'{key}'" for key in list(tensors)[:2]) or "nothing"
        problem = f"is none of the models that talking video needs (it holds {first}, …)."
    return Found(kind, "; ".join(filter(None, (item, _stored(header)))), problem)


def _stored(header: Header) -> str:
    """How most of the numbers are stored."""
    sizes: dict[str, int] = {}
    for entry in header.tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.stop - entry.start
    most = max(sizes, key=lambda dtype: sizes[dtype], default="")
    scaled = any(key.endswith((".scale_weight", ".weight_scale", "._scale", "scaled_fp8")) for key in header.tensors)
    return f"{most}, scaled" if scaled and most in ("F8_E4M3", "F8_E5M2", "I8") else most


def _is_lora(tensors: Tensors) -> bool:
    return any(re.search(r"\.(lora_(down|up|A|B)|diff|diff_b)(\.|$)", key) for key in tensors)


def _lora(_tensors: Tensors) -> tuple[str, str | None]:
    return "a LoRA", None


def _multitalk(tensors: Tensors) -> tuple[str, str | None]:
    other = next((name for part, name in OTHER_TALKERS if any(part in key or key.startswith(part) for key in tensors)), None)
    if other:
        return "", f"is {other}, another model than MultiTalk and InfiniteTalk. Get {AUDIO_FILE}."
    blocks = {int(m[1]) for key in tensors if (m := BLOCK.match(key))}
    if "audio_proj.proj1.weight" not in tensors and "audio_proj.proj1.weight._data" not in tensors:
        return "", Incomplete(f"has MultiTalk's blocks without its audio projection: it is incomplete. Get {AUDIO_FILE}.")
    if blocks != set(range(len(blocks))) or not blocks:
        return "", Incomplete(f"has MultiTalk's audio projection with {len(blocks)} of its blocks: it is incomplete. Get {AUDIO_FILE}.")
    return f"{len(blocks)} blocks" + (", merged with a WAN model" if _has_wan(tensors) else ""), None


def _has_wan(tensors: Tensors) -> bool:
    return any(key.startswith("blocks.0.self_attn.") for key in tensors) and any(key.startswith("patch_embedding.") for key in tensors)


def _wan(tensors: Tensors) -> tuple[str, str | None]:
    entry = tensors.get("patch_embedding.weight")
    channels = entry.shape[1] if entry and len(entry.shape) == 5 else 0
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    width = _size(tensors, "blocks.0.self_attn.q.weight", "blocks.0.self_attn.q.weight._data")
    note = f"{blocks} blocks of {width}" if width else f"{blocks} blocks"
    if any(".audio_cross_attn_wrapper." in key for key in tensors):
        return note, f"is HuMo, another talker. MultiTalk needs WAN 2.1 image-to-video: get {WAN_FILE}."
    if any(key.startswith("vace_") for key in tensors):
        return note, f"is WAN VACE. MultiTalk needs WAN 2.1 image-to-video: get {WAN_FILE}."
    if not any(key.startswith("img_emb.") for key in tensors) or channels not in (0, 36):
        return note, f"is WAN without image input (text-to-video, or WAN 2.2). MultiTalk needs WAN 2.1 image-to-video: get {WAN_FILE}."
    if width in SMALLER:
        return note, f"is WAN {SMALLER[width]}. The published audio weights are for WAN 2.1 image-to-video 14B: get {WAN_FILE}."
    return note + ("" if width in (0, PUBLISHED) else f"; the published audio weights are for {PUBLISHED}"), None


def _wav2vec(tensors: Tensors) -> tuple[str, str | None]:
    layers = {m[1] for key in tensors if (m := re.search(r"encoder\.layers\.(\d+)\.", key))}
    weight = next((e for key, e in tensors.items() if key.endswith("encoder.layers.0.attention.q_proj.weight")), None)
    hidden = weight.shape[0] if weight else 0
    note = f"{len(layers)} layers × {hidden}"
    if hidden == 1024:
        return note, f"is wav2vec2-large ({note}). The published weights listen with chinese-wav2vec2-base (12 × 768): get {ENCODER_FILE}."
    return note, None


def _which_wav2vec(header: Header, name: str, text: str) -> tuple[str, str | None]:
    """chinese-wav2vec2-base and wav2vec2-base-960h have the same shapes; only the second was trained to write letters."""
    if "960h" in name or any(key.startswith("lm_head.") for key in header.tensors):
        return text, f"is a speech recogniser such as wav2vec2-base-960h; the lips would follow it badly. Get {ENCODER_FILE}."
    if "chinese" not in name and "multitalk" not in name:
        text += "; chinese-wav2vec2-base and base-960h cannot be told apart by their shapes: the SHA-256 tells"
    return text, None


def _size(tensors: Tensors, *keys: str, axis: int = 0) -> int:
    """Of the first of these tensors that is there, whatever stands before its name; 0 if none is, or it has no such axis."""
    for key in keys:
        for name, entry in tensors.items():
            if name == key or name.endswith("." + key):
                return entry.shape[axis] if len(entry.shape) > axis else 0
    return 0


def _vae(tensors: Tensors) -> tuple[str, str | None]:
    channels = _size(tensors, "encoder.conv1.weight", axis=1)
    if channels in (0, 3):
        return "", None
    which = "WAN 2.2's VAE" if channels == 12 else f"a VAE of {channels} input channels"
    return "", f"is {which}. WAN 2.1 needs its own: get {VAE_FILE}."


def _clip(tensors: Tensors) -> tuple[str, str | None]:
    inside = ("class_embedding", "position_embedding.weight", "patch_embedding.bias")
    keys = ("visual.class_embedding", *(f"vision_model.embeddings.{key}" for key in inside))
    width = next((entry.shape[-1] for key in keys for name, entry in tensors.items() if name.endswith(key) and entry.shape), 0)
    if width in (0, VIT_H):
        return "", None
    return f"width {width}", f"is another vision model than CLIP ViT-H (its width is {width}, not {VIT_H}). Get {CLIP_FILE}."


def _text_encoder(tensors: Tensors) -> tuple[str, str | None]:
    keys = ("shared.weight", "token_embedding.weight", "token_embd.weight")
    words, width = _size(tensors, *keys), _size(tensors, *keys, axis=1)
    if words not in (0, UMT5_WORDS):
        which = "T5" if words == 32128 else "another text encoder"
        return f"{words} words", f"is {which}, not umt5-xxl ({words} words, not {UMT5_WORDS}). Get {TEXT_FILE}."
    if width in OTHER_UMT5:
        return f"width {width}", f"is {OTHER_UMT5[width]}, not umt5-xxl. Get {TEXT_FILE}."
    if any(key.endswith("token_embedding.weight") for key in tensors):  # ComfyUI comfy/sd.py, detect_te_model
        return "", f"is umt5-xxl with WAN's own names for its tensors, which Load CLIP does not know. Get {TEXT_FILE}."
    return "", None


def _has(*parts: str) -> Callable[[Tensors], bool]:
    return lambda tensors: all(any(part in key for key in tensors) for part in parts)


# In this order: a merged file has WAN's keys, too.
KINDS: tuple[tuple[str, Callable[[Tensors], bool], Callable[[Tensors], tuple[str, str | None]]], ...] = (
    ("lora", _is_lora, _lora),
    ("multitalk", lambda t: any(key.startswith("audio_proj.proj1") or BLOCK.match(key) for key in t), _multitalk),
    ("wan21", _has_wan, _wan),
    ("wav2vec", _has("feature_extractor.conv_layers.", "encoder.layers."), _wav2vec),
    ("clip", _has("vision_model.encoder.layers."), _clip),
    ("clip", _has("visual.transformer."), _clip),
    ("vae", _has("decoder.middle.0.residual.", "encoder.conv1."), _vae),
    ("text_encoder", _has("encoder.block.0.layer.0.SelfAttention.", "shared.weight"), _text_encoder),
    ("text_encoder", _has("token_embedding.weight", "blocks.0.attn.", "blocks.0.ffn."), _text_encoder),
    ("text_encoder", _has("enc.blk.0.attn_q.", "token_embd."), _text_encoder),
)
