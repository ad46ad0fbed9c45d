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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import torch
from torch import Tensor

from ...comfy_bridge.backend import ComfyBackend
from ...comfy_bridge.long_video import LongVideo, Output, Settings, long_video
from ...comfy_bridge.sampling import Sampling
from ...comfy_bridge.scene import Models
from ...multitalk_core import generate as generating
from ...multitalk_core.clock import FPS
from ...multitalk_core.families import FAMILIES
from ...multitalk_core.generate import generate, with_grey
from ...multitalk_core.people.speakers import Speaker
from ...multitalk_core.people.voices import Voices
from ...multitalk_core.video import job as jobs
from ...multitalk_core.video.disk import Exactly
from ...multitalk_core.video.segments import CODECS, to_pixels, write_segment
from ...multitalk_core.windows import FRAMES_PER_LATENT
from . import counted, paired, steps
from .sized import LAYERS, SIZES, SPREAD, Size, Sized, fill
from .timed import TimedBackend

STEPS = 4  # distilled settings: text 1, audio 1, one evaluation a step
CLIPS = 3
OVERLAP = 9  # InfiniteTalk's motion frames


def on_the_cpu() -> dict[str, Any]:
    """The demo model's phases by family, what it saves to encode an image once, and how long it takes to encode a clip of a true size.

    One after the other: beside each other they would wait for the same cores, and encoding such small pictures is a hundredth of it.
    """
    from .long_video import prepare

    found: dict[str, Any] = {"phases": {}}
    for family in FAMILIES:
        video, backend = prepare(7, "demo", STEPS, family)
        found["phases"][family] = phases(video, backend, in_turn)
    found["source_once"] = source_once(video, 3)  # of InfiniteTalk, the last
    found["encoding"] = encoding()
    found["operations"] = {size.name: vae_operations(size) for size in (SIZES["480p"], SIZES["720p"])}
    return found


def vae_operations(size: Size) -> dict[str, int]:
    """What the VAE's part of a clip takes, counted on shapes."""
    frames, height, width = size.latent
    clip_frames = (frames - 1) * FRAMES_PER_LATENT + 1
    with counted.fake(), torch.no_grad():
        network = wan_vae()
        pictures = {"picture": clip_frames, "motion frames": OVERLAP}
        encoded = {name: torch.empty(1, 3, count, height * 8, width * 8) for name, count in pictures.items()}
        found = {f"VAE encode, {name}": counted.count(partial(network.encode, given)).operations for name, given in encoded.items()}
        found["VAE decode"] = counted.count(partial(network.decode, torch.empty(1, 16, frames, height, width))).operations
    return found


def source_once(video: LongVideo, rounds: int) -> dict[str, Any]:
    """A later clip of an image, beside the same clip when the VAE encodes the image again."""
    backend = video.backend
    first, second = video.video.clips[:2]
    picture = video.video.source(0)
    motion = picture.expand(second.drop, -1, -1, -1)

    def clip(encoding: ComfyBackend) -> Tensor:
        with torch.inference_mode():
            return next(generate(encoding, video.video, [second], motion)).frames

    backend.encode_source(picture, first.stop - first.start)
    return paired.compare(partial(clip, backend), partial(clip, EncodesAgain.of(backend)), rounds)


class EncodesAgain(TimedBackend):
    """The VAE encodes an image again for every clip; there is no CLIP here."""

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        return self.encode(with_grey(source, frames))


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
    """Seconds of a video's clips after the first, which warms up and encodes the picture: together, by phase, and the median of one."""
    laps: list[tuple[float, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder, torch.inference_mode(), timed_beside(backend.seconds):
        job = jobs.Job(Path(folder) / "job", "bench", video.video.clips, CODECS["h264"], 18)

        def tell(line: str) -> None:
            if "step" not in line:  # a clip begins, or they are joined
                laps.append((time.perf_counter(), dict(backend.seconds)))

        make(video, job, Exactly(Path(folder) / "out.mp4"), tell)
    (_, before), (_, after) = laps[1], laps[-1]
    each = [b - a for (a, _), (b, _) in zip(laps[1:], laps[2:], strict=False)]
    return {
        "first_clip": laps[1][0] - laps[0][0],
        "clips": len(each),
        "seconds": sum(each),
        "a_clip": statistics.median(each),
        "a_second_of_video": statistics.median(each) / (video.video.clips[1].keep / FPS),
        "phases": {phase: seconds - before.get(phase, 0.0) for phase, seconds in after.items()},
    }


def whole(video: LongVideo, job: jobs.Job, place: Exactly, tell: Callable[[str], None]) -> None:
    video.make(job, Output(place), tell)


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
    """Seconds for the new frames of a clip on the CPU, encoded with the node's settings: a drawn face that talks, with a little noise."""
    import torch.nn.functional as F

    from ...multitalk_core.video.segments import read_frames

    source = torch.stack([*read_frames(Path(__file__).resolve().parents[2] / "demo" / "samples" / "silent_face.mp4", 0, 25)])
    found = []
    for width, height in ((832, 480), (1280, 720)):
        large = F.interpolate(source.movedim(-1, 1), size=(height, width), mode="bicubic", align_corners=False).movedim(1, -1)
        large = torch.cat([large, large.flip(0), large])[: 81 - OVERLAP]
        frames = large + 0.01 * torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder:
            laps = [time.perf_counter()]
            generating.match_colours(frames, frames[:1])
            laps.append(time.perf_counter())
            pixels = to_pixels(frames)
            laps.append(time.perf_counter())
            write_segment(Path(folder) / "a.mp4", pixels, CODECS["h264"])
            laps.append(time.perf_counter())
        colour, to_8_bits, encode = (b - a for a, b in pairwise(laps))
        found.append({"size": [width, height], "frames": len(frames), "colour": colour, "to_8_bits": to_8_bits, "encode": encode})
    return found


def at_size(size: Size, device: str, dtype: torch.dtype) -> tuple[LongVideo, TimedBackend]:
    """A long video of two speakers, all models with random weights on the device."""
    sized = Sized(size, device, dtype)
    frames, height, width = size.latent
    clip_frames = (frames - 1) * FRAMES_PER_LATENT + 1
    total = CLIPS * (clip_frames - OVERLAP) + OVERLAP
    tracks = tuple(torch.randn(total, LAYERS, size.adapter.audio_features // LAYERS) for _ in range(2))
    voices = Voices((Speaker(), Speaker()), tracks, total, torch.zeros(1, total * 640), 16000)
    prompt = [[sized.text.float().cpu(), {}]]
    settings = Settings(width * 8, height * 8, 1, Sampling(STEPS, 5.0, 1.0, 1.0), "auto", clip_frames, OVERLAP, 1.0, ())
    picture = torch.rand(1, height * 8, width * 8, 3)
    models = Models(sized.model, sized.weights, random_vae(), prompt, prompt, random_clip())
    video = long_video(models, voices, picture, None, settings)
    backend = TimedBackend.of(video.backend)
    return replace(video, backend=backend), backend


def random_vae() -> Any:
    """The Wan VAE at its true size, through ComfyUI's own loader."""
    network = wan_vae()
    fill(network)
    return comfy.sd.VAE(sd=network.state_dict())


def wan_vae() -> Any:
    """ComfyUI's Wan 2.1 VAE at its true size, without weights."""
    from comfy.ldm.wan.vae import WanVAE

    return WanVAE(dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True])


def random_clip() -> Any:
    """CLIP ViT-H, which WAN sees with."""
    config = Path(sys.modules["comfy"].__path__[0]) / "clip_vision_config_h.json"
    clip = comfy.clip_vision.ClipVisionModel(str(config))
    for tensor in clip.model.parameters():
        tensor.data.normal_(0, SPREAD)
    return clip
