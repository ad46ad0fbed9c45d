"""Trains the VAE: first both halves from the computed encoder on, then the decoder alone.

Only the encoder's parts that are not zero take part, so it stays as fast as it was computed. Once it stands still, the decoder also learns
what long videos need: what it decodes must encode to the same latents again, and what it got wrong several times it must mend.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.ldm.wan.vae as wan
import numpy as np
import torch
from torch import Tensor

from ..scenes import scenes
from .muon import Muon
from .stage import Report, Saved, Stage, check_run, fingerprint, save
from .vae import FORMAT, MEANS, compute_encoder, empty_vae, from_latent, psnr, to_latent, without_zero_branches

# crops show the same faces whatever stands beside them; the largest faces take the most crops to cover, so they come twice
LAYOUTS = (scenes.ONE_SMALL, scenes.TWO_SMALL, scenes.ONE, scenes.TWO, scenes.ONE_FAR, scenes.ONE)
EXAMPLES = 160  # scenes that the encoder is computed from
CROP = 48  # pixels
MOUTH_WEIGHT = 4.0
SCENES, CROPS = 2, 2  # of a step, and of each of its scenes
ENCODER_RATE, DECODER_RATE = 5e-4, 8e-3
LASTING_RATE = 2e-3  # at the decoder's own, what it has to mend grows faster than it learns to
LATENT_NOISE = 0.05
CYCLE_WEIGHT, LASTING_CYCLE_WEIGHT = 1.0, 10.0
TRIPS = 4  # without practice in undoing them, the errors of twelve trips add up to 8 dB and more
SCALE_WEIGHT = 0.02


@dataclass(frozen=True)
class Crops:
    """Parts of videos [N, 3, F, side, side] in −1…1 and how much each pixel counts [N, 1, 1, side, side]."""

    videos: Tensor
    weights: Tensor


def example_videos(seed: int) -> tuple[Tensor, Tensor]:
    """Five frames of many scenes in tiles of 64 × 64: [N, 3, 5, 64, 64], and their weights [N, 64, 64]."""
    random = np.random.default_rng(seed)
    videos, weights = [], []
    for number in range(EXAMPLES):
        video, weight = _video(random, LAYOUTS[number % len(LAYOUTS)], frames=5)
        for top in range(0, weight.shape[0], 64):
            for left in range(0, weight.shape[1], 64):
                videos.append(video[:, :, top : top + 64, left : left + 64])
                weights.append(weight[top : top + 64, left : left + 64])
    return torch.stack(videos), torch.stack(weights)


def _video(random: np.random.Generator, layout: scenes.Layout, frames: int) -> tuple[Tensor, Tensor]:
    scene = layout.scene(random)
    video = scene.video(scenes.act(scenes.wandering(random, layout.speakers, frames), random))
    weight = torch.ones(layout.height, layout.width)
    for face in scene.faces:
        left, top, right, bottom = face.mouth_box
        weight[top:bottom, left:right] = MOUTH_WEIGHT
    return video.permute(3, 0, 1, 2) * 2 - 1, weight


def any_crops(random: np.random.Generator, frames: int, side: int = CROP) -> Crops:
    """Parts of videos, half of them about a mouth; their corners lie on the latent grid."""
    videos, weights = [], []
    for _ in range(SCENES):
        layout = LAYOUTS[random.integers(len(LAYOUTS))]
        video, weight = _video(random, layout, frames)
        mouth = (weight > 1).nonzero()
        for number in range(CROPS):
            centre = mouth[random.integers(len(mouth))].numpy() if number % 2 else random.uniform(0, weight.shape)
            top, left = (int(np.clip((c - side / 2) // 8 * 8, 0, length - side)) for c, length in zip(centre, weight.shape, strict=True))
            videos.append(video[:, :, top : top + side, left : left + side])
            weights.append(weight[top : top + side, left : left + side])
    return Crops(torch.stack(videos), torch.stack(weights)[:, None, None])


def train_vae(
    folder: Path, report: Report, joint_steps: int, steps: int, lasting_steps: int, device: torch.device, seed: int
) -> wan.WanVAE:
    """The finished VAE without its zero branches; steps that were done before, by what is in the folder, are not done again."""
    light = frozen_encoder(folder, report, joint_steps, device, seed)
    made_from = fingerprint(light.encoder.state_dict())
    stage = Stage(folder / "vae.pt", steps, _parts(light, joint=False), report, seed + 1, made_from)
    for step in stage:
        _step(stage, step, light, joint=False)
    parts = _parts(light, joint=False, rate=LASTING_RATE)
    lasting = Stage(folder / "vae_lasting.pt", lasting_steps, parts, report, seed + 2, fingerprint(light.state_dict()))
    for step in lasting:
        _step(lasting, step, light, joint=False, trips=TRIPS)
    return light


def frozen_encoder(folder: Path, report: Report, joint_steps: int, device: torch.device, seed: int) -> wan.WanVAE:
    """The VAE without its zero branches as it is after both halves were trained; what is trained later keeps its latents."""
    file, run = folder / "encoder.pt", {"steps": joint_steps, "seed": seed}
    if file.exists():
        saved = torch.load(file, weights_only=True)
        check_run(file, saved["run"], run)
        vae = empty_vae()
        vae.load_state_dict(saved["vae"])
        return without_zero_branches(vae).to(device)
    torch.manual_seed(seed)
    vae = empty_vae()
    videos, weights = example_videos(seed)
    compute_encoder(vae, videos, weights, report)
    light = without_zero_branches(vae).to(device)
    stage = Stage(folder / "vae_joint.pt", joint_steps, _parts(light, joint=True), report, seed)
    for step in stage:
        _step(stage, step, light, joint=True)
    standardise(light.cpu(), videos, weights)
    save(file, {"run": run, "vae": whole(light).state_dict()})
    return light.to(device)


def whole(light: wan.WanVAE) -> wan.WanVAE:
    """ComfyUI's VAE with the light one's weights, and zeros in the branches that it lacks."""
    vae = empty_vae()
    known = light.state_dict()
    vae.load_state_dict({key: known.get(key, torch.zeros_like(tensor)) for key, tensor in vae.state_dict().items()})
    return vae


def _parts(light: wan.WanVAE, joint: bool, rate: float = DECODER_RATE) -> dict[str, Saved]:
    light.requires_grad_(False)
    for half in (light.encoder, light.decoder) if joint else (light.decoder,):
        half.requires_grad_(True)
    decoder = list(light.decoder.named_parameters())
    kernels = [p for name, p in decoder if p.ndim >= 4 and "gamma" not in name and p.shape[0] > 3]
    chosen = {id(p) for p in kernels}
    rest = [{"params": [p for _, p in decoder if id(p) not in chosen], "lr": rate}]
    if joint:
        rest.append({"params": list(light.encoder.parameters()), "lr": ENCODER_RATE})
    return {"vae": light, "muon": Muon(kernels, rate), "adam": torch.optim.Adam(rest, betas=(0.9, 0.95))}


def _step(stage: Stage, step: int, light: wan.WanVAE, joint: bool, trips: int = 0) -> None:
    """`trips`: how often, at most, the latents went through the VAE before; they are to be decoded as if they had not."""
    random = stage.random(step)
    crops = any_crops(random, frames=9 if step % 3 == 0 else 5)
    device = next(light.parameters()).device
    videos, weights = crops.videos.to(device), crops.weights.to(device)
    with torch.set_grad_enabled(joint):
        latent = to_latent(light.encode(videos))
    seen = latent
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for _ in range(random.integers(0, trips + 1)):
            seen = to_latent(light.encode(light.decode(from_latent(seen)).clamp(-1, 1))).float()
    with torch.autocast(device.type, torch.bfloat16):
        decoded = light.decode(from_latent(seen + LATENT_NOISE * torch.randn_like(latent))).float()
    error = decoded - videos
    loss = (weights * (0.5 * error.abs() + 2 * error.square())).mean()
    if joint:  # the latents keep the scale that they were computed to
        loss = loss + SCALE_WEIGHT * ((latent.mean(dim=(0, 2, 3, 4)) ** 2).mean() + (latent.square().mean() - 1).clamp(min=0))
    else:
        cycle = (to_latent(light.encode(decoded.clamp(-1, 1))) - latent).square().mean()
        loss = loss + (LASTING_CYCLE_WEIGHT if trips else CYCLE_WEIGHT) * cycle
        stage.note(cycle=float(cycle.detach()))
    stage.optimise(loss, step)
    mouth = weights.expand_as(videos) > 1
    stage.note(psnr=psnr(decoded.detach(), videos), mouth=psnr(decoded.detach()[mouth], videos[mouth]))


@torch.no_grad()
def standardise(light: wan.WanVAE, videos: Tensor, weights: Tensor) -> None:
    """Latents of mean 0 and deviation 1; of those that hold differences, the deviation where something moves."""
    latent = torch.cat([to_latent(light.encode(some)) for some in videos.split(16)])
    moving = torch.nn.functional.avg_pool2d(weights[:, None], 8)[:, 0] > 1
    mean = latent.mean(dim=(0, 2, 3, 4))
    deviation = latent.std(dim=(0, 2, 3, 4))
    deviation[MEANS:] = latent[:, MEANS:, 1].permute(0, 2, 3, 1)[moving].std(dim=0)
    rows = torch.arange(latent.shape[1])
    into, out = light.conv1, light.conv2
    scale, offset = FORMAT.latents_std.flatten(), FORMAT.latents_mean.flatten()
    into.weight[rows, rows, 0, 0, 0] /= deviation
    into.bias[: len(rows)] = (into.bias[: len(rows)] - offset - scale * mean) / deviation + offset
    # decode: undo what the encoder now does, so that the decoder sees what it was trained on
    out.weight[rows, rows, 0, 0, 0] = deviation / scale
    out.bias[:] = mean - offset * deviation / scale
