"""TeaCache (arXiv 2411.19108): steps that would change little take over what the blocks added the last time.

The blocks of the model are only run when the time embedding has moved far enough since they were run last. Otherwise their residual
(what they added to their input then) is added again. Input and head still run, so the step itself is made.

The official code decides by a counter of calls and takes every third one for the same branch. That holds for three evaluations a step;
with two (text scale 1) it compares and mixes branches, and its first five steps become seven and a half. Here every branch has a state of
its own and is asked by step, so that one, two and three evaluations are right, in any order. With three, the results are the official ones.

Shapes: e0 is the output of WAN's time projection for one branch, [B, .., 6, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from torch import Tensor

# Polynomials from the distance of e0 to that of the model's output, highest power first, by size.
# Source: MeiGen-AI/MultiTalk@c1ad840 wan/modules/multitalk_model.py, teacache_init(), use_ret_steps=True, as generate() always calls it;
# the same numbers under infinitetalk-480 and -720 in MeiGen-AI/InfiniteTalk@0107cd9.
TABLES: dict[str, tuple[float, ...]] = {
    "multitalk-480": (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    "multitalk-720": (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
    "none": (1.0, 0.0),  # the distance itself: for models that no polynomial was fitted to
}
FIRST_STEPS = 5  # that are always made; source: as above, ret_steps


@dataclass(frozen=True)
class Rule:
    """When blocks are run."""

    threshold: float  # of the summed, rescaled distances; 0 is never to reuse
    coefficients: tuple[float, ...]  # of the polynomial, highest power first
    first_steps: int = FIRST_STEPS
    last_steps: int = 0  # at the end that are always made

    def rescaled(self, distance: float) -> float:
        """The polynomial of a distance. It can be below 0; the official code sums that up as well."""
        return reduce(lambda value, coefficient: value * distance + coefficient, self.coefficients, 0.0)


class BranchCache:
    """What is kept of one branch of the guidance within one run: the last e0, the distance since the blocks ran, their residual."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._previous: Tensor | None = None
        self._accumulated = 0.0
        self.residual: Tensor | None = None  # [B, N, C], of the last time that the blocks ran

    def must_run(self, e0: Tensor, step: int, steps: int, again: bool = False) -> bool:
        """Whether the blocks must run in this step (counted from 0, of so many); else their residual is to be used again.

        Source: MeiGen-AI/MultiTalk@c1ad840 wan/modules/multitalk_model.py, WanModel.forward(), where every step has a level of its own.

        Args:
            again: the noise level is that of the last time. Then e0 tells nothing, as only the latent has changed, and the blocks run.
        """
        distance = None if again or self._previous is None else relative_distance(e0, self._previous.to(e0.device))
        self._previous = e0.clone()
        runs = self.moved_too_far(distance, step, steps)
        if runs:
            self.residual = None  # so that it does not stand beside the new one in memory
        return runs

    def moved_too_far(self, distance: float | None, step: int, steps: int) -> bool:
        """The decision itself, from the distance to the time before; None if there is none, which begins anew."""
        rule = self._rule
        if distance is not None and rule.first_steps <= step < steps - rule.last_steps:
            self._accumulated += rule.rescaled(distance)
            if rule.threshold > 0 and self._accumulated < rule.threshold:
                return False
        self._accumulated = 0.0
        return True


def relative_distance(now: Tensor, before: Tensor) -> float:
    """mean |now − before| / mean |before|, in float32."""
    return float((now.float() - before.float()).abs().mean() / before.float().abs().mean())
