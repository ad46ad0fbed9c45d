"""What a computation takes, counted and not timed: operations, calls of attention, memory; on fake tensors of any size.

Fake tensors have shapes but no numbers (torch FakeTensorMode): WAN 14B at its true size takes a few seconds and no memory.
"""

from __future__ import annotations

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
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass
class Counted:
    """Of one computation."""

    operations: int  # multiplications and additions of matrices and attention, 2 to a pair
    attention_calls: int
    peak_bytes: int  # of tensors that it allocated, the most at a time; what was there before is not counted
    largest_bytes: int  # the largest of them


def count(compute: Callable[[], Any]) -> Counted:
    """Run a computation once, on real or fake tensors."""
    memory = _Memory()
    with FlopCounterMode(display=False, custom_mapping={ON_CPU: _attention_operations}) as flops, memory:
        compute()
    return Counted(flops.get_total_flops(), memory.attention_calls, memory.peak, memory.largest)


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


def _attention_operations(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


class _Memory(TorchDispatchMode):
    """Bytes of the storages that are made while it is on, and of those the ones that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = self.attention_calls = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        self.attention_calls += "scaled_dot_product" in str(function)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in before | self._known:
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
