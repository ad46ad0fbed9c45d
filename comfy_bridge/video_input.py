"""Videos as other nodes hand them on, which may be cut to a part."""

from __future__ import annotations

from typing import Any


def trimmed(video: Any) -> tuple[float, float]:
    """Start and duration, in seconds, that another node has cut a ComfyUI VIDEO to; a duration of 0 is to the end."""
    if hasattr(video, "get_active_trim_window"):
        return video.get_active_trim_window()
    names = ("_VideoFromFile__start_time", "_VideoFromFile__duration")  # ComfyUI before 0.19 has no public way to ask
    start, duration = (float(getattr(video, name, 0.0)) for name in names)
    return start, duration
