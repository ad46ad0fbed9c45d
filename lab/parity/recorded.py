"""What stands in for the recorded runs' surroundings: their WAN and its latents, their VAE, noise and CLIP features."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

from ...comfy_bridge.backend import ComfyBackend
from ...comfy_bridge.conditioning import Conditioning
from ...comfy_bridge.guider import MultiTalkGuider
from ...multitalk_core.generate import Condition, clip_seed
from .goldens import Goldens


def wan_of(g: Goldens, override: dict[str, dict[str, Any]] | None = None) -> Any:
    """The set's WAN model through ComfyUI's own loader, in float32; `override` names tensors that a run had in place of the set's."""
    model = g.params["model"]
    tensors = {key: value for name in model["weights"]["base"] for key, value in g.file(name).items()}
    tensors |= {key: g[reference] for key, reference in (override or {}).items()}
    lines = ("num_heads", "text_dim", "freq_dim", "eps", "qk_norm", "cross_attn_norm")  # what tensors do not tell
    shape = {key: model["wan"][key] for key in lines}
    metadata = {"config": json.dumps({"transformer": shape})}
    return comfy.sd.load_diffusion_model_state_dict(tensors, model_options={"dtype": torch.float32}, metadata=metadata)


@dataclass(frozen=True)
class Latents:
    """The set's latents are in the model's space; ComfyUI's nodes hand over what the VAE gives."""

    model: Any

    def to_vae(self, latent: Tensor) -> Tensor:
        return self.model.model.process_latent_out(latent.float())

    def to_model(self, latent: Tensor) -> Tensor:
        return self.model.model.process_latent_in(latent.float())


class RecordingGuider(MultiTalkGuider):
    """The product's guider that also keeps every step's velocities and their sum."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.velocities: list[dict[str, Tensor]] = []
        self.guided: list[Tensor] = []
        self.momentum_norms: list[float] = []

    def guided_velocity(self, velocities: dict[Any, Tensor]) -> Tensor:
        guided = super().guided_velocity(velocities)
        self.velocities.append({name: v[0].clone() for name, v in velocities.items()})
        self.guided.append(guided[0].clone())
        if self._projected is not None:
            self.momentum_norms += [float(running.double().norm()) for running in self._projected._running.values()]
        return guided


def evaluate(guider: MultiTalkGuider, latents: list[Tensor], levels: Tensor, seed: int = 0) -> None:
    """Ask the guider for each latent [16, T, H, W] at its noise level, within one run."""

    def visit(model: Callable[..., Tensor], noise: Tensor, run_sigmas: Tensor, extra_args: Any, **_: Any) -> Tensor:
        for latent, level in zip(latents, levels, strict=True):
            model(latent[None].float(), level[None].float(), **extra_args)
        return noise

    empty = torch.zeros_like(latents[0][None])
    guider.sample(
        torch.zeros_like(empty), empty, comfy.samplers.KSAMPLER(visit), torch.cat([levels, levels[:1] * 0]), disable_pbar=True, seed=seed
    )


def prompt(g: Goldens, reference: dict[str, Any]) -> Conditioning:
    """A text embedding padded with zeros to the model's length, as the text encoder of WAN gives it."""
    text = g[reference].float()
    return [[F.pad(text, (0, 0, 0, g.params["model"]["wan"]["text_len"] - text.shape[0]))[None], {}]]


def clip_output(features: Tensor) -> SimpleNamespace:
    return SimpleNamespace(penultimate_hidden_states=features.float())


def known_frames(y: Tensor) -> int:
    """Known latent frames by the mask channels of y."""
    return int(y[0, 0, :, 0, 0].sum())


@dataclass(frozen=True)
class StubVAE:
    """The linear VAE of the recorded runs behind the interface of ComfyUI's VAE."""

    parameters: dict[str, Any]
    enc_w: Tensor
    enc_b: Tensor
    dec_w: Tensor
    latents: Latents

    @classmethod
    def of(cls, g: Goldens, latents: Latents) -> StubVAE:
        parameters = g.params["model"]["stub_vae"]
        return cls(parameters, *(g[parameters[key]] for key in ("enc_w", "enc_b", "dec_w")), latents)

    def encode(self, frames: Tensor) -> Tensor:
        """[F, H, W, 3] in 0…1 → [1, C, T, h, w]."""
        rule = self.parameters["encode"]
        small = F.avg_pool2d((frames * 2 - 1).movedim(-1, 1), rule["spatial_mean"])
        first, later = small[: rule["first_group"]], small[rule["first_group"] :]
        groups = [first.mean(dim=0), *(group.mean(dim=0) for group in later.split(rule["later_groups"]) if len(later))]
        rgb = torch.stack(groups, dim=1)
        latent = torch.einsum("cr,rthw->cthw", self.enc_w, rgb) + self.enc_b[:, None, None, None]
        return self.latents.to_vae(latent[None])

    def decode(self, latent: Tensor) -> Tensor:
        """[1, C, T, h, w] → [1, F, H, W, 3] in 0…1."""
        rule = self.parameters["decode"]
        rgb = torch.einsum("rc,cthw->trhw", self.dec_w, self.latents.to_model(latent)[0])
        frames = [rgb[0] * s for s in rule["first_frame_scales"]] + [r * s for r in rgb[1:] for s in rule["later_frame_scales"]]
        side = rule["upsample_nearest"]
        large = torch.stack(frames).repeat_interleave(side, dim=-1).repeat_interleave(side, dim=-2)
        return ((large.clamp(*rule["clamp"]).movedim(1, -1) + 1) / 2)[None]


@dataclass(frozen=True, kw_only=True)
class RecordedBackend(ComfyBackend):
    """The product's backend with the recorded run's noise; keeps what passes through."""

    recorded: Recorded
    conditions: list[Condition] = field(default_factory=list)
    denoised: list[Tensor] = field(default_factory=list)
    decoded: list[Tensor] = field(default_factory=list)
    own_noise: list[Tensor] = field(default_factory=list)

    def noise(self, empty: Tensor, seed: int) -> Tensor:
        self.own_noise.append(super().noise(empty, seed))
        return self.recorded.noise(seed)

    def denoise(self, condition: Condition, seed: int) -> Tensor:
        latent = super().denoise(condition, seed)
        self.conditions.append(condition)
        self.denoised.append(latent)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        frames = super().decode(latent)
        self.decoded.append(frames)
        return frames


@dataclass
class Recorded:
    """What the recorded run drew and saw, clip by clip."""

    goldens: Any
    clips: list[dict[str, Any]]
    seed: int
    sigmas: Tensor
    seen: int = 0  # clips that were looked at

    def look_at(self, clip_vision: Any, picture: Tensor) -> Any:
        """CLIP's features of the next clip, in place of its look at a picture."""
        self.seen += 1
        return clip_output(self.goldens[self.clips[self.seen - 1]["tensors"]["clip_fea"]])

    def noise(self, seed: int) -> Tensor:
        return self.goldens[self.clips[self._index(seed)]["tensors"]["noise"]][None]

    def _index(self, seed: int) -> int:
        return next(i for i in range(len(self.clips)) if clip_seed(self.seed, i) == seed)

    def motion_noise(self, shape: torch.Size, sigma: float, seed: int) -> Tensor:
        """motion_noise_initial at the first level, then the noise that was drawn after the step that led to this level."""
        tensors = self.clips[self._index(seed)]["tensors"]
        if not tensors["motion_noise_initial"]:
            return torch.zeros(shape)  # the recorded run drew none, so asking for some must show
        step = int((self.sigmas - sigma).abs().argmin())
        noise = self.goldens[tensors["motion_noise_initial"]] if step == 0 else self.goldens[tensors["motion_noise_step"]][step - 1]
        return noise.reshape(shape)
