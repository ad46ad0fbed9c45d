"""Writes audio weights in every published layout, at small sizes, from one set of weights. What proves a layout: docs/guide/weights.md."""

import numpy as np
import torch
from safetensors.torch import save_file

from multitalk_nodes.multitalk_core.model import AdapterShape, MultiTalkAdapter
from multitalk_nodes.tests.support.tiny import _fill

# rows of 256 numbers, the longest block of GGUF
SHAPE = AdapterShape(dim=256, blocks=2, audio_features=256, intermediate=256, token_dim=256, context_tokens=2)
E4M3_MAX, E5M2_MAX = 448.0, 57344.0
K = 256


def weights(seed: int = 1, scale: float = 0.05) -> dict[str, torch.Tensor]:
    return _fill(MultiTalkAdapter(SHAPE, device="meta"), seed, scale)


def is_matrix(key: str) -> bool:
    """A layer's weight in a block: what the published files keep in few bits."""
    return ".audio_cross_attn." in key and key.endswith(".weight")


def meigen(tensors):
    """MeiGen's multitalk.safetensors: fp32, and 2 bytes for the norms (by the file's size)."""
    return {key: tensor.bfloat16() if ".norm_x." in key else tensor for key, tensor in tensors.items()}


def fp16(tensors):
    """Kijai's and Comfy-Org's: the blocks' matrices in fp16; biases, norms and the audio projection in fp32 (by the files' sizes)."""
    return {key: tensor.half() if is_matrix(key) else tensor for key, tensor in tensors.items()}


def fp16_multi(tensors):
    """The same for several speakers: the norms in fp16, too (by the file's size)."""
    return {key: tensor.half() if is_matrix(key) or ".norm_x." in key else tensor for key, tensor in tensors.items()}


def all_in(dtype):
    return lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()}


def fp8(dtype):
    return lambda tensors: {key: tensor.to(dtype) if is_matrix(key) else tensor for key, tensor in tensors.items()}


def scaled(dtype, largest, name="scale_weight", marks=None):
    """One scale for each matrix, which makes its largest number the format's largest."""

    def write(tensors):
        out = dict(marks or {})
        for key, tensor in tensors.items():
            if is_matrix(key):
                scale = tensor.abs().max() / largest
                out[key], out[f"{key.removesuffix('weight')}{name}"] = (tensor / scale).to(dtype), scale
            else:
                out[key] = tensor
        return out

    return write


def comfy_quant(tensors):
    """ComfyUI's present spelling (comfy/utils.py, convert_old_quants): a note of JSON beside every scale."""
    out = scaled(torch.float8_e4m3fn, E4M3_MAX, "weight_scale")(tensors)
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return out | {key.replace("weight_scale", "comfy_quant"): note for key in out if key.endswith("weight_scale")}


def quanto(dtype, largest, merged=True):
    """optimum-quanto's, as MeiGen's script loads it: a scale for every row, and WAN beside it in one file."""

    def write(tensors):
        out = {}
        for key, tensor in tensors.items():
            if key.endswith(".weight") and tensor.ndim == 2:
                scale = tensor.abs().amax(dim=1, keepdim=True) / largest
                data = (tensor / scale).round() if dtype is torch.int8 else tensor / scale
                layer = key.removesuffix("weight")
                out |= {f"{key}._data": data.to(dtype), f"{key}._scale": scale}
                out |= {f"{layer}input_scale": torch.ones(()), f"{layer}output_scale": torch.ones(())}
            else:
                out[key] = tensor
        if merged:
            out |= {"patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2), "img_emb.proj.0.weight": torch.zeros(4)}
            out |= {"blocks.0.self_attn.q.weight._data": torch.zeros(4, 4, dtype=dtype)}
            out |= {"blocks.0.self_attn.q.weight._scale": torch.ones(4, 1)}
        return out

    return write


def prefixed(tensors):
    """As other programs save a part of a whole model."""
    return {f"diffusion_model.{key}".replace(".audio_proj.", ".multitalk_audio_proj."): tensor for key, tensor in fp16(tensors).items()}


SAFETENSORS = {
    "MeiGen fp32": (meigen, 2.0**-8),
    "Kijai and Comfy-Org fp16, one speaker": (fp16, 2.0**-11),
    "Kijai and Comfy-Org fp16, several speakers": (fp16_multi, 2.0**-11),
    "fp16 throughout": (all_in(torch.float16), 2.0**-11),
    "bf16 throughout": (all_in(torch.bfloat16), 2.0**-8),
    "Kijai fp8_e4m3fn": (fp8(torch.float8_e4m3fn), 2.0**-3),  # without a scale, numbers below 2⁻⁶ lose more than the format's half step
    "Kijai fp8_e4m3fn scaled": (
        scaled(torch.float8_e4m3fn, E4M3_MAX, marks={"scaled_fp8": torch.empty(0).to(torch.float8_e4m3fn)}),
        2.0**-4,
    ),
    "fp8_e5m2 scaled": (scaled(torch.float8_e5m2, E5M2_MAX), 2.0**-3),
    "ComfyUI's quantisation notes": (comfy_quant, 2.0**-4),
    "MeiGen int8, merged with WAN": (quanto(torch.int8, 127), 2.0**-6),
    "MeiGen fp8, merged with WAN": (quanto(torch.float8_e4m3fn, E4M3_MAX), 2.0**-4),
    "int8, the audio part alone": (quanto(torch.int8, 127, merged=False), 2.0**-6),
    "with other programs' prefixes": (prefixed, 2.0**-11),
}
# GGUF's type: relative error of normally distributed numbers, at most
GGUF = {"Q8_0": 0.01, "Q4_0": 0.12, "Q4_1": 0.1, "Q5_0": 0.06, "Q5_1": 0.05, "Q4_K": 0.12, "Q5_K": 0.06, "Q6_K": 0.03}


def write(path, layout: str, tensors=None) -> None:
    if layout in GGUF:
        write_gguf(path, tensors or weights(), layout)
    else:
        out = SAFETENSORS[layout][0](tensors or weights())
        save_file({key: tensor.contiguous().clone() for key, tensor in out.items()}, path)


def write_gguf(path, tensors, kind: str) -> None:
    """As city96's converter does: matrices in blocks, all else in fp32 or fp16."""
    import gguf

    writer = gguf.GGUFWriter(path, "wan")
    quantised = gguf.GGMLQuantizationType[kind]
    for key, tensor in tensors.items():
        if is_matrix(key) or (key.startswith("audio_proj.proj") and key.endswith("weight")):
            writer.add_tensor(key, packed(tensor.numpy(), kind), raw_dtype=quantised)
        else:
            writer.add_tensor(key, tensor.numpy() if tensor.ndim == 1 else tensor.half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Rows of blocks [O, bytes]. The package gguf packs the simple formats; for the others it only unpacks."""
    import gguf

    if kind in K_QUANTS:
        return K_QUANTS[kind](numbers.reshape(-1, K)).reshape(numbers.shape[0], -1)
    return gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])


def _halves(numbers):
    return numbers.astype(np.float16).reshape(-1, 1).view(np.uint8)


def _k_with_minima(most):
    """Q4_K and Q5_K: eight groups of 32 with a scale and a minimum of 6 bits each."""

    def pack(blocks):
        groups = blocks.reshape(-1, 8, 32)
        lowest = np.minimum(groups.min(axis=2), 0)
        steps = (groups.max(axis=2) - lowest) / most
        d, dmin = (steps.max(axis=1) / 63).astype(np.float16), ((-lowest).max(axis=1) / 63).astype(np.float16)
        scales = np.ceil(steps / d[:, None].astype(np.float32)).clip(1, 63).astype(np.uint8)
        minima = np.round(-lowest / np.maximum(dmin[:, None].astype(np.float32), 1e-12)).clip(0, 63).astype(np.uint8)
        step = (scales * d[:, None].astype(np.float32))[:, :, None]
        numbers = np.round((groups + (minima * dmin[:, None].astype(np.float32))[:, :, None]) / step).clip(0, most).astype(np.uint8)
        found = np.concatenate(
            [
                (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6),
                (minima[:, :4] & 63) | ((minima[:, 4:] >> 4) << 6),
                (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4),
            ],
            axis=1,
        )
        pairs = numbers.reshape(-1, 4, 2, 32)
        low = ((pairs[:, :, 0] & 15) | ((pairs[:, :, 1] & 15) << 4)).reshape(-1, 128)
        fifth = np.zeros((len(blocks), 32), np.uint8)
        for group in range(8):
            fifth |= (numbers[:, group] >> 4) << group
        parts = [_halves(d), _halves(dmin), found, *([fifth] if most == 31 else []), low]
        return np.concatenate(parts, axis=1)

    return pack


def _q6_k(blocks):
    groups = blocks.reshape(-1, 16, 16)
    steps = np.abs(groups).max(axis=2) / 31
    d = (steps.max(axis=1) / 127).astype(np.float16)
    scales = np.ceil(steps / d[:, None].astype(np.float32)).clip(1, 127).astype(np.int8)
    numbers = np.round(groups / (scales * d[:, None].astype(np.float32))[:, :, None]).clip(-32, 31) + 32
    rows = numbers.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([(rows[:, :, 0] & 15) | ((rows[:, :, 2] & 15) << 4), (rows[:, :, 1] & 15) | ((rows[:, :, 3] & 15) << 4)], axis=2)
    high = sum((rows[:, :, row] >> 4) << (2 * row) for row in range(4)).astype(np.uint8)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), _halves(d)], axis=1)


K_QUANTS = {"Q4_K": _k_with_minima(15), "Q5_K": _k_with_minima(31), "Q6_K": _q6_k}
