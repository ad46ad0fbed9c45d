"""Guidance by text and audio as an ordinary ComfyUI GUIDER."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ..multitalk_core.guidance import Branch, ProjectedGuidance, Projection, branches, combine, in_float64
from .conditioning import Conditioning, check_latent, check_prepared, with_null_audio

# Core asks for "positive" and "negative" by name (ControlNet, hooks); the two without voices have names of our own.
COND_NAMES: dict[Branch, str] = {"cond": "positive", "drop_text": "negative", "drop_audio": "drop_audio", "uncond": "uncond"}


class MultiTalkGuider(comfy.samplers.CFGGuider):
    """One, two or three evaluations a step; see multitalk_core.guidance."""

    def __init__(
        self,
        model: comfy.model_patcher.ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        text_scale: float,
        audio_scale: float,
        projection: Projection | None = None,
    ) -> None:
        super().__init__(model)
        self.text_scale, self.audio_scale, self.projection = text_scale, audio_scale, projection
        self.cfg = text_scale  # what core and other packs read
        self._projected: ProjectedGuidance | None = None
        self.inner_set_conds(
            {
                "positive": positive,
                "negative": negative,
                "drop_audio": with_null_audio(positive),
                "uncond": with_null_audio(negative),
            }
        )

    def sample(self, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As CFGGuider.sample; the momentum of APG lives for this run only."""
        check_latent(latent_image, self.original_conds["positive"])
        self._projected = ProjectedGuidance(self.projection) if self.projection else None
        try:
            return super().sample(noise, latent_image, *args, **kwargs)
        finally:
            self._projected = None

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] = {}, seed: int | None = None) -> Tensor:  # noqa: B006 — core's signature
        """The guided denoised latent. Guidance is done in velocity, v = (x − denoised) / σ, where MultiTalk defines it."""
        wanted = branches(self.text_scale, self.audio_scale)
        if len(wanted) == 1 and model_options.get("disable_cfg1_optimization"):
            wanted = ("cond", "drop_text")  # a sampler or a post-CFG function asks for an unguided answer to compare with
        conds = [self.conds[COND_NAMES[name]] for name in wanted]
        # In float64, because core returns x − σ · v: what float32 would leave of v is only good to ε · |x| / σ, and σ ends at 0.002.
        # The model itself still runs in its own precision.
        precise = in_float64(x)
        denoised = comfy.samplers.calc_cond_batch(self.inner_model, conds, precise, timestep, model_options)
        sigma = timestep.reshape(-1, *[1] * (x.ndim - 1))
        velocities = {name: ((precise - d) / sigma).to(x) for name, d in zip(wanted, denoised, strict=True)}
        guided = x - sigma * self.guided_velocity(velocities)
        for function in model_options.get("sampler_post_cfg_function", []):
            guided = function(self._post_cfg_arguments(guided, [d.to(x) for d in denoised], conds, x, timestep, model_options))
        return guided

    def guided_velocity(self, velocities: dict[Branch, Tensor]) -> Tensor:
        """The velocities of this step's branches, [B, C, T, H, W] each, as one."""
        rule = self._projected.combine if self._projected else combine
        return rule(velocities, self.text_scale, self.audio_scale)

    def _post_cfg_arguments(
        self, guided: Tensor, denoised: list[Tensor], conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> dict[str, Any]:
        """What core hands to a post-CFG function; "uncond" is the last branch, the farthest from the prompt and the voices."""
        return {
            "denoised": guided,
            "cond": conds[0],
            "uncond": conds[-1],
            "cond_scale": self.cfg,
            "model": self.inner_model,
            "cond_denoised": denoised[0],
            "uncond_denoised": denoised[-1],
            "sigma": timestep,
            "model_options": model_options,
            "input": x,
        }


def guide(
    model: comfy.model_patcher.ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    text_scale: float,
    audio_scale: float,
    projection: Projection | None = None,
) -> MultiTalkGuider:
    """A guider of what a user connected.

    Raises:
        SpeakerError: the model, or a prompt that is evaluated, did not go through MultiTalk Conditioning.
    """
    needed = {"positive": positive}
    if {"drop_text", "uncond"} & {*branches(text_scale, audio_scale)}:
        needed["negative"] = negative
    check_prepared(model, needed)
    return MultiTalkGuider(model, positive, negative, text_scale, audio_scale, projection)
