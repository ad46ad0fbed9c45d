"""Where finished videos go: numbered files in ComfyUI's output folder."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ..multitalk_core.errors import MultiTalkError

DEFAULT_PREFIX = "multitalk/video"
SHOWN = 40  # letters of a name in an error


class OutputError(MultiTalkError, ValueError):
    """No file can be written under that name; the message says why."""


class NumberedFile:
    """A numbered file in ComfyUI's output folder. The number is taken when the video is done; several ComfyUIs may write there.

    That a file can be written there is tried at once, because hours may pass until it is.

    Args:
        prefix: folders in ComfyUI's output folder and how the file's name begins; empty is DEFAULT_PREFIX.
    Raises:
        OutputError: a name that is too long or not allowed there, or a folder that cannot be written to.
        Exception: ComfyUI's, for a prefix outside the output folder.
    """

    def __init__(self, prefix: str, suffix: str) -> None:
        prefix = prefix if prefix.strip(" .") else DEFAULT_PREFIX
        try:
            place = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
            folder, self._name, self._number, self.subfolder, _ = place
            self.folder, self._suffix = Path(folder), suffix
            trial = self._path(0)  # which no video gets
            if _taken(trial):
                trial.unlink()
        except (OSError, ValueError) as error:  # ValueError: signs that no file system knows
            shown = prefix if len(prefix) <= SHOWN else f"{prefix[:SHOWN]}…"
            why = getattr(error, "strerror", None) or str(error)
            raise OutputError(
                f"No file can be written as filename_prefix '{shown}' says ({why}). Choose a shorter one, without special signs, in a "
                "folder that ComfyUI may write to."
            ) from error

    def keep(self, partial: Path) -> Path:
        """Gives a finished file the next number that nobody has."""
        path = next(path for path in self._paths() if _taken(path))
        try:
            os.replace(partial, path)
        except OSError:
            path.unlink()  # an empty file would look like a video
            raise
        return path

    def _paths(self) -> Iterator[Path]:
        for number in itertools.count(self._number):
            yield self._path(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"{self._name}_{number:05}_{self._suffix}"


def _taken(path: Path) -> bool:
    """Whether it was free and is ours now."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def made_with(prompt: Mapping[str, Any] | None, more: Mapping[str, Any] | None) -> dict[str, str]:
    """What a file says of the graph that it was made with, as ComfyUI's own nodes write it; nothing with --disable-metadata.

    Args:
        more: ComfyUI's extra_pnginfo: the editor's workflow, and what else a client gave.
    """
    if args.disable_metadata:
        return {}
    about = {**(more or {}), **({} if prompt is None else {"prompt": prompt})}
    return {name: json.dumps(value) for name, value in about.items()}
