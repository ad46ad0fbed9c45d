"""MultiTalk's layers, against explicit softmax matrices, loops over tokens and complex numbers.

B batch, K classes, T latent frames, N tokens of one latent frame, H heads, d head dim.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from multitalk_nodes.multitalk_core import model
from multitalk_nodes.multitalk_core.errors import WeightsError
from multitalk_nodes.multitalk_core.model import (
    BACKGROUND_LABEL,
    LABEL_LENGTH,
    LABEL_STARTS,
    AdapterShape,
    AudioBlock,
    AudioCrossAttention,
    AudioProjection,
    MultiTalkAdapter,
    audio_positions,
    dominant_class,
    reference_attention_map,
    rotate_,
    speaker_positions,
    split_windows,
)

SHAPES = [
    AdapterShape(dim=48, blocks=2, audio_features=24, intermediate=16, token_dim=12, context_tokens=4),
    AdapterShape(dim=32, blocks=1, audio_features=7, intermediate=9, token_dim=10, context_tokens=1),
    AdapterShape(dim=40, blocks=11, audio_features=36, intermediate=8, token_dim=6, context_tokens=32),
]
SHAPE = SHAPES[0]
LAYERS, AUDIO_DIM = 3, 8  # of SHAPE's encoder


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# the reference attention map


def slow_map(q: torch.Tensor, k: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """The attention matrix itself, in float64; only for classes with tokens."""
    q, k = q.double().numpy(), k.double().numpy()
    batch, _, heads, d = q.shape
    tokens = masks.shape[1]
    result = []
    for b in range(batch):
        looks = np.mean([softmax(q[b, :, h] @ k[b, :tokens, h].T / math.sqrt(d)) for h in range(heads)], axis=0)
        result.append([looks[:, mask.numpy() > 0].mean(axis=1) for mask in masks])
    return np.array(result)


def masks_of(classes: int, tokens: int) -> torch.Tensor:
    """Random and disjoint, none empty."""
    owner = torch.cat([torch.arange(classes), torch.randint(classes, (tokens - classes,))])[torch.randperm(tokens)]
    return torch.nn.functional.one_hot(owner, classes).T.float()


@pytest.mark.parametrize("heads", [1, 2, 3, 5])
@pytest.mark.parametrize(("classes", "d"), [(2, 8), (3, 16), (5, 8)])
@pytest.mark.parametrize("frames", [1, 3])
def test_the_map_is_the_mean_of_the_attention_matrix(heads, classes, d, frames):
    q, k = torch.randn(2, frames * 12, heads, d), torch.randn(2, frames * 12, heads, d)
    masks = masks_of(classes, 12)
    maps = reference_attention_map(q, k, masks)
    assert maps.shape == (2, classes, frames * 12) and maps.dtype == torch.float32
    np.testing.assert_allclose(maps.numpy(), slow_map(q, k, masks), atol=1e-6)


def test_overlapping_masks_are_classes_of_their_own():
    q, k = torch.randn(1, 10, 2, 8), torch.randn(1, 10, 2, 8)
    masks = (torch.rand(3, 10) > 0.3).float()
    np.testing.assert_allclose(reference_attention_map(q, k, masks).numpy(), slow_map(q, k, masks), atol=1e-6)


def test_maps_of_disjoint_classes_sum_to_one_by_their_sizes():
    masks = masks_of(3, 20)
    maps = reference_attention_map(torch.randn(2, 40, 2, 8), torch.randn(2, 40, 2, 8), masks)
    torch.testing.assert_close(torch.einsum("bkn,k->bn", maps, masks.sum(dim=1)), torch.ones(2, 40))


def test_a_map_of_a_batch_of_two_is_two_maps():
    q, k, masks = torch.randn(2, 24, 3, 8), torch.randn(2, 24, 3, 8), masks_of(3, 12)
    each = [reference_attention_map(q[i : i + 1], k[i : i + 1], masks) for i in range(2)]
    torch.testing.assert_close(reference_attention_map(q, k, masks), torch.cat(each))


def test_only_the_first_latent_frame_is_looked_at():
    q, k, masks = torch.randn(1, 24, 2, 8), torch.randn(1, 24, 2, 8), masks_of(2, 12)
    other = k.clone()
    other[:, 12:] = 100
    assert torch.equal(reference_attention_map(q, k, masks), reference_attention_map(q, other, masks))


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_class_without_tokens_never_wins_and_makes_no_nan(empty):
    masks = masks_of(3, 12)
    masks[empty] = 0
    q, k = torch.randn(1, 24, 2, 8), torch.randn(1, 24, 2, 8)
    maps = reference_attention_map(q, k, masks)
    assert (maps[:, empty] == -math.inf).all()
    others = [c for c in range(3) if c != empty]
    np.testing.assert_allclose(maps[:, others].numpy(), slow_map(q, k, masks[others]), atol=1e-6)
    assert (dominant_class(maps) != empty).all()
    assert torch.isfinite(speaker_positions(maps)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_map_of_half_precision_is_finite_and_near(dtype):
    q, k, masks = 4 * torch.randn(1, 3000, 2, 16), 4 * torch.randn(1, 3000, 2, 16), masks_of(3, 3000)
    q, k = q.to(dtype), k.to(dtype)
    maps = reference_attention_map(q, k, masks)
    assert maps.dtype == torch.float32 and torch.isfinite(maps).all()
    np.testing.assert_allclose(maps.numpy() * 3000, slow_map(q, k, masks) * 3000, atol=0.1)


# labels


def slow_positions(maps: torch.Tensor) -> np.ndarray:
    speakers = maps.shape[1] - 1
    positions = np.zeros((maps.shape[0], maps.shape[2]))
    for b, n in itertools.product(range(maps.shape[0]), range(maps.shape[2])):
        winner = max(range(speakers + 1), key=lambda c: maps[b, c, n].item())
        if winner == speakers:
            positions[b, n] = 12
            continue
        row = maps[b, winner].double().numpy()
        positions[b, n] = (row[n] - row.min()) / (row.max() - row.min() + 1e-8) * 4 + (0, 20, 5, 15)[winner]
    return positions


@pytest.mark.parametrize("speakers", [1, 2, 3, 4])
def test_a_token_has_the_label_of_its_greatest_map(speakers):
    maps = torch.rand(2, speakers + 1, 50)
    assert (dominant_class(maps) == speakers).any()  # the background wins somewhere
    np.testing.assert_allclose(speaker_positions(maps).numpy(), slow_positions(maps), atol=1e-5)


@pytest.mark.parametrize("speakers", [1, 2, 3, 4])
def test_labels_stay_in_their_ranges(speakers):
    maps = torch.rand(3, speakers + 1, 200) * torch.tensor([1e-9, 1e-3, 1.0])[:, None, None]
    labels, winners = speaker_positions(maps), dominant_class(maps)
    for speaker in range(speakers):
        own = labels[winners == speaker]
        assert own.min() >= LABEL_STARTS[speaker] and own.max() <= LABEL_STARTS[speaker] + LABEL_LENGTH
    assert (labels[winners == speakers] == BACKGROUND_LABEL).all()


def test_labels_compare_raw_maps_but_spread_scaled_ones():
    """A speaker whose whole map is low wins nowhere, however far it spreads when scaled."""
    maps = torch.stack([torch.linspace(0.5, 0.6, 10), torch.linspace(0.0, 0.4, 10), torch.zeros(10)])[None]
    torch.testing.assert_close(speaker_positions(maps)[0], torch.linspace(0, 4, 10), rtol=0, atol=1e-4)


def test_constant_maps_give_no_nan():
    maps = torch.tensor([0.3, 0.2, 0.1])[None, :, None].expand(1, 3, 10)
    assert torch.equal(speaker_positions(maps), torch.zeros(1, 10))


def test_ranges_are_apart_and_all_centres_equally_far():
    centres = sorted([*(start + LABEL_LENGTH / 2 for start in LABEL_STARTS), BACKGROUND_LABEL])
    assert np.ptp(np.diff(centres)) == 0
    ranges = sorted((start, start + LABEL_LENGTH) for start in LABEL_STARTS)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))
    assert not any(low <= BACKGROUND_LABEL <= high for low, high in ranges)
    assert ranges[0][0] == 0 and ranges[-1][1] == 24


@pytest.mark.parametrize("speakers", [1, 2, 3, 4])
def test_audio_tokens_sit_at_the_centre_of_their_speaker(speakers):
    assert audio_positions(speakers, 3).tolist() == [c for start in (0.0, 20.0, 5.0, 15.0)[:speakers] for c in [start + 2] * 3]


# rotate


@pytest.mark.parametrize("d", [2, 8, 128])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("at_once", [1, 4, 1000])
@pytest.mark.parametrize("devices", [("cpu",), ()])
def test_rotating_is_multiplying_by_complex_numbers(d, batched, at_once, devices, monkeypatch):
    x = torch.randn(2, 7, 3, d)
    positions = torch.rand(2, 7) * 24 if batched else torch.rand(7) * 24
    numbers = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    frequency = 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = positions.double()[..., None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle)
    turned = torch.view_as_real(numbers * turn[..., None, :]).flatten(-2)
    monkeypatch.setattr(model, "ROTATED_AT_ONCE", at_once * 3 * d)
    monkeypatch.setattr(model, "COMPLEX", devices)
    rotated = x.clone()
    assert rotate_(rotated, positions).data_ptr() == rotated.data_ptr()
    torch.testing.assert_close(rotated.double(), turned, rtol=0, atol=1e-5)


def test_position_zero_is_no_rotation_and_the_number_type_stays():
    x = torch.randn(1, 5, 2, 8).half()
    assert torch.equal(rotate_(x.clone(), torch.zeros(5)), x)


def test_only_the_distance_of_positions_matters():
    q, k = torch.randn(1, 6, 1, 16), torch.randn(1, 6, 1, 16)
    at = torch.rand(6) * 20
    near = (rotate_(q.clone(), at) * rotate_(k.clone(), at + 3)).sum(dim=-1)
    far = (rotate_(q, at + 7) * rotate_(k, at + 10)).sum(dim=-1)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4)


# audio windows to tokens


@pytest.mark.parametrize("latents", [1, 2, 5])
def test_windows_are_sorted_by_latent_frame(latents):
    frames = 4 * (latents - 1) + 1
    windows = torch.randn(2, frames, 5, 3, 4)
    first, later = split_windows(windows)
    assert first.shape == (2, 1, 5, 3, 4) and later.shape == (2, latents - 1, 8, 3, 4)
    assert torch.equal(first, windows[:, :1])
    for t in range(latents - 1):
        a, b, c, d = (windows[:, 1 + 4 * t + i] for i in range(4))
        heard = [a[:, 0], a[:, 1], a[:, 2], b[:, 2], c[:, 2], d[:, 2], d[:, 3], d[:, 4]]
        assert torch.equal(later[:, t], torch.stack(heard, dim=1))


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


@pytest.mark.parametrize("speakers", [1, 2, 3])
@torch.no_grad()
def test_context_tokens_are_the_paper_s_layers_token_by_token(speakers):
    project = AudioProjection(SHAPE, nn)
    windows = torch.randn(speakers, 9, 5, LAYERS, AUDIO_DIM)
    tokens = project(windows)
    assert tokens.shape == (1, 3, speakers * 4, 12)
    first, later = split_windows(windows)
    for s, t in itertools.product(range(speakers), range(3)):
        heard = first[s, 0] if t == 0 else later[s, t - 1]
        hidden = np.maximum(linear(project.proj1 if t == 0 else project.proj1_vf, heard.flatten().double().numpy()), 0)
        rows = linear(project.proj3, np.maximum(linear(project.proj2, hidden), 0)).reshape(4, 12)
        expected = (rows - rows.mean(axis=1, keepdims=True)) / np.sqrt(rows.var(axis=1, keepdims=True) + project.norm.eps)
        np.testing.assert_allclose(tokens[0, t, 4 * s : 4 * s + 4].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("speakers", [1, 3])
@pytest.mark.parametrize("latents", [1, 2, 6])
@torch.no_grad()
def test_tokens_of_voices_and_of_one_silent_speaker_in_one_pass_are_those_of_two(speakers, latents):
    project = MultiTalkAdapter(SHAPE).audio_proj
    windows = torch.randn(speakers, 4 * (latents - 1) + 1, 5, LAYERS, AUDIO_DIM)
    voices, null = project.with_null(windows)
    torch.testing.assert_close(voices, project(windows), rtol=0, atol=1e-6)
    torch.testing.assert_close(null, project(torch.zeros_like(windows[-1:])), rtol=0, atol=1e-6)


def test_speakers_are_counted_by_their_tokens():
    adapter = MultiTalkAdapter(SHAPE)
    for speakers in (1, 2, 4):
        assert adapter.speakers_in(adapter.audio_proj(torch.zeros(speakers, 5, 5, LAYERS, AUDIO_DIM))) == speakers


# audio cross-attention


def slow_attention(layer: AudioCrossAttention, x, audio, heads, labels=None, audio_labels=None) -> np.ndarray:
    """One token, one head at a time, in float64."""
    batch, frames, _, _ = audio.shape
    dim = x.shape[-1]
    tokens, d = x.shape[1] // frames, dim // heads
    frequency = 10_000.0 ** (-np.arange(0, d, 2) / d)

    def turn(vector, position):
        pairs = (vector[0::2] + 1j * vector[1::2]) * np.exp(1j * position * frequency)
        return np.stack([pairs.real, pairs.imag], axis=1).flatten()

    out = np.zeros((batch, frames * tokens, dim))
    for b, t in itertools.product(range(batch), range(frames)):
        kv = [linear(layer.kv_linear, token.double().numpy()) for token in audio[b, t]]
        for n in range(t * tokens, (t + 1) * tokens):
            q = linear(layer.q_linear, x[b, n].double().numpy())
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                query, keys = q[part], [row[:dim][part] for row in kv]
                if labels is not None:
                    query = turn(query, float(labels[b, n]))
                    keys = [turn(key, float(position)) for key, position in zip(keys, audio_labels, strict=True)]
                weights = softmax(np.array([query @ key for key in keys]) / math.sqrt(d))
                out[b, n, part] = sum(w * row[dim:][part] for w, row in zip(weights, kv, strict=True))
            out[b, n] = linear(layer.proj, out[b, n])
    return out


def cross_attention(heads: int, speakers: int, frames: int = 3, tokens: int = 5, batch: int = 2):
    layer = AudioCrossAttention(SHAPE, nn)
    x, audio = torch.randn(batch, frames * tokens, SHAPE.dim), torch.randn(batch, frames, speakers * 4, SHAPE.token_dim)
    return layer, x, audio, heads


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@torch.no_grad()
def test_one_speaker_is_plain_attention_to_the_frame_s_tokens(heads):
    layer, x, audio, heads = cross_attention(heads, 1)
    np.testing.assert_allclose(layer(x, audio, heads, None, None).numpy(), slow_attention(layer, x, audio, heads), atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("speakers", [2, 4])
@torch.no_grad()
def test_several_speakers_are_routed_by_rotation(heads, speakers):
    layer, x, audio, heads = cross_attention(heads, speakers)
    labels, audio_labels = torch.rand(2, 15) * 24, audio_positions(speakers, 4)
    expected = slow_attention(layer, x, audio, heads, labels, audio_labels)
    np.testing.assert_allclose(layer(x, audio, heads, labels, audio_labels).numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_a_frame_hears_nothing_of_other_frames():
    layer, x, audio, heads = cross_attention(2, 1)
    other = audio.clone()
    other[:, 1] += 10
    change = (layer(x, other, heads, None, None) - layer(x, audio, heads, None, None)).abs().amax(dim=(0, 2))
    assert change[5:10].min() > 0 and not change[:5].any() and not change[10:].any()


@torch.no_grad()
def test_the_order_of_the_speakers_tokens_does_not_matter_when_labels_go_along():
    layer, x, audio, heads = cross_attention(2, 2)
    labels, audio_labels = torch.rand(2, 15) * 24, audio_positions(2, 4)
    swapped = layer(x, audio.roll(4, dims=2), heads, labels, audio_labels.roll(4))
    torch.testing.assert_close(swapped, layer(x, audio, heads, labels, audio_labels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_labels_count_from_anywhere():
    layer, x, audio, heads = cross_attention(2, 2)
    labels, audio_labels = torch.rand(2, 15) * 24, audio_positions(2, 4)
    moved = layer(x, audio, heads, labels + 5, audio_labels + 5)
    torch.testing.assert_close(moved, layer(x, audio, heads, labels, audio_labels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_swapped_masks_swap_the_classes_of_the_tokens():
    q, k = torch.randn(1, 24, 2, 8), torch.randn(1, 24, 2, 8)
    masks = masks_of(3, 12)
    plain = dominant_class(reference_attention_map(q, k, masks))
    swapped = dominant_class(reference_attention_map(q, k, masks[[1, 0, 2]]))
    assert torch.equal(swapped, torch.tensor([1, 0, 2])[plain])


@torch.no_grad()
def test_a_block_adds_attention_of_its_norm_without_a_gate():
    block = AudioBlock(SHAPE, nn)
    x, audio = torch.randn(1, 15, SHAPE.dim), torch.randn(1, 3, 4, SHAPE.token_dim)
    rows = x.double().numpy()
    normal = (rows - rows.mean(axis=-1, keepdims=True)) / np.sqrt(rows.var(axis=-1, keepdims=True) + 1e-6)
    expected = rows + slow_attention(block.audio_cross_attn, torch.from_numpy(normal), audio, 2)
    np.testing.assert_allclose(block(x, audio, 2).numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_null_audio_beside_voices_is_heard_as_by_itself():
    """Its tokens laid side by side as often as there are speakers, and everything at position 0."""
    layer, x, voices, heads = cross_attention(2, 3)
    null = torch.randn(1, 3, 4, SHAPE.token_dim)
    audio = torch.cat([voices[:1], null.repeat(1, 1, 3, 1)])
    labels = torch.stack([torch.rand(15) * 24, torch.zeros(15)])
    audio_labels = torch.stack([audio_positions(3, 4), torch.zeros(12)])
    both = layer(x, audio, heads, labels, audio_labels)
    torch.testing.assert_close(both[:1], layer(x[:1], voices[:1], heads, labels[:1], audio_positions(3, 4)), rtol=0, atol=1e-6)
    torch.testing.assert_close(both[1:], layer(x[1:], null, heads), rtol=0, atol=1e-6)


# files of weights


def state_of(shape: AdapterShape) -> dict[str, torch.Tensor]:
    return MultiTalkAdapter(shape, device="meta").state_dict()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_are_read_back_from_the_tensors(shape):
    assert AdapterShape.of(state_of(shape)) == shape


def test_other_tensors_of_a_file_are_left_out():
    state = state_of(SHAPE)
    file = {"patch_embedding.weight": torch.zeros(1), "blocks.0.self_attn.q.weight": torch.zeros(1), **state}
    assert AdapterShape.of(file) == SHAPE
    assert MultiTalkAdapter(SHAPE).check_state(file).keys() == state.keys()


@pytest.mark.parametrize("state", [{}, {"model.weight": torch.zeros(2)}, {"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}])
def test_files_of_something_else_are_refused(state):
    with pytest.raises(WeightsError, match="no MultiTalk or InfiniteTalk weights"):
        AdapterShape.of(state)


@pytest.mark.parametrize("missing", list(state_of(SHAPE)))
def test_a_file_without_a_tensor_is_refused(missing):
    """By its sizes, by its tensors, or (all of the last block) by the model it is used with."""
    state = {key: tensor for key, tensor in state_of(SHAPE).items() if key != missing}
    with pytest.raises(WeightsError):
        MultiTalkAdapter(AdapterShape.of(state)).check_state(state)


def test_a_missing_block_is_noticed():
    def without(block: int) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in state_of(SHAPES[2]).items() if not key.startswith(f"blocks.{block}.")}

    with pytest.raises(WeightsError, match="no MultiTalk or InfiniteTalk weights"):
        AdapterShape.of(without(4))
    with pytest.raises(WeightsError, match="11 blocks.*10 blocks"):
        AdapterShape.of(without(10)).check_model(40, 11)


@pytest.mark.parametrize("key", ["audio_proj.proj2.weight", "blocks.1.norm_x.bias", "blocks.1.audio_cross_attn.kv_linear.weight"])
def test_a_tensor_that_is_missing_or_misshapen_is_named_with_its_sizes(key):
    adapter, state = MultiTalkAdapter(SHAPE), state_of(SHAPE)
    with pytest.raises(WeightsError, match=f"lack the tensor '{key}'"):
        adapter.check_state({k: v for k, v in state.items() if k != key})
    with pytest.raises(WeightsError, match=rf"'{key}' has shape \(3, 2\); \({state[key].shape[0]},"):
        adapter.check_state(state | {key: torch.zeros(3, 2)})


@pytest.mark.parametrize(("first", "later"), [(121, 192), (120, 191), (120, 120)])
def test_windows_that_contradict_each_other_are_refused_with_their_sizes(first, later):
    state = state_of(SHAPE) | {"audio_proj.proj1.weight": torch.zeros(16, first), "audio_proj.proj1_vf.weight": torch.zeros(16, later)}
    with pytest.raises(WeightsError, match=f"{first} and {later} inputs"):
        AdapterShape.of(state)


def test_an_encoder_of_other_sizes_is_refused_with_the_numbers():
    SHAPE.check_encoder(LAYERS, AUDIO_DIM)
    with pytest.raises(WeightsError, match=r"12 layers × 768 = 9216 .* take 24"):
        SHAPE.check_encoder(12, 768)
    with pytest.raises(WeightsError, match="2 layers × 8 = 16"):
        AudioProjection(SHAPE, nn)(torch.zeros(1, 5, 5, 2, 8))


@pytest.mark.parametrize(("dim", "blocks"), [(48, 3), (1536, 2)])
def test_a_model_of_other_sizes_is_refused_with_the_numbers(dim, blocks):
    SHAPE.check_model(48, 2)
    with pytest.raises(WeightsError, match=f"dimension {dim} and {blocks} blocks, .* dimension 48 and 2 blocks"):
        SHAPE.check_model(dim, blocks)


def test_a_shape_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SHAPE.dim = 1
