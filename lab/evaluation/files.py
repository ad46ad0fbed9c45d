"""The MP4 files of the evaluation.

Shapes: F video frames at 25 a second; frames are [F, H, W, 3] in 0…1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ...multitalk_core.clock import FPS
from .cases import Group

CRF = "18"  # x264's quality: artefacts that nobody sees


def video_file(folder: Path, row: str, number: int) -> Path:
    """Where a row's video of a case is left."""
    return folder / f"{row}-{number:03}.mp4"


def truth_file(folder: Path, group: Group) -> Path:
    return folder / f"{group.cases}-{group.number:03}-truth.mp4"


def write_video(file: Path, parts: Iterable[Tensor]) -> None:
    """An MP4 of 25 frames a second as players take it (H.264, 4:2:0), from parts [n, H, W, 3] that are not kept."""
    with av.open(str(file), "w") as container:
        # one thread: the same bytes on every machine
        stream = container.add_stream("libx264", rate=FPS, options={"crf": CRF, "threads": "1"})
        stream.pix_fmt = "yuv420p"
        for part in parts:
            if not stream.codec_context.is_open:
                stream.height, stream.width = part.shape[1:3]
            for pixels in (part.clamp(0, 1) * 255).round().byte().cpu().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def read_video(file: Path) -> Tensor:
    """All frames of an MP4, [F, H, W, 3]."""
    with av.open(str(file)) as container:
        return _frames(container.decode(video=0))


def video_parts(file: Path, counts: Sequence[int]) -> Iterator[Tensor]:
    """The frames of an MP4 in parts of these lengths."""
    with av.open(str(file)) as container:
        decoded = container.decode(video=0)
        for count in counts:
            yield _frames(islice(decoded, count))


def _frames(decoded: Iterable[av.VideoFrame]) -> Tensor:
    return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])).float() / 255
