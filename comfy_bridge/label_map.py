"""Which voice each region hears: the reference maps of one block and one step, watched in a real run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..multitalk_core.errors import SpeakerError
from .guider import MultiTalkGuider
from .patches import RECORD
from .sampling import Sampling, sample_clip
from .step_cache import RULE

POSITIVE = 0  # of core's cond_or_uncond: the branch with prompt and voices


@dataclass
class MapRecorder:
    """Keeps the maps [K, T, h, w] of the first evaluation at a noise level, as one block makes them."""

    block: int
    sigma: float
    maps: Tensor | None = None
    masks: Tensor | None = None  # [K, h, w], the classes' own tokens

    def see(self, options: dict[str, Any], branch: int, maps: Tensor, masks: Tensor) -> None:
        """Called by the attention patch of every block with one video's maps [K, T · h · w], its branch, and masks [K, h · w]."""
        at = float(options["sigmas"].flatten()[0])
        if self.maps is None and options["block_index"] == self.block and math.isclose(at, self.sigma, rel_tol=1e-5) and branch == POSITIVE:
            self.maps = maps.unflatten(-1, options["grid_sizes"]).cpu()
            self.masks = masks.unflatten(-1, options["grid_sizes"][1:]).cpu()


def watch_maps(
    guider: MultiTalkGuider, latent: dict[str, Any], sampling: Sampling, seed: int, block: int, step: int
) -> tuple[Tensor, Tensor]:
    """Sample up to `step`, exactly as the whole run would: that step's maps [K, T, h, w] and masks [K, h, w], background last.

    Args:
        block, step: counted from 1.
    Raises:
        SpeakerError: no such block or step, or a single speaker, whom everything hears.
    """
    patcher = guider.model_patcher
    blocks, steps = len(patcher.model.diffusion_model.blocks), sampling.steps
    if not 1 <= block <= blocks or not 1 <= step <= steps:
        raise SpeakerError(f"Block {block} and step {step} were asked for; the model has {blocks} blocks, and the schedule {steps} steps.")
    recorder = MapRecorder(block - 1, float(sampling.sigmas[step - 1]))
    watched = patcher.clone()
    options = watched.model_options.setdefault("transformer_options", {})
    options[RECORD] = recorder
    if (rule := options.get(RULE)) is not None:  # the last steps are those of the whole schedule, which is cut below
        options[RULE] = replace(rule, last_steps=max(0, rule.last_steps - (steps - step)))
    guider.model_patcher, guider.model_options = watched, watched.model_options
    sample_clip(guider, latent, sampling, seed, step)
    if recorder.maps is None or recorder.masks is None:
        raise SpeakerError(
            "No map was made. With a single speaker there is none: everything in the picture hears the one voice. "
            "Otherwise connect model, positive, negative and latent of the same MultiTalk Conditioning; and with a step cache choose "
            "another step, as a step that is reused makes no map."
        )
    return recorder.maps, recorder.masks
