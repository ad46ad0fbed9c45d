"""Where and when something was measured, for the files that hold the figures."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from typing import Any


def surroundings() -> dict[str, Any]:
    """Date, device and versions."""
    import comfyui_version
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    versions = {"torch": torch.__version__, "comfyui": comfyui_version.__version__, "python": platform.python_version()}
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": device, "versions": versions}
