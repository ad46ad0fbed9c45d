"""Files that are not what their name or place says: known from the header, before anything is mapped."""

import json
import random
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from multitalk_nodes.multitalk_core.errors import WeightsError
from multitalk_nodes.multitalk_core.weights.files import read_header
from multitalk_nodes.multitalk_core.weights.header import Header, TensorEntry
from multitalk_nodes.multitalk_core.weights.identify import identify
from multitalk_nodes.tests.support import layouts


def safetensors(path, header, data=b"", length=None):
    found = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(found) if length is None else length) + found + data)
    return path


def tensor(start=0, stop=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "given"),
    [
        (b"{", "Expecting"),
        (b"[]", "not an object"),
        (b"\xff\xfe{\x00}\x00", "utf-8"),
        (b"[" * 100_000, "recursion"),
        ({"a": 1}, "'a' is not described as a tensor"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "not described as a tensor"),
        ({"a": tensor(shape=(-2,))}, "no number of things"),
        ({"a": tensor(shape=(2.5,))}, "no number of things"),
        ({"a": tensor(shape=("2",))}, "no number of things"),
        ({"a": tensor(stop=4)}, "cannot take 4 bytes"),
        ({"a": tensor(shape=(2**62, 2**62))}, "cannot take 8 bytes"),
        ({"a": tensor(8, 0, "X1")}, "cannot take -8 bytes"),
        ({"a": tensor(), "b": tensor(4, 12)}, "'b' begins at byte"),
        ({"a": tensor(), "b": tensor(16, 24)}, "'b' begins at byte"),
        ({"a": tensor(), "__metadata__": {"x": 1}}, "metadata that are not texts"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header, given):
    with pytest.raises(WeightsError, match=f"'weights.safetensors' has a damaged header.*{given}.*Get it again"):
        read_header(safetensors(tmp_path / "weights.safetensors", header, bytes(24)))


@pytest.mark.parametrize("length", [2**63, 2**40, 10_000])
def test_a_header_longer_than_its_file_is_refused_without_being_read(tmp_path, length):
    path = safetensors(tmp_path / "weights.safetensors", {"a": tensor()}, bytes(8), length)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=f"a header of {length:,} bytes"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("layout", ["Kijai fp8_e4m3fn scaled", "Q4_K"])
def test_a_damaged_header_is_an_error_of_ours_whatever_the_damage(tmp_path, layout):
    """A thousand files with one to four bytes changed, or cut: read, or refused with a sentence; never another exception."""
    path, random_ = tmp_path / "infinitetalk", random.Random(7)
    layouts.write(path, layout)
    whole = path.read_bytes()
    end = min(entry.start for entry in read_header(path).tensors.values())
    refused = 0
    for _ in range(1000):
        data = bytearray(whole[: random_.randrange(end)] if random_.random() < 0.1 else whole[: end + 4096])
        for _ in range(random_.randint(1, 4)):
            if data:
                data[random_.randrange(min(len(data), end))] = random_.randrange(256)
        path.write_bytes(data)
        try:
            identify(read_header(path), path.name)
        except WeightsError as error:
            refused += 1
            assert "infinitetalk" in str(error)
    assert refused == 1000  # all are cut: what is left out must be missed


@pytest.mark.parametrize(
    ("content", "given"),
    [
        (b"<!DOCTYPE html><html>Log in</html>", "is a web page"),
        (b"\n <html>", "is a web page"),
        (b'{"error": "Repository not found"}', "is a JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer"),
        (b"PK\x03\x04" + bytes(100), "is a pickle"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"", "is empty"),
        (b"GGUF", "cannot be read as GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "tensors and 0 values"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50), "a text of"),
    ],
)
def test_a_stranger_is_named(tmp_path, content, given):
    path = tmp_path / "multitalk.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"'multitalk.safetensors' .*{given}"):
        read_header(path)


def test_gguf_headers_say_what_the_package_gguf_reads(tmp_path):
    import gguf

    layouts.write(tmp_path / "a.gguf", "Q5_K")
    header = read_header(tmp_path / "a.gguf")
    for item in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        entry = header.tensors[item.name]
        assert entry.shape == tuple(reversed(item.shape.tolist())) and entry.dtype == item.tensor_type.name
        assert (entry.start, entry.stop - entry.start) == (item.data_offset, item.n_bytes)
    assert header.metadata["general.architecture"] == "wan"


WAN = {"patch_embedding.weight": (96, 36, 1, 2, 2), "blocks.0.self_attn.q.weight": (96, 96), "img_emb.proj.0.weight": (4,)}
ENCODER = {"feature_extractor.conv_layers.0.conv.weight": (4, 1, 10)}
ENCODER |= {f"encoder.layers.{layer}.attention.q_proj.weight": (768, 768) for layer in range(12)}
LARGE = ENCODER | {f"encoder.layers.{layer}.attention.q_proj.weight": (1024, 1024) for layer in range(24)}
VAE, CLIP = {"decoder.middle.0.residual.0.gamma": (4,)}, {"vision_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}
AUDIO = {"audio_proj.proj1.weight": (4, 5), "blocks.0.audio_cross_attn.proj.weight": (8, 8), "blocks.0.norm_x.weight": (8,)}


@pytest.mark.parametrize(
    ("name", "tensors", "kind", "problem"),
    [
        ("multitalk.safetensors", AUDIO, "multitalk", None),
        ("dit_model_int8.safetensors", AUDIO | WAN, "multitalk", None),
        ("multitalk-00001-of-00002.safetensors", AUDIO, "multitalk", "part 1 of 2"),
        ("half.safetensors", {k: v for k, v in AUDIO.items() if "audio_proj" not in k}, "multitalk", "without its audio projection"),
        ("half.safetensors", {"audio_proj.proj1.weight": (4, 5)}, "multitalk", "with 0 of its blocks"),
        ("avatar.safetensors", AUDIO | {"blocks.0.audio_cross_attn.q_norm.weight": (8,)}, "multitalk", "LongCat"),
        ("diffusion-00001-of-00001.safetensors", WAN, "wan21", None),
        ("humo.safetensors", WAN | {"blocks.0.audio_cross_attn_wrapper.audio_cross_attn.q.weight": (4, 4)}, "wan21", "HuMo"),
        ("wan.safetensors", {f"model.diffusion_model.{k}": v for k, v in WAN.items()}, "wan21", None),
        ("t2v.safetensors", {**WAN, "patch_embedding.weight": (96, 16, 1, 2, 2)}, "wan21", "text-to-video"),
        ("vace.safetensors", WAN | {"vace_blocks.0.after_proj.weight": (4, 4)}, "wan21", "VACE"),
        ("diffusion_pytorch_model-00003-of-00007.safetensors", WAN, "wan21", "part 3 of 7"),
        ("wav2vec2-chinese-base_fp16.safetensors", {f"wav2vec2.{k}": v for k, v in ENCODER.items()}, "wav2vec", None),
        ("wav2vec2-large-960h.safetensors", LARGE, "wav2vec", "wav2vec2-large .24 layers × 1024.*12 × 768.*wav2vec2-chinese-base_fp16"),
        ("wav2vec2-base-960h/model.safetensors", ENCODER, "wav2vec", "base-960h"),
        ("encoder.safetensors", ENCODER | {"lm_head.weight": (32, 768)}, "wav2vec", "base-960h"),
        ("lightx2v.safetensors", {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": (4, 8)}, "lora", None),
        ("peft.safetensors", {"blocks.0.self_attn.q.lora_A.weight": (4, 8)}, "lora", None),
        ("wan_1.3B_Fun_InP.safetensors", WAN | {"blocks.0.self_attn.q.weight": (1536, 1)}, "wan21", "1.3B.*get wan2.1_i2v_480p_14B"),
        ("wan2.2_5B.safetensors", WAN | {"blocks.0.self_attn.q.weight": (3072, 1)}, "wan21", "5B.*get wan2.1_i2v_480p_14B"),
        ("vae.safetensors", VAE | {"encoder.conv1.weight": (96, 3, 1, 1, 1)}, "vae", None),
        ("wan2.2_vae.safetensors", VAE | {"encoder.conv1.weight": (160, 12, 1, 1, 1)}, "vae", "WAN 2.2's.*get wan_2.1_vae.safetensors"),
        ("clip.safetensors", CLIP | {"vision_model.embeddings.class_embedding": (1280,)}, "clip", None),
        ("sigclip.safetensors", CLIP | {"vision_model.embeddings.position_embedding.weight": (4, 1152)}, "clip", "1152.*clip_vision_h"),
        ("clip_l.safetensors", CLIP | {"vision_model.embeddings.class_embedding": (1024,)}, "clip", "1024.*clip_vision_h"),
        ("flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "other", "none of the models"),
    ],
)
def test_a_file_is_known_by_its_keys(tmp_path, name, tensors, kind, problem):
    path = tmp_path / "file.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in tensors.items()}, path)
    found = identify(read_header(path), name)
    assert found.kind == kind
    if problem is None:
        assert found.problem is None
    else:
        import re

        assert re.search(problem, found.problem), found.problem


@pytest.mark.parametrize(
    ("block", "words", "shape", "problem"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight", (256384, 4096), None),
        ("enc.blk.0.attn_q.weight", "token_embd.weight", (256384, 4096), None),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight", (32128, 4096), "is T5, not umt5-xxl"),
        ("blocks.0.ffn.blocks.0.attn.q.weight", "token_embedding.weight", (256384, 4096), "which Load CLIP does not know"),
        ("enc.blk.0.attn_q.weight", "token_embd.weight", (32128, 4096), "is T5, not umt5-xxl"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight", (256384, 768), "is umt5-base, not umt5-xxl"),
    ],
)
def test_only_umt5_xxl_is_the_text_encoder(block, words, shape, problem):
    entries = {block: TensorEntry("F16", (4, 4), 0, 32), words: TensorEntry("F16", shape, 32, 32 + 2 * shape[0] * shape[1])}
    found = identify(Header(entries, {}, "safetensors", 0), "encoder.safetensors")
    assert found.kind == "text_encoder"
    assert found.problem is None if problem is None else problem in found.problem and "Get umt5_xxl_fp8_e4m3fn_scaled" in found.problem


def test_an_encoder_of_unknown_origin_comes_with_a_hint(tmp_path):
    save_file({key: torch.zeros(shape) for key, shape in ENCODER.items()}, tmp_path / "encoder.safetensors")
    assert "SHA-256" in identify(read_header(tmp_path / "encoder.safetensors"), "encoder.safetensors").note


@pytest.mark.parametrize(
    ("tensors", "given"),
    [
        (WAN, r"is a WAN model \(for Load Diffusion Model\), not MultiTalk's audio weights\. Get wan2\.1_infiniteTalk"),
        (ENCODER, r"is a Wav2Vec2 encoder"),
        ({"blocks.0.self_attn.q.lora_A.weight": (4, 8)}, r"is a LoRA"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, r"is none of the models that talking video needs \(it holds 'double_blocks"),
    ],
)
def test_the_audio_loader_names_what_it_got_instead(comfy, tmp_path, tensors, given):
    from multitalk_nodes.comfy_bridge.weights import load_weights

    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, tmp_path / "multitalk.safetensors")
    with pytest.raises(WeightsError, match=f"'multitalk.safetensors' {given}"):
        load_weights(str(tmp_path / "multitalk.safetensors"), "multitalk.safetensors")


@pytest.mark.parametrize(
    ("tensors", "given"), [(WAN, "is a WAN model"), (AUDIO, "audio weights .for MultiTalk Model Loader"), (LARGE, "wav2vec2-large")]
)
def test_the_encoder_loader_names_what_it_got_instead(comfy, tmp_path, tensors, given):
    from multitalk_nodes.comfy_bridge.encoder import load_encoder
    from multitalk_nodes.multitalk_core.errors import EncoderError

    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, tmp_path / "encoder.safetensors")
    with pytest.raises(EncoderError, match=f"'encoder.safetensors' .*{given}.*wav2vec2-chinese-base_fp16"):
        load_encoder(tmp_path / "encoder.safetensors")
