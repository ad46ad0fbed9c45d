"""Trains the diffusion model and the audio layers by flow matching, on all the ways in which clips begin.

Sources: Y. Lipman et al., "Flow matching for generative modeling" (2023): x_σ = (1 − σ) x + σ ε, velocity ε − x; the shift of σ is WAN's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...multitalk_core.schedule import sigmas
from ...multitalk_core.windows import FRAMES_PER_LATENT
from .clips import Group
from .dit import MASK, Talker, build
from .stage import Report, Stage

RATE, BETAS = 1.2e-3, (0.9, 0.97)
AVERAGE = 0.998
SHIFT, LOWEST = 3.0, 0.02  # of σ
DEAF = 0.1  # share of steps with null audio, for guidance
LENGTHS = ((3, 0.15), (5, 0.30), (9, 0.27), (13, 0.12), (21, 0.16))  # latents of a step, share; attention costs their square
TOKENS = 2000  # of a step, about: of long or large clips a step has fewer
# what became of a beginning, and its share: nothing; it went through the VAE; the model guessed it; it is the end of several clips
FATES = (("clean", 0.15), ("decoded", 0.25), ("guessed", 0.10), ("aged", 0.50))
AGES, AGING_STEPS = 3, 3  # clips of its own that a beginning comes after, at most; steps of sampling each

Velocity = Callable[[Tensor, Tensor], Tensor]  # of noisy latents at σ [B]


@dataclass(frozen=True)
class Beginning:
    """How the first latents of a clip are given: what the condition knows, and what the noisy latent holds."""

    known: str  # of Group.known
    known_latents: int  # of which the mask says: known
    held: int  # first latents that are not the model's to make
    noised: bool  # whether they are at the step's noise level (MultiTalk) or clean (InfiniteTalk)


# first and later clips by the rules of both families, MultiTalk's with its published and a shorter overlap; and their shares
BEGINNINGS = (
    (Beginning("frame", 1, 0, noised=True), 0.34),
    (Beginning("frame", 1, 1, noised=False), 0.14),
    (Beginning("motion_25", 7, 7, noised=True), 0.26),
    (Beginning("motion_9", 3, 3, noised=True), 0.10),
    (Beginning("reference", 1, 3, noised=False), 0.16),
)


def train_dit(folder: Path, clips: Path, report: Report, steps: int, device: torch.device, seed: int = 4) -> Talker:
    """The finished model; `clips` holds the groups."""
    torch.manual_seed(seed)
    talker = build()
    talker.wan.to(device)
    talker.weights.adapter.to(device)
    trained = talker.trained()
    for module in (talker.wan, talker.weights.adapter):
        module.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    parameters = torch.nn.ParameterList(trained.values())
    average = AveragedModel(parameters, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimiser = torch.optim.AdamW(trained.values(), lr=RATE, betas=BETAS, weight_decay=0.0)
    stage = Stage(folder / "dit.pt", steps, {"dit": parameters, "average": average, "adam": optimiser}, report, seed)
    files = sorted(clips.glob("*.pt"))
    for step in stage:
        random = stage.random(step)
        state = torch.load(files[random.integers(len(files))], map_location=device, weights_only=True)
        loss, figures = _loss(talker, Group.of(state), random)
        stage.optimise(loss, step)
        average.update_parameters(parameters)
        stage.note(**figures)
    with torch.no_grad():
        for parameter, averaged in zip(parameters, average.module, strict=True):
            parameter.copy_(averaged)
    return talker


def _loss(talker: Talker, group: Group, random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    length = min(_drawn(random, LENGTHS), group.latents.shape[2])
    tokens_each = length * group.latents.shape[3] * group.latents.shape[4] // 4
    group = group.some(random.permutation(len(group.latents))[: max(1, TOKENS // tokens_each)])
    speakers = group.windows.shape[1]
    beginning = _drawn(random, [(b, share) for b, share in BEGINNINGS if max(b.held, b.known_latents) < length])
    clean = group.latents[:, :, :length]
    known = group.known[beginning.known][:, :, :length].clone()
    mask = torch.zeros_like(known[:, :MASK])
    mask[:, :, : beginning.known_latents] = 1
    heard = random.random() >= DEAF
    windows = group.windows[:, :, : (length - 1) * FRAMES_PER_LATENT + 1]
    tokens = talker.tokens(windows, heard)
    masks = group.masks if heard else None
    noise = torch.randn_like(clean)
    sigma = torch.rand(clean.shape[0], device=clean.device)
    sigma = (SHIFT * sigma / (1 + (SHIFT - 1) * sigma)).clamp(min=LOWEST)
    level = sigma.view(-1, 1, 1, 1, 1)

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(clean.device.type, torch.bfloat16):
            return talker.velocity(noisy, known, mask, sigma, tokens, masks).float()

    noisy = (1 - level) * clean + level * noise
    held = clean[:, :, : beginning.held]
    if beginning.held > 1:
        fate = _drawn(random, FATES)
        if fate == "decoded":
            held = _decoded(held, random)
        elif fate == "guessed":
            held = (noisy - level * _detached(velocity, noisy, sigma))[:, :, : beginning.held]
        elif fate == "aged" and beginning.noised:
            held = _aged(velocity, clean, known, beginning.held, random)
    if beginning.known.startswith("motion"):
        known[:, :, : beginning.held] = held
    shown = (1 - level) * held + level * noise[:, :, : beginning.held] if beginning.noised else held
    noisy = torch.cat([shown, noisy[:, :, beginning.held :]], dim=2)
    error = (velocity(noisy, sigma) - (noise - clean)).square()[:, :, beginning.held :]
    loss = (group.weights * error).mean() / group.weights.mean()
    mouths = group.weights.expand_as(error) > 1
    name = "one" if speakers == 1 else "more"
    figures = {f"loss_{name}": float(loss.detach())}
    if heard:
        figures[f"mouth_{name}"] = float(error.detach()[mouths].mean())
    return loss, figures


def _drawn(random: np.random.Generator, options: list | tuple):
    shares = np.array([share for _, share in options])
    return options[random.choice(len(options), p=shares / shares.sum())][0]


@torch.no_grad()
def _detached(velocity: Velocity, noisy: Tensor, sigma: Tensor) -> Tensor:
    return velocity(noisy, sigma)


def _decoded(held: Tensor, random: np.random.Generator) -> Tensor:
    """About what becomes of latents that are decoded and encoded again."""
    batch, channels = held.shape[:2]
    softened = F.avg_pool3d(held, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    held = torch.lerp(held, softened, random.uniform(0, 0.6))
    gain = 1 + 0.06 * torch.randn(batch, channels, 1, 1, 1, device=held.device)
    offset = 0.06 * torch.randn(batch, channels, 1, 1, 1, device=held.device)
    return held * gain + offset + random.uniform(0, 0.15) * torch.randn_like(held)


@torch.no_grad()
def _aged(velocity: Velocity, clean: Tensor, known: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """The first `count` latents as they are after some clips of the model's own: with what it got wrong in those that it made.

    Faces stay where they are, so what is wrong at the end of a clip is about as wrong at the beginning of the next. The condition, of
    which `known` holds the latents, is changed on the way.
    """
    levels = torch.cat([sigmas(AGING_STEPS + 1, SHIFT)[:-2], torch.zeros(1)]).to(clean)  # its last step above 0 changes nothing
    held = clean[:, :, :count]
    for _ in range(random.integers(1, AGES + 1)):
        known[:, :, :count] = held
        noise = torch.randn_like(clean)
        made = noise.clone()
        for level, following in pairwise(levels):
            made[:, :, :count] = (1 - level) * held + level * noise[:, :, :count]
            made = made + (following - level) * velocity(made, level.expand(clean.shape[0]))
        wrong = (made - clean)[:, :, count:].mean(dim=2, keepdim=True)
        held = clean[:, :, :count] + random.uniform(0.7, 1.3) * wrong
    return held
