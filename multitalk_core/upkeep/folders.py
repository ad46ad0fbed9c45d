"""Which folders of a ComfyUI's models the pack's graphs read, by ComfyUI's names for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# ComfyUI's folders that are looked through for a kind of model; where a file goes first
WHERE: dict[str, tuple[str, ...]] = {
    "multitalk": ("model_patches", "diffusion_models"),
    "wan21": ("diffusion_models",),
    "wav2vec": ("audio_encoders",),
    "vae": ("vae",),
    "clip": ("clip_vision",),
    "text_encoder": ("text_encoders",),
    "lora": ("loras",),
}
ONLY_BY_YAML = ("wav2vec2",)  # the others are known to every ComfyUI

Places = Mapping[str, Sequence[Path]]  # ComfyUI's name: the folders themselves


def places(models: Path) -> Places:
    """The folders of one models folder."""
    return {name: [models / folder for folder in folders] for name, folders in FOLDERS.items()}


def listing(folder: Path, refused: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """The files below a folder as ComfyUI lists them: links are followed, also those that lead nowhere are listed; hidden folders are not.

    Args:
        refused: hears of folders that are there and cannot be read.
    """

    def hear(error: OSError) -> None:
        if refused and not isinstance(error, FileNotFoundError):
            refused(error)

    walked = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=hear):
        walked.add(os.path.realpath(parent))
        inner = (name for name in sorted(folders) if not name.startswith("."))
        folders[:] = [name for name in inner if os.path.realpath(os.path.join(parent, name)) not in walked]  # a link to above
        yield from (Path(parent, name) for name in sorted(names))


def named(models: Path, folder: str, kind: str, name: str) -> list[Path]:
    """Where a file of this name lies: in the folder, one with an older name, another for its kind, or below them.

    Args:
        folder: ComfyUI's name of the one that it goes to.
        kind: of model, as in WHERE.
    """
    known, others = places(models), WHERE.get(kind, ())
    folders = (folder, *(other for other in others if other != folder)) if folder in others else (folder,)
    found = (path for each in folders for place in known.get(each, [models / each]) for path in listing(place) if path.name == name)
    return [path for path in found if os.path.isfile(path)]


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
