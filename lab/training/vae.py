"""The demo's Wan VAE: its encoder is computed, its decoder is trained.

An encoder trained from nothing beside the decoder did not converge here in hours on a CPU. But ComfyUI's network contains a good one:
with every residual branch at zero, its strided convolutions can be principal components of 2 × 2 blocks, its time convolutions mean and
difference of neighbouring frames, and its head a linear map to sixteen components of 8 × 8 pixels × 4 frames.

Shapes: N videos, F video frames, H, W pixels, T latent frames, h = H / 8, w = W / 8. Videos are [N, 3, F, H, W] in −1…1, latents
[N, 16, T, h, w] as the diffusion model sees them (mean 0, deviation about 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.latent_formats
import comfy.ldm.wan.vae as wan
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

DIM, LATENT = 12, 16
MEANS = 11  # latents that hold the mean of four frames; the other five hold how they differ
LATER = 3  # frames of four that differences are coded for, beyond the mean
CONSTANT = 60.0  # of one channel, in lengths of all others: what RMS norm divides by is then the same everywhere
RIDGE = 1e-6
EXAMPLES = 20_000  # patches that principal components are computed from
FORMAT = comfy.latent_formats.Wan21()


def empty_vae(dim: int = DIM) -> wan.WanVAE:
    """ComfyUI's network at the demo's size, the decoder with random weights."""
    vae = wan.WanVAE(dim, LATENT, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True])
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
    for module in vae.decoder.modules():
        if isinstance(module, wan.ResidualBlock):
            module.residual[6].weight.data.mul_(0.1)
        if isinstance(module, wan.AttentionBlock):
            nn.init.zeros_(module.proj.weight)
        if isinstance(module, wan.Resample) and module.mode == "upsample3d":  # both new frames begin as copies of the old one
            weight, channels = module.time_conv.weight.data, module.time_conv.weight.shape[1]
            weight.mul_(0.3)
            weight[:, :, -1, 0, 0] += torch.eye(channels).repeat(2, 1)
    return vae


def to_latent(encoded: Tensor) -> Tensor:
    """What the VAE gives → what the diffusion model sees."""
    return FORMAT.process_in(encoded)


def from_latent(latent: Tensor) -> Tensor:
    """What the diffusion model sees → what the VAE takes."""
    return FORMAT.process_out(latent)


@dataclass
class _Level:
    """What reaches one depth of the encoder."""

    features: Tensor  # [N, C, T, h, w]
    weights: Tensor  # [N, h, w]: how much a place counts


@torch.no_grad()
def compute_encoder(vae: wan.WanVAE, videos: Tensor, weights: Tensor, report: Callable[[str], None] = lambda line: None) -> None:
    """Write the encoder's weights, and those of the two convolutions beside the latent.

    Args:
        videos: [N, 3, 5, H, W], examples of what there is to encode: a first frame and one latent's four.
        weights: [N, H, W], how much a pixel's error counts (the mouth's more).
    """
    encoder = vae.encoder
    for module in encoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for channel in range(3):
        encoder.conv1.weight[channel, channel, -1, 1, 1] = 1
    for module in encoder.modules():
        if isinstance(module, wan.ResidualBlock) and not isinstance(module.shortcut, nn.Identity):
            width = module.shortcut.weight.shape[1]
            module.shortcut.weight[:width, :, 0, 0, 0] = torch.eye(width)
    level = _Level(videos, weights)
    stages = [module for module in encoder.downsamples if isinstance(module, wan.Resample)]
    for number, stage in enumerate(stages):
        level = _compute_stage(stage, level, last=number == len(stages) - 1)
        report(f"stage {number}: {level.features.shape[1]} channels")
    targets, shares = _components(videos, weights)
    report("variance of patches kept: " + ", ".join(f"{name} {share:.4f}" for name, share in shares.items()))
    unexplained = _compute_head(vae, videos, targets, level.weights)
    report(f"variance of the components that the head misses: {float(unexplained.max()):.4f} at most")
    _whiten(vae)


def _compute_stage(stage: wan.Resample, level: _Level, last: bool) -> _Level:
    """Principal components of 2 × 2 blocks, then, if the stage halves time, mean and differences of pairs of frames."""
    convolution, room = stage.resample[1], stage.dim - (1 if last else 0)
    blocks = rearrange(level.features, "n c t (h a) (w b) -> n t h w (c a b)", a=2, b=2)
    weights = F.avg_pool2d(level.weights[:, None], 2)[:, 0]
    spread = weights[:, None].expand(-1, blocks.shape[1], -1, -1)
    in_time = stage.mode == "downsample3d"
    differences = room // 3 if in_time else 0
    kept = _principal(blocks, spread, min(room - differences, blocks.shape[-1]))
    # the padding is right and below, so taps 0 and 1 cover a block
    convolution.weight[: kept.shape[0], : level.features.shape[1], :2, :2] = rearrange(kept, "k (c a b) -> k c a b", a=2, b=2)
    features = rearrange(blocks @ kept.T, "n t h w k -> n k t h w")
    if in_time:
        features = _compute_time(stage.time_conv, features, weights, differences)
    if last:
        constant = CONSTANT * features.square().sum(dim=1).sqrt().mean()
        convolution.bias[room] = constant
        stage.time_conv.bias[room] = constant
    return _Level(features, weights)


def _compute_time(convolution: wan.CausalConv3d, features: Tensor, weights: Tensor, differences: int) -> Tensor:
    """Frames 1, 2 → one, 3, 4 → one …: all means, and principal components of half the differences. The first frame stays."""
    early, late = features[:, :, 1::2], features[:, :, 2::2]
    half = rearrange((late - early) / 2, "n k t h w -> n t h w k")
    kept = _principal(half, weights[:, None].expand(half.shape[:-1]), differences)
    means = features.shape[1]
    rows = torch.arange(means)
    convolution.weight[rows, rows, 1:, 0, 0] = 0.5
    convolution.weight[means : means + differences, :means, 1, 0, 0] = -kept / 2
    convolution.weight[means : means + differences, :means, 2, 0, 0] = kept / 2
    later = torch.cat([(early + late) / 2, rearrange(half @ kept.T, "n t h w k -> n k t h w")], dim=1)
    return torch.cat([F.pad(features[:, :, :1], (0, 0, 0, 0, 0, 0, 0, differences)), later], dim=2)


def _principal(vectors: Tensor, weights: Tensor, count: int) -> Tensor:
    """The first principal components [count, C] of vectors [.., C], about zero, weighted."""
    vectors = vectors.flatten(end_dim=-2)
    some = torch.randperm(vectors.shape[0], generator=torch.Generator().manual_seed(0))[:EXAMPLES]
    return torch.linalg.svd(vectors[some] * weights.flatten()[some, None].sqrt(), full_matrices=False)[2][:count]


def _components(videos: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
    """What the latents ought to be, [N, 16, 2, h, w]: components of 8 × 8 patches' means, and of four frames' differences from it."""
    patches = rearrange(videos, "n c f (h a) (w b) -> n f h w (c a b)", a=8, b=8)
    weights = F.avg_pool2d(weights[:, None], 8)[:, 0]
    first, four = patches[:, 0], patches[:, 1:]
    mean = four.mean(dim=1)
    differences = rearrange(four - mean[:, None], "n f h w p -> n h w (f p)")
    pictures, twice = torch.cat([first, mean]), torch.cat([weights, weights])
    middle = (pictures * twice[..., None]).sum(dim=(0, 1, 2)) / twice.sum()
    still, moving = _principal(pictures - middle, twice, MEANS), _principal(differences, weights, LATENT - MEANS)
    codes = [(p - middle) @ still.T for p in (first, mean)]
    code = differences @ moving.T
    deviation, moved = torch.cat(codes).flatten(end_dim=-2).std(dim=0), code.flatten(end_dim=-2)[weights.flatten() > 1].std(dim=0)
    early = F.pad(codes[0] / deviation, (0, LATENT - MEANS))
    later = torch.cat([codes[1] / deviation, code / moved], dim=-1)
    shares = {
        "still": 1 - float(((pictures - middle) - torch.cat(codes) @ still).square().sum() / (pictures - middle).square().sum()),
        "moving": 1 - float((differences - code @ moving).square().sum() / differences.square().sum()),
    }
    return rearrange(torch.stack([early, later], dim=1), "n t h w c -> n c t h w"), shares


def _compute_head(vae: wan.WanVAE, videos: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Ridge regression from the head's features to the targets; returns the share of each target's variance that it misses."""
    head = vae.encoder.head[2]
    seen = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        for some in videos.split(16):
            vae.encode(some)
    finally:
        hook.remove()
    per_call = len(seen) // len(videos.split(16))
    features = torch.cat([torch.cat(seen[i : i + per_call], dim=2) for i in range(0, len(seen), per_call)])
    rows = rearrange(features, "n c t h w -> (n t h w) c").double()
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    wanted = rearrange(targets, "n c t h w -> (n t h w) c").double()
    counts = weights[:, None].expand(-1, features.shape[2], -1, -1).reshape(-1, 1).double()
    scale = rows.square().mean(dim=0).sqrt().clamp(min=1e-9)  # one ridge for features of very different size
    normal = ((rows / scale) * counts).T
    solution = torch.linalg.solve(
        normal @ (rows / scale) + RIDGE * counts.sum() * torch.eye(rows.shape[1], dtype=torch.float64), normal @ wanted
    )
    head.weight[:LATENT, :, -1, 1, 1] = (solution / scale[:, None])[:-1].T.float()
    head.bias[:LATENT] = solution[-1].float() / scale[-1].float()
    return ((rows / scale) @ solution - wanted).square().mean(dim=0) / wanted.var(dim=0)


def _whiten(vae: wan.WanVAE) -> None:
    """The convolutions beside the latent: WAN's own statistics, so that the diffusion model sees mean 0 and deviation 1."""
    mean, deviation = FORMAT.latents_mean.flatten(), FORMAT.latents_std.flatten()
    for convolution in (vae.conv1, vae.conv2):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    diagonal = torch.arange(LATENT)
    vae.conv1.weight[diagonal, diagonal, 0, 0, 0] = deviation
    vae.conv1.bias[:LATENT] = mean
    vae.conv2.weight[diagonal, diagonal, 0, 0, 0] = 1 / deviation
    vae.conv2.bias[:] = -mean / deviation


class _Shortcut(nn.Module):
    """A residual block whose branch is zero."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor, feat_cache: object = None, feat_idx: object = None, final: bool = False) -> Tensor:
        return self.shortcut(x)


def without_zero_branches(vae: wan.WanVAE) -> wan.WanVAE:
    """The same encoder, several times as fast: blocks that add zero are left out. Shares its weights with `vae`."""
    light = empty_vae(vae.dim)
    light.load_state_dict(vae.state_dict(), assign=True)

    def lighter(block: nn.Module) -> nn.Module:
        if isinstance(block, wan.ResidualBlock) and not block.residual[6].weight.any():
            return _Shortcut(block.shortcut)
        if isinstance(block, wan.AttentionBlock) and not block.proj.weight.any():
            return _Shortcut(nn.Identity())
        return block

    light.encoder.downsamples = nn.Sequential(*map(lighter, light.encoder.downsamples))
    light.encoder.middle = nn.Sequential(*map(lighter, light.encoder.middle))
    return light


def psnr(made: Tensor, truth: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in −1…1."""
    return 10 * math.log10(4 / float((made.clamp(-1, 1) - truth).square().mean()))
