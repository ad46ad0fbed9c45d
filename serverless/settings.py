"""The worker's settings, from environment variables. An empty one is as if it were not set."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import JobError
from .storage import Settings as Storage

SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY",
    "HF_TOKEN", "RUNPOD_API_KEY", "RUNPOD_AI_API_KEY",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """See docs/guide/serverless.md for what each of them is."""

    comfyui: str  # address
    template: str
    seconds: float  # for a whole job
    allow_workflows: bool
    folders: Mapping[str, Path]  # ComfyUI's input, output and temp, as far as they are on this machine: what jobs leave there is removed
    storage: Storage
    version: str
    commit: str

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Raises JobError for a number that is none."""

        def value(name: str, default: str) -> str:
            return environment.get(name, "").strip() or default

        try:
            seconds = float(value("MULTITALK_JOB_SECONDS", "3600"))
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise JobError("MULTITALK_JOB_SECONDS is no number of seconds above 0.", "misconfigured")
        folders = {kind: value(f"MULTITALK_{kind.upper()}_FOLDER", "") for kind in ("input", "output", "temp")}
        return cls(
            comfyui=value("COMFYUI_URL", "http://127.0.0.1:8188"),
            template=value("MULTITALK_TEMPLATE", "multitalk"),
            seconds=seconds,
            allow_workflows=value("MULTITALK_ALLOW_WORKFLOWS", "1") not in ("0", "false", "no", "off"),
            folders={kind: Path(folder) for kind, folder in folders.items() if folder},
            storage=Storage.of(environment),
            version=_version(),
            commit=value("MULTITALK_COMMIT", "unknown"),
        )


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """The values that must not be seen anywhere."""
    values = [environment.get(name, "").strip() for name in SECRETS]
    return [form for value in values if len(value) >= 6 for form in {value, json.dumps(value)[1:-1]}]


def _version() -> str:
    """Of the pack, as pyproject.toml has it."""
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return next((line.split('"')[1] for line in text.splitlines() if line.startswith("version = ")), "unknown")
