"""What becomes of latents that are decoded and encoded again, as a clip's end is before the next clip begins.

The real thing takes seconds a clip on a CPU; training on beginnings that several clips left behind needs it many times a step. What the
VAE gets wrong depends on the picture in a way that neither a linear map nor a small network could tell (they explained 3 % of it), but
where it is wrong, and how much, can be seen: at edges. So errors are drawn that are as large as the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.ldm.wan.vae as wan
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .stage import Report, check_run, fingerprint, save
from .train_vae import any_crops
from .vae import from_latent, to_latent

SIDE, FRAMES = 64, 13  # pixels of a crop; smaller ones would mostly show what the VAE does at borders


@dataclass(frozen=True)
class RoundTrip:
    """Variance of the error = flat + edge · local variance of the latents, and which part of it stays the same over time."""

    flat: Tensor  # [16, 1, 1, 1]
    edge: Tensor  # [16, 1, 1, 1]
    still: Tensor  # []

    def __call__(self, latent: Tensor) -> Tensor:
        """[B, 16, T, h, w] → with errors as of a round trip."""
        size = (self.flat + self.edge * local_variance(latent)).sqrt()
        error = self.still.sqrt() * torch.randn_like(latent[:, :, :1]) + (1 - self.still).sqrt() * torch.randn_like(latent)
        return latent + size * error

    def state_dict(self) -> dict[str, Tensor]:
        return vars(self)


def local_variance(latent: Tensor) -> Tensor:
    """How much latents differ from their eight neighbours, mean of all channels: [B, 16, T, h, w] → [B, 1, T, h, w]."""
    planes = latent.transpose(1, 2).flatten(0, 1)
    near = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    variance = F.avg_pool2d(near.square(), 3, stride=1) - F.avg_pool2d(near, 3, stride=1).square()
    return variance.mean(dim=1).view(latent.shape[0], 1, *latent.shape[2:]).clamp(min=0)


@torch.no_grad()
def measure_round_trip(folder: Path, report: Report, light: wan.WanVAE, examples: int, device: torch.device, seed: int) -> RoundTrip:
    """How large a finished VAE's errors are, by least squares over so many scenes."""
    file, run = folder / "round_trip.pt", {"examples": examples, "seed": seed, "made_from": fingerprint(light.state_dict())}
    if file.exists():
        saved = torch.load(file, map_location=device, weights_only=True)
        check_run(file, saved["run"], run)
        return RoundTrip(**saved["errors"])
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    squares, variances, still = [], [], []
    for _ in range(examples):
        latent = to_latent(light.encode(any_crops(random, FRAMES, SIDE).videos.to(device)))
        error = to_latent(light.encode(light.decode(from_latent(latent)).clamp(-1, 1))) - latent
        squares.append(error.square().transpose(0, 1).flatten(1))
        variances.append(local_variance(latent).flatten())
        still.append(error.mean(dim=2).square().mean() / error.square().mean())
    square, variance = torch.cat(squares, dim=1), torch.cat(variances)
    known = torch.stack([torch.ones_like(variance), variance], dim=1)
    flat, edge = torch.linalg.lstsq(known, square.T).solution.clamp(min=0).view(2, -1, 1, 1, 1)
    errors = RoundTrip(flat, edge, torch.stack(still).mean())
    report(f"round trip: mean square error {float(square.mean()):.4f}, of which {float(errors.still):.2f} stays the same over time")
    save(file, {"run": run, "errors": errors.state_dict()})
    return errors
