"""What becomes of latents that are decoded and encoded again, as a clip's end is before the next clip begins; learned by a small network.

The real thing takes seconds a clip on a CPU; training on beginnings that several clips left behind needs it many times a step.
"""

from __future__ import annotations

from pathlib import Path

import comfy.ldm.wan.vae as wan
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stage import Report, Stage, fingerprint
from .train_vae import any_crops
from .vae import LATENT, from_latent, to_latent

WIDTH, DEPTH = 64, 4
CROP, FRAMES = 64, 13  # pixels; smaller crops would mostly show what the VAE does at borders
RATE = 2e-3
NOISE = 0.15  # deviation of what is added to latents, at most: a diffusion model's are not as clean as the encoder's


class RoundTrip(nn.Module):
    """Latents [B, 16, T, h, w] → about encode(decode(latents)), causal in time as the VAE is."""

    def __init__(self) -> None:
        super().__init__()
        widths = [LATENT + 1, *[WIDTH] * (DEPTH - 1), LATENT]  # one channel tells which latent is the first
        self.layers = nn.ModuleList([nn.Conv3d(i, o, (2, 3, 3), padding=(0, 1, 1)) for i, o in zip(widths[:-1], widths[1:], strict=True)])
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, latent: Tensor) -> Tensor:
        first = torch.zeros_like(latent[:, :1])
        first[:, :, 0] = 1
        x = torch.cat([latent, first], dim=1)
        for number, layer in enumerate(self.layers):
            x = layer(F.pad(x if number == 0 else F.gelu(x), (0, 0, 0, 0, 1, 0)))
        return latent + x


def train_round_trip(folder: Path, report: Report, light: wan.WanVAE, steps: int, device: torch.device, seed: int) -> RoundTrip:
    """The network for a finished VAE."""
    torch.manual_seed(seed)
    network = RoundTrip().to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    stage = Stage(folder / "round_trip.pt", steps, {"network": network, "adam": optimiser}, report, seed, fingerprint(light.state_dict()))
    for step in stage:
        random = stage.random(step)
        with torch.no_grad():
            latent = to_latent(light.encode(any_crops(random, FRAMES, CROP).videos.to(device)))
            latent = latent + random.uniform(0, NOISE) * torch.randn_like(latent)
            with torch.autocast(device.type, torch.bfloat16):
                decoded = light.decode(from_latent(latent)).float()
            again = to_latent(light.encode(decoded.clamp(-1, 1)))
        loss = (network(latent) - again).square().mean()
        stage.optimise(loss, step)
        changed = float((again - latent).square().mean())
        stage.note(changed=changed, explained=1 - float(loss.detach()) / changed)
    return network.requires_grad_(False)
