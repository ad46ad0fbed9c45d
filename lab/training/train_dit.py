"""Trains the diffusion model and the audio layers by flow matching, on all the ways in which clips begin.

Sources: Y. Lipman et al., "Flow matching for generative modeling" (2023): x_σ = (1 − σ) x + σ ε, velocity ε − x; the shift of σ is WAN's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...multitalk_core.schedule import sigmas
from ...multitalk_core.windows import FRAMES_PER_LATENT
from .clips import Group
from .dit import MASK, Talker, build
from .round_trip import RoundTrip
from .stage import Report, Stage, fingerprint

BETAS = (0.9, 0.97)
AVERAGE = 0.998
SHIFT, LOWEST = 3.0, 0.02  # of σ
DEAF = 0.1  # share of steps with null audio, for guidance
LENGTHS = ((3, 0.15), (5, 0.30), (9, 0.27), (13, 0.12), (21, 0.16))  # latents of a step, share; attention costs their square
TOKENS = 2000  # of a step, about: of long or large clips a step has fewer
MOUTHS = 0.8  # weight of all mouths together, where everything else has 1
MOTION, STILL, FAINTEST = (
    0.5,
    0.03,
    3.0,
)  # variance over time of a mouth's latents: usual, silent; the most that faint ones gain
WORSE = (0.7, 1.4)  # what clips got wrong, times this: real errors agree with those before, and videos have more clips
AGES, AGING_STEPS = 3, 3  # clips of its own that a beginning comes after, at most; steps of sampling each


@dataclass(frozen=True)
class Beginning:
    """How the first latents of a clip are given: what the condition knows, and what the noisy latent holds."""

    known: str  # of Group.known
    known_latents: int  # of which the mask says: known
    held: int  # first latents that are not the model's to make
    noised: bool  # whether they are at the step's noise level (MultiTalk) or clean (InfiniteTalk)


# first and later clips by the rules of both families, MultiTalk's with its published and a shorter overlap
FRAME = Beginning("frame", 1, 0, noised=True)
HELD_FRAME = Beginning("frame", 1, 1, noised=False)
MOTION_25 = Beginning("motion_25", 7, 7, noised=True)
MOTION_9 = Beginning("motion_9", 3, 3, noised=True)
REFERENCE = Beginning("reference", 1, 3, noised=False)


@dataclass(frozen=True)
class Course:
    """What is practised, with shares of the steps.

    Fates are what became of a later clip's beginning: "clean" nothing, "guessed" the model made it, "decoded" it went through the VAE,
    "aged" it is the end of several clips of the model's own.
    """

    name: str
    rate: float
    beginnings: tuple[tuple[Beginning, float], ...]
    fates: tuple[tuple[str, float], ...]


TALKING = Course(
    "dit",
    1.2e-3,
    ((FRAME, 0.38), (HELD_FRAME, 0.16), (MOTION_25, 0.20), (MOTION_9, 0.08), (REFERENCE, 0.18)),
    (("clean", 0.5), ("guessed", 0.5)),
)
GOING_ON = Course(
    "going_on",
    6e-4,
    ((FRAME, 0.22), (HELD_FRAME, 0.10), (MOTION_25, 0.44), (MOTION_9, 0.10), (REFERENCE, 0.14)),
    (("clean", 0.4), ("decoded", 0.3), ("aged", 0.3)),  # what a beginning shows has to be copied exactly before it can be mended
)


@dataclass(frozen=True)
class Clip:
    """Some clips of one length and arrangement, and how they are conditioned."""

    talker: Talker
    clean: Tensor  # [B, 16, T, h, w]
    known: Tensor  # [B, 16, T, h, w]
    mask: Tensor  # [B, 4, T, h, w]
    tokens: Tensor  # [B, T, S · M, C]
    masks: Tensor | None  # [S + 1, N]

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """[B, 16, T, h, w] at σ [B]"""
        with torch.autocast(noisy.device.type, torch.bfloat16):
            return self.talker.velocity(noisy, self.known, self.mask, sigma, self.tokens, self.masks).float()


@dataclass(frozen=True)
class Practice:
    """A course, who takes it, and what the VAE does to the ends of clips (for the fates "decoded" and "aged")."""

    course: Course
    talker: Talker
    round_trip: RoundTrip | None = None

    def take(self, folder: Path, clips: Sequence[Path], report: Report, steps: int, device: torch.device, seed: int) -> Talker:
        """All steps; the talker then has the average of its last weights."""
        talker = self.talker
        talker.wan.to(device)
        talker.weights.adapter.to(device)
        trained = talker.trained()
        for module in (talker.wan, talker.weights.adapter):
            module.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        parameters = torch.nn.ParameterList(trained.values())
        average = AveragedModel(parameters, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
        optimiser = torch.optim.AdamW(trained.values(), lr=self.course.rate, betas=BETAS, weight_decay=0.0)
        made_from = fingerprint(trained | (self.round_trip.state_dict() if self.round_trip else {}))
        parts = {"dit": parameters, "average": average, "adam": optimiser}
        stage = Stage(folder / f"{self.course.name}.pt", steps, parts, report, seed, made_from)
        for step in stage:
            random = stage.random(step)
            state = torch.load(clips[random.integers(len(clips))], map_location=device, weights_only=True)
            loss, figures = self.loss(Group.of(state), random)
            stage.optimise(loss, step)
            average.update_parameters(parameters)
            stage.note(**figures)
        with torch.no_grad():
            for parameter, averaged in zip(parameters, average.module, strict=True):
                parameter.copy_(averaged)
        return talker

    def loss(self, group: Group, random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One step's, of as many clips as fit, and its figures."""
        beginning = _drawn(random, self.course.beginnings)
        length = min(_drawn(random, [(n, share) for n, share in LENGTHS if n > beginning.held + 1]), group.latents.shape[2])
        tokens_each = length * group.latents.shape[3] * group.latents.shape[4] // 4
        group = group.some(random.permutation(len(group.latents))[: max(1, TOKENS // tokens_each)])
        heard = random.random() >= DEAF
        clip = self._clip(group, length, beginning, heard)
        noise = torch.randn_like(clip.clean)
        sigma = torch.rand(len(noise), device=noise.device)
        sigma = (SHIFT * sigma / (1 + (SHIFT - 1) * sigma)).clamp(min=LOWEST)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * clip.clean + level * noise
        held = clip.clean[:, :, : beginning.held]
        if beginning.held > 1:
            held = self._met(_drawn(random, self.course.fates), clip, beginning, noisy, sigma, random)
        if beginning.known.startswith("motion"):
            clip.known[:, :, : beginning.held] = held
        shown = (1 - level) * held + level * noise[:, :, : beginning.held] if beginning.noised else held
        noisy = torch.cat([shown, noisy[:, :, beginning.held :]], dim=2)
        error = (clip.velocity(noisy, sigma) - (noise - clip.clean)).square()[:, :, beginning.held :]
        speakers = group.windows.shape[1]
        weights = balanced(group.weights, clip.clean, speakers)
        loss = (weights * error).mean() / weights.mean()
        name = "one" if speakers == 1 else "more"
        figures = {f"loss_{name}": float(loss.detach())}
        if heard:
            figures[f"mouth_{name}"] = float(error.detach()[group.weights.expand_as(error) > 1].mean())
        return loss, figures

    def _clip(self, group: Group, length: int, beginning: Beginning, heard: bool) -> Clip:
        known = group.known[beginning.known][:, :, :length].clone()
        mask = torch.zeros_like(known[:, :MASK])
        mask[:, :, : beginning.known_latents] = 1
        tokens = self.talker.tokens(group.windows[:, :, : (length - 1) * FRAMES_PER_LATENT + 1], heard)
        return Clip(self.talker, group.latents[:, :, :length], known, mask, tokens, group.masks if heard else None)

    @torch.no_grad()
    def _met(self, fate: str, clip: Clip, beginning: Beginning, noisy: Tensor, sigma: Tensor, random: np.random.Generator) -> Tensor:
        """The clip's first latents after what became of them."""
        held = clip.clean[:, :, : beginning.held]
        if fate == "clean":
            return held
        if fate == "guessed":
            return (noisy - sigma.view(-1, 1, 1, 1, 1) * clip.velocity(noisy, sigma))[:, :, : beginning.held]
        if fate == "aged" and beginning.noised:
            return self._aged(clip, beginning.held, random)
        return self.round_trip(held)

    def _aged(self, clip: Clip, count: int, random: np.random.Generator) -> Tensor:
        """The first `count` latents as they are after some clips of the model's own: with what it and the VAE got wrong in those.

        Faces stay where they are, so what is wrong at the end of a clip is about as wrong at the beginning of the next.
        """
        levels = torch.cat([sigmas(AGING_STEPS + 1, SHIFT)[:-2], torch.zeros(1)]).to(clip.clean)  # its last step above 0 changes nothing
        beginning = clip.clean[:, :, :count]
        held = self.round_trip(beginning)
        for _ in range(random.integers(1, AGES + 1)):
            clip.known[:, :, :count] = held
            noise = torch.randn_like(clip.clean)
            made = noise.clone()
            for level, following in pairwise(levels):
                made[:, :, :count] = (1 - level) * held + level * noise[:, :, :count]
                made = made + (following - level) * clip.velocity(made, level.expand(len(made)))
            wrong = (self.round_trip(made) - clip.clean)[:, :, count:].mean(dim=2, keepdim=True)
            held = beginning + random.uniform(*WORSE) * wrong
        return held


def balanced(weights: Tensor, clean: Tensor, speakers: int) -> Tensor:
    """How much each latent counts so that all mouths are learned alike: small ones, and dark ones on dark skin, say less by themselves.

    Args:
        weights: [B, 1, 1, h, w], above 1 at mouths; speakers stand in equal parts from left to right.
        clean: [B, 16, T, h, w]
    Returns:
        [B, 1, 1, h, w]: 1 outside mouths.
    """
    mouths = (weights > 1).float()
    moving = mouths * clean.var(dim=2, keepdim=True).mean(dim=1, keepdim=True)
    balance = torch.ones_like(weights)
    for part, motion, out in zip(*(t.chunk(speakers, dim=4) for t in (mouths, moving, balance)), strict=True):
        cells = part.sum(dim=(3, 4), keepdim=True).clamp(min=1)
        motion = motion.sum(dim=(3, 4), keepdim=True) / cells
        faintness = (MOTION / motion.clamp(min=1e-6)).clamp(1, FAINTEST)
        faintness = torch.where(motion < STILL, torch.ones_like(motion), faintness)
        share = MOUTHS * weights.shape[3] * weights.shape[4] / (speakers * cells)
        out += part * (share * faintness - 1).clamp(min=0)
    return balance


def train_dit(folder: Path, clips: Sequence[Path], report: Report, steps: int, device: torch.device, seed: int) -> Talker:
    """The model after it learned to talk; `clips` are the groups' files."""
    torch.manual_seed(seed)
    return Practice(TALKING, build()).take(folder, clips, report, steps, device, seed)


def train_going_on(
    talker: Talker, round_trip: RoundTrip, folder: Path, clips: Sequence[Path], report: Report, steps: int, device: torch.device, seed: int
) -> Talker:
    """The finished model, which also learned not to add to what earlier clips got wrong."""
    torch.manual_seed(seed)
    return Practice(GOING_ON, talker, round_trip).take(folder, clips, report, steps, device, seed)


def _drawn(random: np.random.Generator, options: list | tuple):
    shares = np.array([share for _, share in options])
    return options[random.choice(len(options), p=shares / shares.sum())][0]
