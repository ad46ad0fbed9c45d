"""TeaCache on ComfyUI's own WAN: block replacements around whatever else replaces blocks, put in place for each forward.

A run's state is in that run's transformer_options and ends with it; a clip of a long video is a run. See multitalk_core.step_cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import comfy.ldm.wan.model
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..multitalk_core.model import WeightsError
from ..multitalk_core.step_cache import BranchCache, Rule
from .patches import options_of

RULE = KEY = "multitalk_step_cache"  # in transformer_options, where a job's key finds it; and of the wrappers
RUN = "multitalk_step_cache_run"  # in a run's transformer_options

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
    """What one sampling run keeps."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._branches: dict[Hashable, BranchCache] = {}
        self._seen: dict[Hashable, int] = {}  # the step that each was asked in last
        self.asked = self.reused = 0  # evaluations, each of one branch in one step

    def branch(self, key: Hashable, step: int) -> BranchCache:
        """A branch's state; what was not asked in the step before is forgotten, as windows that moved on are."""
        self._seen[key] = step
        self._seen = {k: last for k, last in self._seen.items() if last >= step - 1}
        self._branches = {k: self._branches.get(k) or BranchCache(self._rule) for k in self._seen}
        return self._branches[key]


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


def _through_the_cache(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """DIFFUSION_MODEL wrapper: every block of this forward is asked for through a _Forward."""
    options = options_of(args, kwargs)
    if RUN in options and options.get("sample_sigmas") is not None:
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
        level = options["sigmas"].flatten()[0].to(schedule)
        self._steps = len(schedule) - 1
        self._step = max(0, int((schedule >= level * (1 - 1e-6)).sum()) - 1)  # the last level that is not below this one
        # the same conditioning is asked again for another window of a long latent, or with other blocks replaced (skip layer guidance)
        window = tuple(getattr(options.get("context_window"), "index_list", ()))
        places = (window, tuple((name, id(function)) for name, function in others.items()))
        self._keys = [(uuid, *places) for uuid in options["uuids"]]
        self._entered: Tensor  # [B, N, C]
        self._branches: list[BranchCache] = []
        self._run_blocks: list[bool] = []

    def block(self, other: Callable[..., Any] | None, number: int, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        """In place of a block, or of what replaced it."""
        if number == 0:
            self._enter(args["img"], args["vec"])
        x = args["img"]
        if any(self._run_blocks):
            x = (other(args, extra) if other else extra["original_block"](args))["img"]
        return {"img": self._leave(x) if number == self._last else x}

    def _enter(self, x: Tensor, e0: Tensor) -> None:
        self._entered = x
        parts = e0.chunk(len(self._keys))
        self._branches = [self._run.branch((*key, x.shape[1:]), self._step) for key in self._keys]
        self._run_blocks = [branch.must_run(part, self._step, self._steps) for branch, part in zip(self._branches, parts, strict=True)]
        self._run.asked += len(self._branches)
        self._run.reused += self._run_blocks.count(False)

    def _leave(self, x: Tensor) -> Tensor:
        """Keep what the blocks added, or add again what they added before."""
        count = len(self._branches)
        left = list(x.chunk(count))
        for i, (branch, entered) in enumerate(zip(self._branches, self._entered.chunk(count), strict=True)):
            if self._run_blocks[i]:
                branch.residual = left[i] - entered
            elif branch.residual is not None:
                left[i] = entered + branch.residual.to(entered)
        return x if all(self._run_blocks) else torch.cat(left)
