"""TeaCache on ComfyUI's own WAN: block replacements around whatever else replaces blocks, put in place for each forward.

A run's state is in that run's transformer_options and ends with it; a clip of a long video is a run. See multitalk_core.step_cache.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import comfy.ldm.wan.model
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..multitalk_core.errors import WeightsError
from ..multitalk_core.step_cache import BranchCache, Rule
from .patches import options_of, untraced, untraced_itself

RULE = KEY = "multitalk_step_cache"  # in transformer_options, where a job's key finds it; and of the wrappers
RUN = "multitalk_step_cache_run"  # in a run's transformer_options
NEEDED = (RUN, "sample_sigmas", "sigmas", "uuids", "cond_or_uncond")  # in transformer_options; else the network is called as it is
SAME = 1e-5  # relative; levels nearer than this are one: samplers compute some of them by logarithms, and steps are 10 times that apart

log = logging.getLogger(__name__)


def cache_steps(model: comfy.model_patcher.ModelPatcher, rule: Rule) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that reuses what its blocks added, by this rule only. A threshold of 0 takes the cache away.

    Raises:
        WeightsError: not a plain WAN 2.1, whose blocks can be skipped as one.
    """
    if type(model.model.diffusion_model) is not comfy.ldm.wan.model.WanModel:
        raise WeightsError(
            f"MultiTalk Step Cache needs a WAN 2.1 text-to-video or image-to-video model, but the MODEL is "
            f"{type(model.model).__name__} ({type(model.model.diffusion_model).__name__}). Connect one, or leave the node out."
        )
    cached = model.clone()
    cached.model_options["transformer_options"].pop(RULE, None)
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _in_a_run), (WrappersMP.DIFFUSION_MODEL, _through_the_cache)):
        cached.remove_wrappers_with_key(kind, KEY)
        if rule.threshold > 0:
            cached.add_wrapper_with_key(kind, KEY, wrapper)
            cached.model_options["transformer_options"][RULE] = rule
    return cached


class Run:
    """What one sampling run keeps. Safe to ask from several threads, as ComfyUI has one for each GPU."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._lock = threading.Lock()
        self._branches: dict[Hashable, BranchCache] = {}
        self._asked: dict[Hashable, tuple[int, float]] = {}  # the step and level that each was asked at last
        self.asked = self.reused = 0  # evaluations, each of one branch

    def branch(self, key: Hashable, step: int, level: float) -> tuple[BranchCache, bool]:
        """A branch's state, and whether it was last asked at this very level. What the step before did not ask for is forgotten."""
        with self._lock:
            again = key in self._asked and math.isclose(level, self._asked[key][1], rel_tol=SAME)
            self._asked[key] = step, level
            self._asked = {k: asked for k, asked in self._asked.items() if asked[0] >= step - 1}
            self._branches = {k: self._branches.get(k) or BranchCache(self._rule) for k in self._asked}
            return self._branches[key], again

    def count(self, runs: list[bool]) -> None:
        """Add a forward's evaluations: for each branch, whether its blocks must run."""
        with self._lock:
            self.asked += len(runs)
            self.reused += runs.count(False)


def _in_a_run(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """OUTER_SAMPLE wrapper: a state for this run, which no one sees after it."""
    guider = executor.class_obj
    outer = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(outer)
    options = guider.model_options["transformer_options"]
    run = options[RUN] = Run(options[RULE])
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_options = outer
        log.info("MultiTalk Step Cache: %d of %d evaluations were reused.", run.reused, run.asked)


@untraced_itself
def _through_the_cache(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """DIFFUSION_MODEL wrapper: every block of this forward is asked for through a _Forward."""
    options = options_of(args, kwargs)
    if all(options.get(key) is not None for key in NEEDED):
        replaced = options.get("patches_replace", {})
        blocks = {("double_block", number): None for number in range(len(executor.class_obj.blocks))}
        others = replaced.get("dit", {})
        forward = _Forward(options, others, len(blocks))
        through = {name: partial(forward.block, others.get(name), name[1]) for name in blocks}
        options["patches_replace"] = {**replaced, "dit": {**others, **through}}
    return executor(*args, **kwargs)


class _Forward:
    """One forward of the model, which holds one or several branches.

    Each branch decides for itself. The blocks run if any of them needs it, as they take the batch whole; but a branch that would have
    reused still does, so that the video does not depend on how many branches the memory holds at once.
    """

    def __init__(self, options: dict[str, Any], others: dict[Any, Callable[..., Any]], blocks: int) -> None:
        self._run: Run = options[RUN]
        self._last = blocks - 1
        schedule = options["sample_sigmas"]
        self._level = level = float(options["sigmas"].flatten()[0])
        self._steps = len(schedule) - 1
        self._step = max(0, int((schedule >= level * (1 - SAME)).sum()) - 1)  # the last level that is not below this one
        # the same conditioning is asked again for another window of a long latent, with other blocks replaced (skip layer guidance),
        # and, where it has an area, in place of another branch's (core's create_cond_with_same_area_if_none)
        window = tuple(getattr(options.get("context_window"), "index_list", ()))
        places = (window, tuple((name, id(function)) for name, function in others.items()))
        self._keys = [(uuid, branch, *places) for uuid, branch in zip(options["uuids"], options["cond_or_uncond"], strict=True)]
        self._entered: list[Tensor] = []  # of each branch: [B, N, C]
        self._branches: list[BranchCache] = []
        self._run_blocks: list[bool] = []

    @untraced_itself
    def block(self, other: Callable[..., Any] | None, number: int, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        """In place of a block, or of what replaced it."""
        if number == 0:
            self._enter(args["img"], args["vec"])
        x = args["img"]
        if any(self._run_blocks):
            x = (other(args, extra) if other else extra["original_block"](args))["img"]
        return {"img": self._leave(x) if number == self._last else x}

    @untraced
    def _enter(self, x: Tensor, e0: Tensor) -> None:
        count = len(self._keys)
        self._entered = list(x.chunk(count))
        self._branches, self._run_blocks = [], []
        for key, part in zip(self._keys, e0.chunk(count), strict=True):
            branch, again = self._run.branch((*key, x.shape[1:]), self._step, self._level)
            self._branches.append(branch)
            self._run_blocks.append(branch.must_run(part, self._step, self._steps, again))
        self._run.count(self._run_blocks)

    @untraced
    def _leave(self, x: Tensor) -> Tensor:
        """Keep what the blocks added, or add again what they added before."""
        left, entered = list(x.chunk(len(self._branches))), self._entered
        self._entered = []  # it is large, and this object lives as long as the call's options
        for i, branch in enumerate(self._branches):
            if self._run_blocks[i]:
                branch.residual = left[i] - entered[i]
            elif branch.residual is not None:
                left[i] = entered[i] + branch.residual.to(entered[i])
        return x if all(self._run_blocks) else torch.cat(left)
