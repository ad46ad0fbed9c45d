"""The step cache: decisions from recorded distances and embeddings, and where the model's blocks really ran in a recorded run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...comfy_bridge.step_cache import cache_steps
from ...multitalk_core.step_cache import FIRST_STEPS, TABLES, BranchCache, Rule, relative_distance
from .goldens import Check, Goldens, compare

EXACT = {"exact": True}
ONE_BY_ONE = 1e15  # a memory_usage_factor with which ComfyUI never takes two branches at once


def rule_of(settings: dict[str, Any], coefficients: list[float], steps: int) -> Rule:
    """Calls of the official counter are steps here, with as many calls each as there are branches."""
    per_step = settings["calls_per_step"]
    last = steps - settings["cutoff_calls"] // per_step
    return Rule(settings["threshold"], tuple(coefficients), settings["ret_calls"] // per_step, last)


def with_step_cache(model: Any, case: dict[str, Any]) -> Any:
    """The model as MultiTalk Step Cache hands it on."""
    return cache_steps(model, rule_of(case["teacache"], case["teacache"]["coefficients"], case["steps"]))


def item_11(g: Goldens) -> Iterator[Check]:
    item = g.item("11")
    tolerance = item["tolerance"]
    for key, golden in item["coefficients"].items():
        size, retention = key.split("|")
        if retention == "use_ret_steps=True":  # the only one that generate() uses
            yield compare("11", f"coefficients {size}", TABLES[size], golden, EXACT)
    for name, case in item["cases"].items():
        run = g.json(case["file"])["runs"][case["index"]]
        rule = rule_of(case, item["coefficients"][case["coefficients_key"]], case["steps"])
        if case["use_ret_steps"]:
            yield compare("11", f"{name}.first and last steps", [FIRST_STEPS, 0], [rule.first_steps, rule.last_steps], EXACT)
        distances = run["rel_l1"]
        ours = [rule.rescaled(distance) for distance in distances[1:]]
        yield compare("11", f"{name}.rescaled", ours, run["rescaled"][1:], {"relative": 1e-9}, "bound ours; relative")
        yield from _decisions(name, "from distances", _from_distances(distances, rule), run, case, tolerance)
        if case["modulated"]:
            embeddings = g[case["modulated"]]
            measured = [relative_distance(*pair) for pair in zip(embeddings[1:], embeddings[:-1], strict=True)]
            yield compare("11", f"{name}.rel_l1", measured, distances[1:], tolerance["rel_l1"])
            cache = BranchCache(rule)
            made = [cache.must_run(e0[None], step, case["steps"]) for step, e0 in enumerate(embeddings)]
            yield from _decisions(name, "from embeddings", made, run, case, tolerance)


def _from_distances(distances: list[float | None], rule: Rule) -> list[bool]:
    cache = BranchCache(rule)
    return [cache.moved_too_far(distance, step, len(distances)) for step, distance in enumerate(distances)]


def _decisions(
    name: str, how: str, made: list[bool], run: dict[str, Any], case: dict[str, Any], tolerance: dict[str, Any]
) -> Iterator[Check]:
    """One branch's decisions stand for all: their embeddings are alike."""
    each = torch.tensor(made).repeat_interleave(case["calls_per_step"])
    yield compare("11", f"{name}.calc_per_call {how}", each, run["calc_per_call"], tolerance["decisions"])


def cached_clip(run: Any) -> Iterator[Check]:
    """Where the blocks ran, and what a step in the middle and the last led to, with branches in one forward and in one each."""
    golden, tensors = run.g, run.first
    for label, factor in (("together", None), ("one by one", ONE_BY_ONE)):
        with BlockWatch(run.model, run.sigmas, len(run.case["branches"]), factor) as watch:
            latents, final = run.sampled()
        found = [("calc_per_call", watch.ran.flatten(), run.case["tensors"]["calc_per_call"])]
        found.append(("latent_final", final, tensors["latent_final"]))
        for key, reference in tensors.items():
            if reference and (after := re.fullmatch(r"latent_after_step(\d+)", key)):
                found.append((key, [*latents, final][int(after[1])], reference))
        for key, ours, reference in found:
            yield compare(run.number, f"{run.name}: step cache, {label}: {key}", ours, golden[reference], run.bound[key])


class BlockWatch:
    """Marks every step and branch whose evaluation went through the model's first block."""

    def __init__(self, model: Any, sigmas: Tensor, branches: int, memory_usage_factor: float | None) -> None:
        self.model, self.sigmas, self.factor = model, sigmas, memory_usage_factor
        self.ran = torch.zeros(len(sigmas) - 1, branches, dtype=torch.bool)

    def __enter__(self) -> BlockWatch:
        self.before = self.model.model.memory_usage_factor
        self.model.model.memory_usage_factor = self.factor or self.before
        first = self.model.model.diffusion_model.blocks[0]
        self.hook = first.register_forward_pre_hook(self._mark, with_kwargs=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()
        self.model.model.memory_usage_factor = self.before

    def _mark(self, _block: Any, _inputs: Any, keywords: dict[str, Any]) -> None:
        options = keywords["transformer_options"]
        step = int((self.sigmas - options["sigmas"][0]).abs().argmin())
        self.ran[step, options["cond_or_uncond"]] = True
