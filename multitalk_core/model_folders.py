"""Which folders of a ComfyUI's models the pack's graphs read, by ComfyUI's names for them."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

# ComfyUI's name: the folders below `models`, the first for new files, the others older or other packs' names
FOLDERS: dict[str, tuple[str, ...]] = {
    "audio_encoders": ("audio_encoders", "wav2vec2"),
    "checkpoints": ("checkpoints",),
    "clip_vision": ("clip_vision",),
    "diffusion_models": ("diffusion_models", "unet"),
    "loras": ("loras",),
    "model_patches": ("model_patches",),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
}
ONLY_BY_YAML = ("wav2vec2",)  # the others are known to every ComfyUI

Places = Mapping[str, Sequence[Path]]  # ComfyUI's name: the folders themselves


def places(models: Path) -> Places:
    """The folders of one models folder."""
    return {name: [models / folder for folder in folders] for name, folders in FOLDERS.items()}


def named(models: Path, folder: str, name: str) -> Path:
    """Where a file of this name lies, in the folder, one with an older name or below them; else where it would go."""
    for place in places(models).get(folder, [models / folder]):
        found = sorted(path for path in place.rglob(glob.escape(name)) if path.is_file()) if place.is_dir() else []
        if found:
            return found[0]
    return models / folder / name


def as_yaml(models: Path | None = None) -> str:
    """A complete extra_model_paths.yaml.

    Args:
        models: what the folders lie in; else a path to be filled in.
    """
    lines = [
        "# Where ComfyUI finds the models: save it as extra_model_paths.yaml beside ComfyUI's main.py, or start ComfyUI with",
        "# --extra-model-paths-config FILE. Every kind of file that the pack's graphs need has its line, some with an older name.",
        "multitalk:",
        f"  base_path: {json.dumps(str(models) if models else '/path/to/models', ensure_ascii=False)}",
        "  is_default: true  # before ComfyUI's own models folder",
    ]
    for name, folders in FOLDERS.items():
        lines += [f"  {name}: {folders[0]}"] if len(folders) == 1 else [f"  {name}: |", *(f"    {folder}" for folder in folders)]
    return "\n".join(lines) + "\n"
