"""Colour matching in CIE Lab, so that a long video keeps the colours of its first picture.

Shapes: frames [F, H, W, 3] sRGB in 0…1.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB → CIE XYZ with the D65 white (IEC 61966-2-1, rounded as scikit-image has it).
XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
D65 = (0.95047, 1.0, 1.08883)  # CIE 1931, 2° observer
LAB_EPSILON = 0.008856  # CIE 15:2004, (6/29)³
LAB_SLOPE, LAB_OFFSET = 7.787, 16 / 116
AT_ONCE = 2**18  # pixels: Lab of a whole clip would be its size in float32 several times over
FLAT = 1e-3  # Lab units; a deviation below is rounding, and would be scaled up to the reference's


def match_colours(frames: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Give every frame the mean and the deviation of the reference's Lab channels.

    lab' = (lab − mean) / std · std_ref + mean_ref per frame and channel (population std; a channel without deviation becomes the
    reference's mean), then blended in RGB: (1 − strength) · frame + strength · matched.

    Args:
        frames: [F, H, W, 3]; values outside 0…1 are clipped.
        reference: [1, H, W, 3], any size.
        strength: 0 (nothing) … 1.
    Source: MeiGen-AI/MultiTalk@c1ad840 wan/utils/multitalk_utils.py, match_and_blend_colors().
    """
    if strength == 0:
        return frames
    target = _lab(reference.to(frames.device).float().clamp(0, 1)).flatten(0, 2)
    target_mean, target_std = target.mean(dim=0), target.std(dim=0, correction=0)
    matched = []
    for some in frames.split(max(1, AT_ONCE // frames[0, ..., 0].numel())):
        some = some.float().clamp(0, 1)
        lab = _lab(some)
        mean, std = lab.mean(dim=(1, 2), keepdim=True), lab.std(dim=(1, 2), correction=0, keepdim=True)
        scaled = torch.where(std < FLAT, target_mean, (lab - mean) / std.clamp(min=FLAT) * target_std + target_mean)
        matched.append(torch.lerp(some, _rgb(scaled).clamp(0, 1), strength).to(frames.dtype))
    return torch.cat(matched)


def _lab(rgb: Tensor) -> Tensor:
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ rgb.new_tensor(XYZ_FROM_RGB).T / rgb.new_tensor(D65)
    x, y, z = torch.where(xyz > LAB_EPSILON, xyz.clamp(min=0) ** (1 / 3), LAB_SLOPE * xyz + LAB_OFFSET).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def _rgb(lab: Tensor) -> Tensor:
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)], dim=-1)
    xyz = torch.where(f > LAB_EPSILON ** (1 / 3), f**3, (f - LAB_OFFSET) / LAB_SLOPE) * lab.new_tensor(D65)
    linear = xyz @ torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64)).to(lab).T
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055, 12.92 * linear)
