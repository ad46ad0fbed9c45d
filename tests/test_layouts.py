"""Every published layout of the audio weights gives the output of the fp32 weights, to its format's error."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.gguf_files import BLOCKS, unpack
from multitalk_nodes.multitalk_core.model import AdapterShape, MultiTalkAdapter, WeightsError
from multitalk_nodes.tests import layouts

NAME = "tiny_infinitetalk"
HEADS = 4


def file_of(folder, layout):
    path = folder / f"{NAME}.{'gguf' if layout in layouts.GGUF else 'safetensors'}"
    layouts.write(path, layout)
    return path


def outputs(adapter):
    """The context tokens of two random voices, and what all blocks together add to x for them."""
    seed = torch.Generator().manual_seed(3)
    tokens = adapter.audio_proj(torch.randn(2, 9, 5, 2, 128, generator=seed))
    x = torch.randn(1, 3 * 16, layouts.SHAPE.dim, generator=seed)
    labels = torch.rand(1, 3 * 16, generator=seed) * 24
    audio_labels = torch.tensor([2.0, 2.0, 22.0, 22.0])
    heard = x
    for block in adapter.blocks:
        heard = block(heard, tokens, HEADS, labels, audio_labels)
    return [tokens, heard - x]


def reference(state=None):
    adapter = MultiTalkAdapter(layouts.SHAPE)
    adapter.load_state_dict(state or layouts.weights())
    return adapter.eval().requires_grad_(False)


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("layout", [*layouts.SAFETENSORS, *layouts.GGUF])
def test_a_layout_gives_the_output_of_fp32_to_its_formats_error(comfy, tmp_path, layout):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    loaded = load_weights(str(file_of(tmp_path, layout)), NAME)
    assert loaded.family.name == "infinitetalk" and loaded.shape == layouts.SHAPE
    bound = layouts.GGUF.get(layout) or layouts.SAFETENSORS[layout][1]
    made, true = outputs(loaded.adapter), outputs(reference())
    assert all(tensor.dtype == torch.float32 for tensor in made)
    assert distance(made[0], true[0]) < 2 * bound  # many keep the projection in fp32
    assert 0 < distance(made[1], true[1]) < 2 * bound


@pytest.mark.parametrize("layout", [*layouts.SAFETENSORS, *layouts.GGUF])
def test_packed_weights_compute_what_they_unpack_to(comfy, tmp_path, layout):
    """Against plain fp32 layers that hold the same numbers; GGUF's are unpacked by the package gguf."""
    from multitalk_nodes.comfy_bridge.weights import load_weights

    path = file_of(tmp_path, layout)
    adapter = load_weights(str(path), NAME).adapter
    same = load_weights(str(path), NAME, dtype=torch.float32).adapter.state_dict()
    assert {tensor.dtype for tensor in same.values()} == {torch.float32}
    if layout in layouts.GGUF:
        for tensor in gguf.GGUFReader(path).tensors:
            oracle = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))).reshape(same[tensor.name].shape)
            assert torch.equal(same[tensor.name], oracle.float()), tensor.name
    for made, true in zip(outputs(adapter), outputs(reference(same)), strict=True):
        assert distance(made, true) < 1e-6


@pytest.mark.parametrize("layout", [*layouts.SAFETENSORS, *layouts.GGUF])
def test_nothing_is_kept_wider_than_in_the_file(comfy, tmp_path, layout):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    path = file_of(tmp_path, layout)
    adapter = load_weights(str(path), NAME).adapter
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*adapter.parameters(), *adapter.buffers()])
    assert held < path.stat().st_size


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_of_bytes_unpacks_as_gguf_unpacks_it(kind):
    """All bit patterns, not only those that a packer makes; the scales are finite."""
    blocks = np.random.default_rng(5).integers(0, 256, (512, BLOCKS[kind].bytes), dtype=np.uint8)
    halves = {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(kind, [0, 2])
    for place in halves:
        blocks[:, place : place + 2] = np.random.default_rng(6).normal(size=(512, 1)).astype(np.float16).view(np.uint8)
    oracle = gguf.quants.dequantize(blocks.copy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(unpack(torch.from_numpy(blocks), kind), torch.from_numpy(oracle))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_weights_compute_in_the_models_precision(comfy, tmp_path, dtype):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    layer = load_weights(str(file_of(tmp_path, "Q4_K")), NAME).adapter.blocks[0].audio_cross_attn.proj
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    made = layer(x.to(dtype))
    assert made.dtype == dtype and distance(made.float(), layer(x)) < 0.01


def test_a_scale_of_an_odd_shape_is_refused(comfy, tmp_path):
    from safetensors.torch import save_file

    from multitalk_nodes.comfy_bridge.weights import load_weights

    tensors = layouts.SAFETENSORS["Kijai fp8_e4m3fn scaled"][0](layouts.weights())
    tensors["blocks.1.audio_cross_attn.proj.scale_weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "infinitetalk.safetensors")
    with pytest.raises(WeightsError, match=r"blocks.1.audio_cross_attn.proj.weight.* has a scale of shape \[3\]"):
        load_weights(str(tmp_path / "infinitetalk.safetensors"), "infinitetalk")


def test_whole_numbers_without_a_scale_are_refused(comfy, tmp_path):
    from safetensors.torch import save_file

    from multitalk_nodes.comfy_bridge.weights import load_weights

    key = "blocks.0.audio_cross_attn.proj.weight"
    save_file(layouts.weights() | {key: torch.zeros(256, 256, dtype=torch.int8)}, tmp_path / "infinitetalk.safetensors")
    with pytest.raises(WeightsError, match=f"'{key}' is stored as int8.*fp16"):
        load_weights(str(tmp_path / "infinitetalk.safetensors"), "infinitetalk")


SIZES = {"dim": 5120, "token_dim": 768, "intermediate": 512, "audio_features": 12 * 768, "context_tokens": 32}  # the published ones


def sparse(path, layout, size=2_000_000_000):
    """A file of the published sizes and about `size` bytes whose numbers are zeros that take no disk."""
    stored = {"fp16": ("F16", 2), "fp8": ("F8_E4M3", 1)}.get(layout)
    blocks = 15 if layout == "fp16" else 30
    with torch.device("meta"):
        tensors = MultiTalkAdapter(AdapterShape(blocks=blocks, **SIZES)).state_dict()
    if layout == "Q8_0":
        return sparse_gguf(path, tensors)
    header, at = {}, 0
    for key, tensor in tensors.items():
        dtype, width = stored if layouts.is_matrix(key) else ("F32", 4)
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at := at + tensor.numel() * width]}
        if layout == "fp8" and layouts.is_matrix(key):
            header[key.replace("weight", "scale_weight")] = {"dtype": "F32", "shape": [], "data_offsets": [at, at := at + 4]}
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told)
    os.truncate(path, 8 + len(told) + at)
    return path


def sparse_gguf(path, tensors):
    writer, total = gguf.GGUFWriter(path, "wan"), 0
    for key, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if layouts.is_matrix(key) else gguf.GGMLQuantizationType.F32
        size = tensor.numel() // 32 * 34 if layouts.is_matrix(key) else tensor.numel() * 4
        writer.add_tensor_info(key, tuple(tensor.shape), np.dtype(np.float32), size, raw_dtype=kind)
        total += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + total)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory by kind is told by Linux only")
@pytest.mark.parametrize("layout", ["fp16", "fp8", "Q8_0"])
def test_loading_takes_a_tenth_of_the_file_in_memory_at_most(comfy, tmp_path, layout):
    layouts.write(tmp_path / "infinitetalk.safetensors", "fp16 throughout")
    path = sparse(tmp_path / f"large_infinitetalk.{'gguf' if layout == 'Q8_0' else 'safetensors'}", layout)
    assert path.stat().st_size > 1_900_000_000
    program = Path(__file__).with_name("weights_memory.py")
    result = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "infinitetalk.safetensors"), str(path)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < 0.1


@pytest.mark.parametrize("layout", ["fp16 throughout", "Kijai fp8_e4m3fn scaled", "MeiGen int8, merged with WAN", "Q4_K", "Q8_0"])
def test_a_model_that_is_loaded_in_part_computes_the_same(comfy, tmp_path, layout):
    """What --lowvram and --novram do to the layers, as far as a CPU can: the manager keeps weights away and casts them at their use."""
    from multitalk_nodes.comfy_bridge.weights import load_weights

    patcher = load_weights(str(file_of(tmp_path, layout)), NAME).patcher
    whole = outputs(patcher.model)
    cpu = torch.device("cpu")
    for budget in (1, patcher.model_size() // 2, 0):  # bytes; 0 is all
        patcher.load(cpu, lowvram_model_memory=budget)
        made = outputs(patcher.model)
        assert all(torch.equal(one, other) for one, other in zip(made, whole, strict=True))
        patcher.partially_unload(cpu, patcher.model_size())
        made = outputs(patcher.model)
        assert all(torch.equal(one, other) for one, other in zip(made, whole, strict=True))
        patcher.detach()
    dtypes = {parameter.dtype for parameter in patcher.model.parameters()}
    assert torch.float64 not in dtypes and (layout != "fp16 throughout" or dtypes == {torch.float16})
