"""What a computation takes, counted and not timed: operations, calls of attention, memory; on fake tensors of any size.

Fake tensors have shapes but no numbers (torch FakeTensorMode): WAN 14B at its true size takes a few seconds and no memory.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# Assumed of an H200 in 16 bits: 80 and 90 % of its datasheet's 989 TFLOP/s and 4.8 TB/s.
OPERATIONS_A_SECOND, BYTES_A_SECOND = 790e12, 4.3e12
ATTENTION_PACES = (1.0, 0.5)  # of the pace of matrix products, assumed: the best kernels for such a card, and flash-attention 2
ONLY_SHAPE = ("new_", "zeros_like", "ones_like", "empty_like", "zero_", "fill_", "copy_")  # read nothing of their first argument


@dataclass
class Counted:
    """Of one computation."""

    operations: int  # multiplications and additions of matrices and attention, 2 to a pair
    attention_calls: int
    peak_bytes: int  # of tensors that it allocated, the most at a time; what was there before is not counted
    largest_bytes: int  # the largest of them
    seconds: tuple[float, ...]  # by ATTENTION_PACES, if a kernel took what its operations or its traffic take, whichever is more


def count(compute: Callable[[], Any]) -> Counted:
    """Run a computation once, on real or fake tensors.

    Raises:
        ValueError: in inference mode, where a layer is one kernel whose operations nobody knows.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("Nothing can be counted in inference mode. Use torch.no_grad().")
    with _Watch() as seen:
        compute()
    return Counted(seen.operations, seen.attention_calls, seen.peak, seen.largest, tuple(seen.seconds))


@contextmanager
def fake() -> Iterator[None]:
    """Inside, every new tensor is a shape."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield


def fused_attention(_function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, skip_reshape: bool = False, **how: Any) -> Tensor:
    """In place of ComfyUI's attention (optimized_attention_override): one fused call, as on a GPU; by free memory nothing is chosen."""
    if not skip_reshape:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return out if how.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


def _is_attention(function: Any) -> bool:
    return "scaled_dot_product" in str(function)


def _operations(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    if _is_attention(function):  # the CPU's is not in torch's registry
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    known = flop_registry.get(function._overloadpacket)
    return known(*args, **kwargs, out_val=out) if known else 0


def _traffic(function: Any, given: list[Tensor], made: list[Tensor]) -> int:
    """Bytes that a kernel reads and writes; a view moves none."""
    name = function._overloadpacket.__name__
    ours = {id(t.untyped_storage()) for t in given}
    if not name.endswith("_") and all(id(t.untyped_storage()) in ours for t in made):
        return 0
    read = given[1:] if name.startswith(ONLY_SHAPE) else given
    return sum(t.element_size() * math.prod(n for n, step in zip(t.shape, t.stride(), strict=True) if step) for t in (*read, *made))


class _Watch(TorchDispatchMode):
    """Operations and memory of every kernel that is called while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = self.attention_calls = self.operations = 0
        self.seconds = [0.0] * len(ATTENTION_PACES)
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = {id(t.untyped_storage()) for t in given}
        out = function(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        operations = _operations(function, args, kwargs, out)
        self.operations += operations
        traffic = _traffic(function, given, made) / BYTES_A_SECOND
        for number, pace in enumerate(ATTENTION_PACES):
            slower = pace if _is_attention(function) else 1.0
            self.seconds[number] += max(operations / (OPERATIONS_A_SECOND * slower), traffic)
        self.attention_calls += _is_attention(function)
        for tensor in made:
            if id(storage := tensor.untyped_storage()) not in before | self._known:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), id(storage)
        self._known.add(key)
        weakref.finalize(storage, self._drop, key, size)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
