"""Muon for convolutions: momentum whose update is made orthogonal.

Sources: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), for the Newton-Schulz iteration and its
coefficients; J. Liu et al., "Muon is scalable for LLM training" (2025), eq. 4, for the factor 0.2 · √max(rows, columns), which makes its
learning rates those of Adam. torch.optim.Muon takes matrices only; kernels are matrices [out, in · taps] here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAM_RMS = 0.2


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [B, r, c] → about U Vᵀ of their singular value decompositions U S Vᵀ."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions, the first of which is the output."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            same: dict[tuple[int, int], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    same.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
            for (rows, columns), weights in same.items():
                updates = orthogonal(torch.stack([self._momentum(w, group["momentum"]).reshape(rows, columns) for w in weights]))
                size = ADAM_RMS * max(rows, columns) ** 0.5 * group["lr"]
                for weight, update in zip(weights, updates, strict=True):
                    weight.sub_(update.reshape(weight.shape), alpha=size)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        """Nesterov's."""
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].mul_(momentum).add_(weight.grad)
        return weight.grad + momentum * state["momentum"]
