"""Progress on the node: a bar for whatever takes long, and where a long video is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..multitalk_core.generate import Made
from ..multitalk_core.notes import OnProgress
from ..multitalk_core.windows import Clip


def interruptible_bar() -> OnProgress:
    """A bar on the node; the user can interrupt the work between two of its steps."""
    bar: list[comfy.utils.ProgressBar] = []

    def on_progress(done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bar:
            bar.append(comfy.utils.ProgressBar(of))
        bar[0].update_absolute(done)

    return on_progress


class VideoProgress:
    """One bar over all steps of all clips, a line on the node, and the last frame of each clip."""

    def __init__(self, steps: int, clips: int, before: int, tell: Callable[[str], None]) -> None:
        self._steps, self._clips, self._tell = steps, clips, tell
        self._bar = comfy.utils.ProgressBar(self._steps * clips)
        self._done, self._clip, self._before = before * self._steps, 0, before
        self._steps_made = self._clips_made = 0
        self._on_steps = self._on_rest = 0.0  # seconds: decoding, colours and storing are the rest
        self._at = time.monotonic()
        self._bar.update_absolute(self._done)

    def begin(self, clip: Clip) -> None:
        self._clip = clip.index
        self._on_rest += self._lap()
        self._tell(f"clip {clip.index + 1}/{self._clips}")

    def step(self, step: int, denoised: Tensor, noisy: Tensor, total: int) -> None:
        """ComfyUI's callback after every step."""
        self._steps_made += 1
        self._done = min(self._done + 1, self._steps * self._clips)
        self._on_steps += self._lap()
        self._tell(f"clip {self._clip + 1}/{self._clips}, step {step + 1}/{self._steps}, {self._time_left()} left")
        self._bar.update_absolute(self._done)

    def made(self, made: Made) -> None:
        """Show the clip's last frame."""
        self._clips_made += 1
        self._on_rest += self._lap()
        self._bar.update_absolute(self._done, preview=("JPEG", _picture(made.frames[-1]), latent_preview.MAX_PREVIEW_RESOLUTION))

    def _time_left(self) -> str:
        """As long as the clips before took; until there was one, what follows a clip's steps is not known."""
        clips = self._clips - self._before - self._clips_made
        seconds = self._on_steps / self._steps_made * max(0, (self._clips - self._before) * self._steps - self._steps_made)
        return _clock(seconds + self._on_rest / self._clips_made * clips) if self._clips_made else f"at least {_clock(seconds)}"

    def _lap(self) -> float:
        """Seconds since the last one."""
        before, self._at = self._at, time.monotonic()
        return self._at - before


def _picture(frame: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((frame.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
