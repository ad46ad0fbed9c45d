"""Pictures: the model's sizes, the published way of fitting a picture or a mask to one, and what CLIP sees.

Shapes: pictures are [F, H, W, 3] in 0…1 (ComfyUI's IMAGE), masks [K, H, W].
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LATENT_STRIDE = 8  # pixels of one latent, each way
TOKEN_STRIDE = 16  # pixels of one token, each way
CLIP_SIDE = 224  # pixels
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

SizeClass = Literal["multitalk-480", "multitalk-720"]

# height/width ratio as the official table writes it, and (height, width) in pixels. Source: MeiGen-AI/MultiTalk@c1ad840
# wan/utils/multitalk_utils.py, ASPECT_RATIO_627 (the area of 640×640) and ASPECT_RATIO_960 (of 960×960).
BUCKETS: dict[str, tuple[tuple[float, int, int], ...]] = {
    "multitalk-480": (
        (0.26, 320, 1216), (0.38, 384, 1024), (0.50, 448, 896), (0.67, 512, 768), (0.82, 576, 704), (1.00, 640, 640),
        (1.22, 704, 576), (1.50, 768, 512), (1.86, 832, 448), (2.00, 896, 448), (2.50, 960, 384), (2.83, 1088, 384),
        (3.60, 1152, 320), (3.80, 1216, 320), (4.00, 1280, 320),
    ),
    "multitalk-720": (
        (0.22, 448, 2048), (0.29, 512, 1792), (0.36, 576, 1600), (0.45, 640, 1408), (0.55, 704, 1280), (0.63, 768, 1216),
        (0.76, 832, 1088), (0.88, 896, 1024), (1.00, 960, 960), (1.14, 1024, 896), (1.31, 1088, 832), (1.50, 1152, 768),
        (1.58, 1216, 768), (1.82, 1280, 704), (1.91, 1344, 704), (2.20, 1408, 640), (2.30, 1472, 640), (2.67, 1536, 576),
        (2.89, 1664, 576), (3.62, 1856, 512), (3.75, 1920, 512),
    ),
}  # fmt: skip


def bucket(height: int, width: int, size: SizeClass) -> tuple[int, int]:
    """(height, width) of the bucket whose ratio is nearest to the picture's; on a tie the first of the table."""
    ratio = height / width
    _, best_height, best_width = min(BUCKETS[size], key=lambda row: abs(row[0] - ratio))
    return best_height, best_width


def fitted(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """(height, width) of a picture scaled to cover the target, before the crop."""
    scale = max(target_height / height, target_width / width)
    return math.ceil(scale * height), math.ceil(scale * width)


def opaque(pictures: Tensor) -> Tensor:
    """RGB of pictures [F, H, W, 3 or 4]: what is see-through becomes white."""
    rgb, alpha = pictures[..., :3], pictures[..., 3:4]
    return rgb * alpha + (1 - alpha) if alpha.shape[-1] else rgb


def fit_picture(pictures: Tensor, height: int, width: int) -> Tensor:
    """Scale to cover and crop the middle: [F, H, W, 3] → [F, height, width, 3] in steps of 1/255.

    Pillow's bilinear filter on 8-bit pictures (antialiased when shrinking), as the published pipeline prepares its pictures.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, resize_and_centercrop().
    """
    from PIL import Image

    size = fitted(pictures.shape[1], pictures.shape[2], height, width)
    fit = []
    for picture in (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy():
        image = Image.fromarray(picture).resize((size[1], size[0]), resample=Image.Resampling.BILINEAR)
        fit.append(torch.from_numpy(np.array(image)))
    return center_crop(torch.stack(fit).movedim(-1, 1), height, width).movedim(1, -1).float() / 255


def fit_mask(masks: Tensor, height: int, width: int) -> Tensor:
    """The same scale and crop for masks [K, H, W], by nearest neighbour → [K, height, width].

    Source: as `fit_picture`, its branch for tensors.
    """
    size = fitted(masks.shape[-2], masks.shape[-1], height, width)
    return center_crop(F.interpolate(masks[None].float(), size=size, mode="nearest")[0], height, width)


def center_crop(pictures: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle out of [..., H, W]; half pixels are rounded to even, as Python's round does."""
    top = round((pictures.shape[-2] - height) / 2)
    left = round((pictures.shape[-1] - width) / 2)
    return pictures[..., top : top + height, left : left + width]


def clip_input(pictures: Tensor) -> Tensor:
    """What CLIP sees: [F, H, W, 3] → [F, 3, 224, 224], stretched (no crop), bicubic without antialiasing, not clamped.

    ComfyUI's own preprocessing crops, antialiases and rounds to 8 bits.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/modules/clip.py, CLIPModel.visual().
    """
    stretched = F.interpolate(pictures.movedim(-1, 1).float(), size=(CLIP_SIDE, CLIP_SIDE), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(v, device=stretched.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (stretched - mean) / std
