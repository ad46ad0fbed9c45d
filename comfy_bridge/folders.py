"""Where ComfyUI keeps the files that our loaders list."""

from __future__ import annotations

from pathlib import Path

import folder_paths

WEIGHTS = ("model_patches", "diffusion_models")
GGUF = "multitalk_gguf_"  # before a folder's name: the same folder, of which ComfyUI otherwise does not list GGUF files


def weight_names() -> list[str]:
    """safetensors and GGUF files in the folders for audio weights."""
    names: dict[str, None] = {}
    for folder in WEIGHTS:
        names |= dict.fromkeys(name for name in folder_paths.get_filename_list(folder) if name.endswith(".safetensors"))
        names |= dict.fromkeys(folder_paths.get_filename_list(_gguf(folder)))
    return list(names)


def weight_path(name: str) -> Path:
    """The file of a name in those folders.

    Raises:
        FileNotFoundError: in none of them.
    """
    for folder in WEIGHTS:
        if path := folder_paths.get_full_path(folder, name):
            return Path(path)
    raise FileNotFoundError(f"'{name}' is in none of models/{', models/'.join(WEIGHTS)}. Put it there, or choose another.")


def _gguf(folder: str) -> str:
    """The name under which ComfyUI lists a folder's GGUF files; it shares the folder's own list of places."""
    places = folder_paths.folder_names_and_paths[folder][0]
    folder_paths.folder_names_and_paths[GGUF + folder] = (places, {".gguf"})
    return GGUF + folder
