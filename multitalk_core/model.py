"""MultiTalk's own layers: audio windows → context tokens, and audio cross-attention that routes each voice to its face.

Shapes: B batch, S speakers, K = S + 1 classes, T latent frames, N tokens of one latent frame, M context tokens, A = S · M audio
tokens, H heads, d head dim, C model dim, L layers, D audio dim.

`operations` is a namespace with Linear and LayerNorm (torch.nn, or ComfyUI's), `attention` a function (q, k, v: [B, H, n, d]) → the
same shape; it is chosen for each call, as ComfyUI's is.

Sources: MeiGen-AI/MultiTalk@c1ad840 wan/modules/multitalk_model.py (AudioProjModel), wan/modules/attention.py
(SingleStreamMutiAttention), wan/utils/multitalk_utils.py (get_attn_map_with_target).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .errors import WeightsError
from .windows import FRAMES_PER_LATENT, WINDOW

LATER_WINDOW = 8  # embeddings of a later latent: 3 of its first frame, 1 of each middle one, 3 of its last
LABEL_LENGTH = 4.0  # length of a speaker's range of labels ("class_interval")
# First label of each speaker's range inside 0…24 ("class_range"). Speakers 1 and 2 are the published ones. 3 and 4 are ours and no
# weights were trained for them: with the background at 12, all five centres (2, 7, 12, 17, 22) are then equally far apart.
LABEL_STARTS = (0.0, 20.0, 5.0, 15.0)
BACKGROUND_LABEL = 12.0
LABEL_ROPE_BASE = 10_000.0
ROTATED_AT_ONCE = 1 << 23  # numbers; in float32, of a whole clip several copies of them would be more than the feed-forward needs
COMPLEX = ("cpu", "cuda", "mps")  # devices that multiply complex numbers
MAP_EPSILON = 1e-8  # keeps a constant map from dividing by zero; multitalk_utils.py, normalize_and_scale()


class HasShape(Protocol):
    """A Tensor, or what stands for one in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


Shaped = TypeVar("Shaped", bound=HasShape)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AdapterShape:
    """Everything that the shapes of a MultiTalk file tell. Heads come from the WAN model; L · D cannot be taken apart."""

    dim: int
    blocks: int
    audio_features: int  # L · D
    intermediate: int
    token_dim: int
    context_tokens: int

    @classmethod
    def of(cls, tensors: Mapping[str, HasShape]) -> AdapterShape:
        """Read the sizes from a state dict with the official keys.

        Raises:
            WeightsError: no MultiTalk weights, or sizes that contradict each other.
        """
        numbers = {int(m[1]) for key in tensors if (m := re.match(r"blocks\.(\d+)\.audio_cross_attn\.", key))}
        proj = "blocks.0.audio_cross_attn.proj.weight"
        needed = ("audio_proj.proj1.weight", "audio_proj.proj1_vf.weight", "audio_proj.proj3.weight", "audio_proj.norm.weight", proj)
        if numbers != set(range(len(numbers))) or not numbers or any(key not in tensors for key in needed):
            raise WeightsError(
                "This file has no MultiTalk or InfiniteTalk weights (audio_proj.* and blocks.N.audio_cross_attn.* for every block). "
                "Choose the audio file, for example multitalk.safetensors or wan2.1_infiniteTalk_single_fp16.safetensors."
            )
        first, later = tensors[needed[0]].shape[1], tensors[needed[1]].shape[1]
        if first % WINDOW or later * WINDOW != first * LATER_WINDOW:
            raise WeightsError(f"audio_proj takes {first} and {later} inputs; {WINDOW} and {LATER_WINDOW} times one number were expected.")
        token_dim = tensors["audio_proj.norm.weight"].shape[0]
        return cls(
            dim=tensors[proj].shape[0],
            blocks=len(numbers),
            audio_features=first // WINDOW,
            intermediate=tensors[needed[0]].shape[0],
            token_dim=token_dim,
            context_tokens=tensors["audio_proj.proj3.weight"].shape[0] // token_dim,
        )

    def check_encoder(self, layers: int, dim: int) -> None:
        """Raises WeightsError if an encoder's embeddings cannot be these weights' input."""
        if layers * dim != self.audio_features:
            raise WeightsError(
                f"The audio encoder gives {layers} layers × {dim} = {layers * dim} numbers a frame, but these MultiTalk weights take "
                f"{self.audio_features}. Use the encoder they were trained with (chinese-wav2vec2-base for the published ones)."
            )

    def check_model(self, dim: int, blocks: int) -> None:
        """Raises WeightsError if a WAN model cannot carry these weights."""
        if (dim, blocks) != (self.dim, self.blocks):
            raise WeightsError(
                f"The WAN model has dimension {dim} and {blocks} blocks, but these MultiTalk weights are for dimension {self.dim} and "
                f"{self.blocks} blocks. The published weights need WAN 2.1 I2V 14B."
            )


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact fused attention, [B, H, n, d]."""
    return F.scaled_dot_product_attention(q, k, v)


def reference_attention_map(q: Tensor, k: Tensor, masks: Tensor, attention: Attention = sdpa) -> Tensor:
    """How much every token looks at each class's part of the first latent frame.

    map_c = mean over heads of softmax(q · k_ref / √d) · mask_c / Σ mask_c

    One attention call for all classes: their masks are the values, padded to the head dim, which every fused kernel takes. They
    stay 0 or 1 and are divided by their sums in float32 afterwards (1 / Σ would be subnormal in float16).

    Args:
        q, k: [B, T · N, H, d] of the block's self-attention, after RoPE.
        masks: [K, N] of 0 and 1.
    Returns:
        [B, K, T · N] float32; −inf in every place for a class without tokens, so that it never wins and nothing becomes NaN.
    """
    classes, tokens = masks.shape
    values = F.pad(masks.T.to(q), (0, q.shape[-1] - classes)).expand(q.shape[0], q.shape[2], -1, -1)
    values = values.contiguous()  # small; a precaution, as a kernel was once wrong of broadcast values (pytorch/pytorch#191937)
    looks = attention(q.transpose(1, 2), k[:, :tokens].transpose(1, 2), values)[..., :classes]
    counts = masks.float().sum(dim=1).to(q.device)
    maps = looks.float().mean(dim=1) / counts.clamp(min=1)
    return maps.masked_fill(counts == 0, float("-inf")).transpose(1, 2)


def speaker_positions(maps: Tensor) -> Tensor:
    """The label of every token: maps [B, K, n] → positions [B, n] for the 1-D RoPE.

    A token belongs to the class with the greatest map, the background included. A speaker's tokens spread over the speaker's
    range by their map, scaled between its extremes over all tokens; the background's all have one label.
    """
    speakers = maps[:, :-1].masked_fill(maps[:, :-1].isinf(), 0.0)
    low, high = speakers.amin(dim=2, keepdim=True), speakers.amax(dim=2, keepdim=True)
    starts = maps.new_tensor(LABEL_STARTS[: speakers.shape[1]])[:, None]
    labels = (speakers - low) / (high - low + MAP_EPSILON) * LABEL_LENGTH + starts
    labels = torch.cat([labels, torch.full_like(labels[:, :1], BACKGROUND_LABEL)], dim=1)
    return labels.gather(1, dominant_class(maps)[:, None])[:, 0]


def dominant_class(maps: Tensor) -> Tensor:
    """The class that each token belongs to: [B, K, n] → [B, n]; the raw maps decide, and the background takes part."""
    return maps.argmax(dim=1)


def audio_positions(speakers: int, context_tokens: int, device: torch.device | None = None) -> Tensor:
    """The label of every audio token of one latent frame, [S · M]: the centre of its speaker's range."""
    centres = torch.tensor(LABEL_STARTS[:speakers], device=device) + LABEL_LENGTH / 2
    return centres.repeat_interleave(context_tokens)


def rotate_(x: Tensor, positions: Tensor) -> Tensor:
    """1-D RoPE over neighbouring pairs of the head dim: computed in float32, written into x.

    Args:
        x: [B, n, H, d].
        positions: [n] or [B, n].
    Returns:
        x.
    """
    frequency = LABEL_ROPE_BASE ** -(torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float32) / x.shape[-1])
    positions = positions.float().expand(x.shape[:2])[..., None, None]  # the same for every head
    length = max(1, ROTATED_AT_ONCE // max(1, x[:, :1].numel()))
    for start in range(0, x.shape[1], length):
        part = x[:, start : start + length]  # not split(), whose views autograd does not let be written into
        numbers = part.float()
        _turn_(numbers.unflatten(-1, (-1, 2)), positions[:, start : start + length] * frequency)
        if numbers.dtype != part.dtype:
            part.copy_(numbers)
    return x


def _turn_(pairs: Tensor, angle: Tensor) -> None:
    """Each pair [.., 2], a complex number, by its angle [..], in place."""
    if pairs.device.type in COMPLEX:  # one operation, 20 times as fast on a CPU
        torch.view_as_complex(pairs).mul_(torch.polar(torch.ones_like(angle), angle))
        return
    (even, odd), cos, sin = (pairs[..., 0], pairs[..., 1]), angle.cos(), angle.sin()
    turned = even * cos - odd * sin
    odd.mul_(cos).addcmul_(even, sin)
    even.copy_(turned)


def split_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of video frames, sorted by latent frame.

    The first latent hears its frame's five embeddings. A later one hears, of its four frames: the left half of the first, the
    centre of each middle one, the right half of the last.

    Args:
        windows: [S, F, 5, L, D] with F = 4 (T − 1) + 1.
    Returns:
        [S, 1, 5, L, D] and [S, T − 1, 8, L, D].
    """
    later = rearrange(windows[:, 1:], "s (t f) w l d -> s t f w l d", f=FRAMES_PER_LATENT)
    centre = WINDOW // 2
    left, middle, right = later[:, :, 0, : centre + 1], later[:, :, 1:-1, centre], later[:, :, -1, centre:]
    return windows[:, :1], torch.cat([left, middle, right], dim=2)


class AudioProjection(nn.Module):
    """Audio windows → context tokens."""

    def __init__(self, shape: AdapterShape, operations: Any, **kwargs: Any) -> None:
        super().__init__()
        self.shape = shape
        self.proj1 = operations.Linear(WINDOW * shape.audio_features, shape.intermediate, **kwargs)
        self.proj1_vf = operations.Linear(LATER_WINDOW * shape.audio_features, shape.intermediate, **kwargs)
        self.proj2 = operations.Linear(shape.intermediate, shape.intermediate, **kwargs)
        self.proj3 = operations.Linear(shape.intermediate, shape.context_tokens * shape.token_dim, **kwargs)
        self.norm = operations.LayerNorm(shape.token_dim, **kwargs)

    def forward(self, windows: Tensor) -> Tensor:
        """[S, F, 5, L, D] → [1, T, S · M, token dim], the speakers' tokens side by side.

        Raises:
            WeightsError: embeddings of another encoder.
        """
        first, later = self._windows(windows)
        tokens = self._tokens(first.flatten(0, 1), later.flatten(0, 1))
        return self._side_by_side(tokens, len(windows))

    def with_null(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of the voices, and of null audio [1, T, M, token dim], in one pass over the weights.

        Null audio is zero windows of *one* speaker, however many speak; they still go through the projection. All null latents after
        the first hear the same zeros, so one of them is made. Laid side by side as often as there are speakers, its tokens have the
        shape of the voices' and mean the same: to attend to every token n times is to attend to it once.

        Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate().
        """
        first, later = self._windows(windows)
        tokens = self._tokens(*(F.pad(part.flatten(0, 1), (0, 0, 0, 1)) for part in (first, later)))  # behind each, a row of silence
        count = len(first)
        voices = torch.cat([tokens[:count], tokens[count + 1 : -1]])
        null = torch.cat([tokens[count : count + 1], tokens[-1:].expand(later.shape[1], -1, -1)])
        return self._side_by_side(voices, count), null[None]

    def _windows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        self.shape.check_encoder(*windows.shape[-2:])
        first, later = split_windows(windows)
        return first.flatten(2), later.flatten(2)

    def _tokens(self, first: Tensor, later: Tensor) -> Tensor:
        """Windows of first latents [a, 5 · L · D] and of later ones [b, 8 · L · D] → [a + b, M, token dim]."""
        hidden = torch.cat([self.proj1(first).relu(), self.proj1_vf(later).relu()])
        tokens = self.proj3(self.proj2(hidden).relu())
        return self.norm(rearrange(tokens, "n (m c) -> n m c", m=self.shape.context_tokens))

    def _side_by_side(self, tokens: Tensor, speakers: int) -> Tensor:
        """Every speaker's first latent, then every speaker's later ones [S · T, M, c] → [1, T, S · M, c]."""
        first, later = tokens[:speakers, None], rearrange(tokens[speakers:], "(s t) m c -> s t m c", s=speakers)
        return rearrange(torch.cat([first, later], dim=1), "s t m c -> 1 t (s m) c")


class AudioCrossAttention(nn.Module):
    """Every token listens to the audio tokens of its own latent frame; labels decide to which voice."""

    def __init__(self, shape: AdapterShape, operations: Any, **kwargs: Any) -> None:
        super().__init__()
        self.q_linear = operations.Linear(shape.dim, shape.dim, **kwargs)
        self.kv_linear = operations.Linear(shape.token_dim, 2 * shape.dim, **kwargs)
        self.proj = operations.Linear(shape.dim, shape.dim, **kwargs)

    def forward(
        self,
        x: Tensor,
        audio: Tensor,
        heads: int,
        labels: Tensor | None = None,
        audio_labels: Tensor | None = None,
        attention: Attention = sdpa,
    ) -> Tensor:
        """x [B, T · N, C], audio [B, T, A, token dim] → [B, T · N, C].

        Args:
            labels: [B, T · N] positions of the tokens, or None for one speaker, who needs no routing.
            audio_labels: [A] or [B, A], positions of one frame's audio tokens; None with `labels`.
        """
        batch, frames = audio.shape[:2]
        q = rearrange(self.q_linear(x), "b n (h d) -> b n h d", h=heads)
        kv = rearrange(self.kv_linear(audio), "b t a (two h d) -> (b t) a two h d", two=2, h=heads)
        k, v = kv[:, :, 0], kv[:, :, 1]
        if labels is not None and audio_labels is not None:
            q = rotate_(q, labels)
            k = rotate_(k, audio_labels if audio_labels.ndim == 1 else audio_labels.repeat_interleave(frames, dim=0))
        q = rearrange(q, "b (t n) h d -> (b t) h n d", t=frames)  # a view, as are k and v: nothing is copied for the attention
        heard = attention(q, k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(rearrange(heard, "(b t) h n d -> b (t n) (h d)", b=batch))


class AudioBlock(nn.Module):
    """What MultiTalk adds to one WAN block, between text cross-attention and feed-forward: x + attention(norm(x)), no gate."""

    def __init__(self, shape: AdapterShape, operations: Any, **kwargs: Any) -> None:
        super().__init__()
        self.norm_x = operations.LayerNorm(shape.dim, eps=1e-6, **kwargs)
        self.audio_cross_attn = AudioCrossAttention(shape, operations, **kwargs)

    def forward(self, x: Tensor, *heard: Any) -> Tensor:
        """[B, T · N, C] → the same; the rest as in AudioCrossAttention.forward."""
        return x + self.audio_cross_attn(self.norm_x(x), *heard)


class MultiTalkAdapter(nn.Module):
    """All the weights of a MultiTalk or InfiniteTalk file, with the official keys."""

    def __init__(self, shape: AdapterShape, operations: Any = nn, **kwargs: Any) -> None:
        super().__init__()
        self.shape = shape
        self.audio_proj = AudioProjection(shape, operations, **kwargs)
        self.blocks = nn.ModuleList([AudioBlock(shape, operations, **kwargs) for _ in range(shape.blocks)])

    def speakers_in(self, audio: Tensor) -> int:
        """S of audio tokens [.., S · M, token dim]."""
        return audio.shape[-2] // self.shape.context_tokens

    def check_state(self, tensors: Mapping[str, Shaped]) -> dict[str, Shaped]:
        """The tensors that belong here, every one present and of the right shape; other tensors of the file are left out.

        Raises:
            WeightsError: names the first tensor that is missing or does not fit.
        """
        expected = self.state_dict()
        for key, tensor in expected.items():
            if key not in tensors:
                raise WeightsError(
                    f"The MultiTalk weights lack the tensor '{key}'. The file is incomplete or of another model; get it again."
                )
            if tuple(tensors[key].shape) != tuple(tensor.shape):
                raise WeightsError(f"Tensor '{key}' has shape {tuple(tensors[key].shape)}; {tuple(tensor.shape)} was expected.")
        return {key: tensors[key] for key in expected}
