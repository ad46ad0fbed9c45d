"""Where a clip's time goes in a long video, and what it saves to encode a clip while the next one is made."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import torch

from ..comfy_bridge.long_video import LongVideo, Settings, long_video
from ..multitalk_core import generate as generating
from ..multitalk_core import job as jobs
from ..multitalk_core.disk import Exactly
from ..multitalk_core.segments import CODECS, to_pixels, write_segment
from ..multitalk_core.speakers import Speaker
from ..multitalk_core.voices import Voices
from ..multitalk_core.wav2vec import FPS
from . import steps
from .sized import LAYERS, SPREAD, Size, Sized, fill
from .timed import TimedBackend

STEPS = 4  # distilled settings: text 1, audio 1, one evaluation a step
CLIPS = 3
OVERLAP = 9  # InfiniteTalk's motion frames


def on_the_cpu() -> dict[str, Any]:
    """The demo model's phases, and how long it takes to encode a clip of a true size, on one core.

    One after the other: beside each other they would wait for the same cores, and encoding such small pictures is a hundredth of it.
    """
    from .long_video import prepare

    video, backend = prepare(7, "demo", STEPS)
    return {"phases": phases(video, backend, in_turn), "encoding": encoding()}


def on_a_card(size: Size, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """WAN, VAE and CLIP vision of the true sizes with random weights: two speakers, InfiniteTalk, four steps of one evaluation."""
    found: dict[str, Any] = {"size": size.name}
    for name, make in (("overlapped", whole), ("one after the other", in_turn)):
        video, backend = at_size(size, device, dtype)
        found[name] = phases(video, backend, make)
        del video, backend  # two models of 14B do not fit everywhere
        steps.let_go()
    return found


def phases(video: LongVideo, backend: TimedBackend, make: Callable[..., Any]) -> dict[str, Any]:
    """Seconds of a whole video by phase; a clip's share is that of the clips after the first, which warms up."""
    laps: list[float] = []
    with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder, torch.inference_mode(), timed_beside(backend.seconds):
        job = jobs.Job(Path(folder) / "job", "bench", video.plan, CODECS["h264"], 18)

        def tell(line: str) -> None:
            if "step" not in line:
                laps.append(time.perf_counter())

        began = time.perf_counter()
        make(video, job, Exactly(Path(folder) / "out.mp4"), tell)
        together = time.perf_counter() - began
    each = [b - a for a, b in zip(laps[1:], laps[2:], strict=False)]
    new = (video.plan[1].keep if len(video.plan) > 1 else video.plan[0].keep) / FPS
    return {
        "clips": len(video.plan),
        "seconds": together,
        "a_clip": statistics.median(each),
        "a_second_of_video": statistics.median(each) / new,
        "phases": dict(backend.seconds),
    }


def whole(video: LongVideo, job: jobs.Job, place: Exactly, tell: Callable[[str], None]) -> None:
    video.make(job, CODECS["h264"], place, tell)


def in_turn(video: LongVideo, job: jobs.Job, place: Exactly, tell: Callable[[str], None]) -> None:
    """As before there was a thread: each clip is stored before the next is begun."""
    before, jobs.ThreadPoolExecutor = jobs.ThreadPoolExecutor, AtOnce  # type: ignore[misc, attr-defined]
    try:
        whole(video, job, place, tell)
    finally:
        jobs.ThreadPoolExecutor = before  # type: ignore[misc, attr-defined]


class AtOnce:
    """An executor that does everything when it is submitted."""

    def __init__(self, **_: Any) -> None: ...
    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*given))
        return done


@contextmanager
def timed_beside(seconds: dict[str, float]) -> Iterator[None]:
    """Times the colours, and the encoding and storing of segments, which no backend does."""
    colours, storing = generating.match_colours, jobs.Job._store

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            began = time.perf_counter()
            made = function(*given)
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - began
            return made

        return call

    generating.match_colours, jobs.Job._store = timed("colour", colours), timed("video encode and store", storing)  # type: ignore[method-assign]
    try:
        yield
    finally:
        generating.match_colours, jobs.Job._store = colours, storing  # type: ignore[method-assign]


def encoding() -> list[dict[str, Any]]:
    """Seconds to encode the new frames of a clip with the node's settings: a drawn face that talks, enlarged, with a little noise."""
    import torch.nn.functional as F

    from ..multitalk_core.segments import read_frames

    source = torch.stack([*read_frames(Path(__file__).resolve().parents[1] / "demo" / "samples" / "silent_face.mp4", 0, 25)])
    found = []
    for width, height in ((832, 480), (1280, 720)):
        large = F.interpolate(source.movedim(-1, 1), size=(height, width), mode="bicubic", align_corners=False).movedim(1, -1)
        large = torch.cat([large, large.flip(0), large])[: 81 - OVERLAP]
        frames = large + 0.01 * torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder:
            began = time.perf_counter()
            pixels = to_pixels(frames)
            converted = time.perf_counter()
            write_segment(Path(folder) / "a.mp4", pixels, CODECS["h264"])
            found.append(
                {"size": [width, height], "frames": len(frames), "to_8_bits": converted - began, "encode": time.perf_counter() - converted}
            )
    return found


def at_size(size: Size, device: str, dtype: torch.dtype) -> tuple[LongVideo, TimedBackend]:
    """A long video of two speakers, all models with random weights on the device."""
    sized = Sized(size, device, dtype)
    frames, height, width = size.latent
    clip_frames = (frames - 1) * 4 + 1
    total = CLIPS * (clip_frames - OVERLAP) + OVERLAP
    tracks = tuple(torch.randn(total, LAYERS, size.adapter.audio_features // LAYERS) for _ in range(2))
    voices = Voices((Speaker(), Speaker()), tracks, total, torch.zeros(1, total * 640), 16000)
    prompt = [[sized.text.float().cpu(), {}]]
    settings = Settings(width * 8, height * 8, 1, STEPS, 5.0, 1.0, 1.0, "euler", None, "auto", clip_frames, OVERLAP, 1.0, ())
    picture = torch.rand(1, height * 8, width * 8, 3)
    video = long_video(sized.model, sized.weights, voices, picture, random_vae(), prompt, prompt, random_clip(), None, settings)
    backend = TimedBackend.of(video.backend)
    return replace(video, backend=backend), backend


def random_vae() -> Any:
    """The Wan VAE at its true size, through ComfyUI's own loader."""
    from comfy.ldm.wan.vae import WanVAE

    network = WanVAE(dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True])
    fill(network)
    return comfy.sd.VAE(sd=network.state_dict())


def random_clip() -> Any:
    """CLIP ViT-H, which WAN sees with."""
    config = Path(sys.modules["comfy"].__path__[0]) / "clip_vision_config_h.json"
    clip = comfy.clip_vision.ClipVisionModel(str(config))
    for tensor in clip.model.parameters():
        tensor.data.normal_(0, SPREAD)
    return clip
