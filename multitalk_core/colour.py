"""Colour matching in CIE Lab, so that a long video keeps the colours of its first picture.

Shapes: frames [F, H, W, 3] sRGB in 0…1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Linear sRGB → CIE XYZ with the D65 white (IEC 61966-2-1, rounded as scikit-image has it).
XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
D65 = (0.95047, 1.0, 1.08883)  # CIE 1931, 2° observer
LAB_EPSILON = 0.008856  # CIE 15:2004, (6/29)³
LAB_SLOPE, LAB_OFFSET = 7.787, 16 / 116
AT_ONCE = 2**18  # pixels: Lab of a whole clip would be its size in float32 several times over
BYTES_A_PIXEL = 160  # of all that is there at a time; 115 were seen
FLAT = 1e-3  # Lab units; a deviation below is rounding, and would be scaled up to the reference's

DeviceWith = Callable[[int], torch.device]


def match_colours(frames: Tensor, reference: Tensor, strength: float = 1.0, make_room: DeviceWith | None = None) -> Tensor:
    """Give every frame the mean and the deviation of the reference's Lab channels.

    lab' = (lab − mean) / std · std_ref + mean_ref per frame and channel (population std; a channel without deviation becomes the
    reference's mean), then blended in RGB: (1 − strength) · frame + strength · matched.

    Args:
        frames: [F, H, W, 3]; values outside 0…1 are clipped.
        reference: [1, H, W, 3], any size.
        strength: 0 (nothing) … 1.
        make_room: finds what computes, a few frames at a time, with so many bytes free; not asked for strength 0. Theirs if None.
    Returns:
        [F, H, W, 3] where the frames are.
    Source: MeiGen-AI/MultiTalk@c1ad840 wan/utils/multitalk_utils.py, match_and_blend_colors().
    """
    if strength == 0:
        return frames
    device = frames.device if make_room is None else make_room(memory_needed(frames))
    target_mean, target_std, _ = _centred(_lab(_planes(reference, device)))
    matched = torch.empty(frames.shape, dtype=frames.dtype, device=frames.device)  # not in the planes that a VAE decodes to
    at_once = _frames_at_once(frames)
    for some, out in zip(frames.split(at_once), matched.split(at_once), strict=True):
        rgb = _planes(some, device)
        _, std, lab = _centred(_lab(rgb))
        scale = torch.where(std < FLAT, 0.0, target_std / std.clamp(min=FLAT))
        blended = torch.lerp(rgb, _rgb(lab.mul_(scale).add_(target_mean)).clamp_(0, 1), strength)
        out.copy_(blended.movedim(0, -1).view_as(out))
    return matched


def memory_needed(frames: Tensor) -> int:
    """Bytes that `match_colours` needs at a time on its device for frames [F, H, W, 3]."""
    return BYTES_A_PIXEL * min(len(frames), _frames_at_once(frames)) * frames[0, ..., 0].numel()


def _frames_at_once(frames: Tensor) -> int:
    return max(1, AT_ONCE // frames[0, ..., 0].numel())


def _planes(frames: Tensor, device: torch.device) -> Tensor:
    """[F, H, W, 3] → [3, F, H · W] in 0…1: channel by channel, many times as fast as pixel by pixel."""
    return frames.to(device).flatten(1, 2).movedim(-1, 0).float().contiguous().clamp(0, 1)


def _centred(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation [3, F, 1] of every frame, and the planes [3, F, n] without their means, in place."""
    mean = planes.mean(dim=2, keepdim=True)
    return mean, planes.sub_(mean).square().mean(dim=2, keepdim=True).sqrt(), planes


def _lab(rgb: Tensor) -> Tensor:
    """Planes [3, …] of sRGB → of Lab."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mixed(torch.tensor(XYZ_FROM_RGB) / torch.tensor(D65)[:, None], linear.flatten(1))
    x, y, z = torch.where(xyz > LAB_EPSILON, xyz.clamp(min=0) ** (1 / 3), LAB_SLOPE * xyz + LAB_OFFSET)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).view_as(rgb)


def _rgb(lab: Tensor) -> Tensor:
    """Planes [3, …] of Lab → of sRGB."""
    lightness, a, b = lab.flatten(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)])
    xyz = torch.where(f > LAB_EPSILON ** (1 / 3), f**3, (f - LAB_OFFSET) / LAB_SLOPE)
    linear = _mixed(torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)) * torch.tensor(D65), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055, 12.92 * linear).view_as(lab)


def _mixed(matrix: Tensor, planes: Tensor) -> Tensor:
    """matrix [3, 3] · planes [3, n]. A product of matrices would have ten bits on a card that somebody has set to TF32."""
    first, second, third = matrix.to(planes).T[..., None]
    return (first * planes[0]).addcmul_(second, planes[1]).addcmul_(third, planes[2])
