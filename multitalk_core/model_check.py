"""Whether the files that talking video needs are there, whole and the right ones. Only headers are read, unless hashes are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .disk import checksum
from .identify import PART, identify
from .manifest import Entry, Manifest, gigabytes
from .model import WeightsError
from .model_folders import ONLY_BY_YAML, Places
from .weight_files import read_header

NEEDED = ("multitalk", "wan21", "wav2vec", "vae", "clip", "text_encoder")  # the first five in the words of older clients
ROLES = (*NEEDED, "lora")
# ComfyUI's folders that are looked through for a role; where a file goes first
WHERE: dict[str, tuple[str, ...]] = {
    "multitalk": ("model_patches", "diffusion_models"),
    "wan21": ("diffusion_models",),
    "wav2vec": ("audio_encoders",),
    "vae": ("vae",),
    "clip": ("clip_vision",),
    "text_encoder": ("text_encoders",),
    "lora": ("loras",),
}
OF_FOLDER = {folder: role for role in reversed(ROLES) for folder in WHERE[role]}  # what an unreadable file there was meant to be
OF_FOLDER["diffusion_models"] = "wan21"
SUFFIXES = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
HALF = re.compile(r"\bis (incomplete|empty|part \d+ of)\b")  # in what the header's reader says
PRESENT, WRONG, INCOMPLETE, MISSING = "present", "wrong", "incomplete", "missing"
YAML = "ComfyUI looks there if extra_model_paths.yaml says so (models paths)"
SUGGESTED = "infinitetalk"  # preset whose file is named where there is none

Told = Callable[[int, int], None]  # bytes hashed, of all


@dataclass(frozen=True)
class FileCheck:
    """A file, and what is right or wrong with it."""

    role: str
    folder: str  # ComfyUI's name of it
    name: str  # below that folder
    path: Path
    size: int
    state: str  # present, wrong or incomplete
    note: str = ""
    problem: str = ""
    sha256: str = ""  # in words, once it was looked at

    def told(self) -> dict[str, Any]:
        """For JSON; without the path, which is nobody else's business."""
        words = {"state": self.state, "file": self.name, "folder": self.folder, "size": self.size}
        return words | {name: value for name in ("note", "problem", "sha256") if (value := getattr(self, name))}


@dataclass(frozen=True)
class ModelCheck:
    """What was found, role by role."""

    files: tuple[FileCheck, ...]
    suggested: dict[str, Entry]
    deep: bool = False

    def of(self, role: str) -> list[FileCheck]:
        return [file for file in self.files if file.role == role]

    def state(self, role: str) -> str:
        """The best of its files."""
        states = {file.state for file in self.of(role)}
        return next((state for state in (PRESENT, INCOMPLETE, WRONG) if state in states), MISSING)

    @property
    def available(self) -> dict[str, bool]:
        return {role: self.state(role) == PRESENT for role in NEEDED}

    @property
    def complete(self) -> bool:
        return all(self.available.values())

    def told(self) -> dict[str, Any]:
        """As JSON, in the field names of the worker's health and model check."""
        models: dict[str, Any] = {}
        for role in ROLES:
            files = [file.told() for file in self.of(role)]
            models[role] = {"state": self.state(role), "available": self.state(role) == PRESENT, "needed": role in NEEDED, "files": files}
            if self.state(role) != PRESENT:
                entry = self.suggested[role]
                models[role]["get"] = {"file": entry.name, "folder": entry.folder, "size": entry.size, "url": entry.url}
        return {"complete": self.complete, "deep": self.deep, "model_info": {"models_available": self.available}, "models": models}

    def table(self) -> str:
        """The same for people: a line a file, and what to do."""
        rows = [("model", "state", "file", "size", "")]
        for role in ROLES:
            for file in self.of(role):
                words = "; ".join(filter(None, (file.problem, file.sha256, file.note)))
                rows.append((role, file.state, f"{file.folder}/{file.name}", gigabytes(file.size), words))
            if self.state(role) == MISSING:
                entry = self.suggested[role]
                wanted = f"for example {entry.name}, {entry.told}, into {entry.folder}" + ("" if role in NEEDED else "; not needed")
                rows.append((role, MISSING, "-", "", wanted))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.verdict()])

    def verdict(self) -> str:
        if self.complete:
            return "Everything is there." if self.deep else "Everything is there; only a deep check compares the contents."
        lacking = ", ".join(f"{role} is {self.state(role)}" for role in NEEDED if self.state(role) != PRESENT)
        return f"Not complete: {lacking}. To get what is missing: python dev.py models get {SUGGESTED} --models DIR"


def check_models(places: Places, deep: bool = False, told: Told | None = None, manifest: Manifest | None = None) -> ModelCheck:
    """Look through ComfyUI's folders.

    Args:
        places: ComfyUI's name of each folder, and where it is.
        deep: compares SHA-256 with those of the published files, which reads every byte.
        told: hears how far that is, and may raise to break it off.
    """
    manifest = manifest or Manifest.load()
    files = list(_whole(_found(places, manifest)))
    if deep:
        files = _hashed(files, manifest, told)
    usable = {file.role for file in files if file.state == PRESENT}
    # one's other models are no concern, if the right one is there and these do not bear its name
    shown = [file for file in files if file.state == PRESENT or file.role not in usable or _listed(file, manifest)]
    suggested = {entry.kind: entry for entry in manifest.presets[SUGGESTED].files} if SUGGESTED in manifest.presets else {}
    known = {role: suggested.get(role) or next(iter(manifest.of_kind(role))) for role in ROLES}
    return ModelCheck(tuple(sorted(shown, key=lambda file: (ROLES.index(file.role), file.name))), known, deep)


def _listed(file: FileCheck, manifest: Manifest) -> Entry | None:
    return manifest.files.get(file.path.name)


def _found(places: Places, manifest: Manifest) -> Iterator[FileCheck]:
    """Every file that is meant for one of the roles, by its contents, its name or its folder."""
    seen = set()
    for folder in dict.fromkeys(folder for role in ROLES for folder in WHERE[role]):
        for place in places.get(folder, ()):
            for path in _files(Path(place)):
                known = path.name in manifest.files
                if (real := path.resolve()) in seen or path.suffix.lower() not in SUFFIXES or (folder == "loras" and not known):
                    continue
                seen.add(real)
                if (file := _judged(path, folder, Path(place), manifest)) is not None:
                    yield file


def _files(folder: Path) -> Iterator[Path]:
    """As ComfyUI lists them: links are followed, hidden folders are not."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names))


def _judged(path: Path, folder: str, place: Path, manifest: Manifest) -> FileCheck | None:
    """None for a model of another kind, which is here for something else."""
    entry, name = manifest.files.get(path.name), path.relative_to(place).as_posix()
    role, size = entry.kind if entry else OF_FOLDER[folder], path.stat().st_size if path.exists() else 0
    try:
        header = read_header(path)
    except WeightsError as error:
        half = HALF.search(str(error)) or (entry and entry.size and size < entry.size)
        return FileCheck(role, folder, name, path, size, INCOMPLETE if half else WRONG, problem=str(error))
    except OSError as error:
        problem = f"'{path.name}' cannot be read ({error.strerror or error})."
        return FileCheck(role, folder, name, path, size, WRONG, problem=problem)
    found = identify(header, path.name)
    if found.kind == "other" and entry is None and not PART.search(path.name):
        return None
    if entry and found.kind not in (entry.kind, "other"):
        problem = f"it bears the name of a {entry.kind} file, but holds {found.kind}. Get it again, or give it another name."
        return FileCheck(role, folder, name, path, size, WRONG, found.note, problem)
    role = found.kind if found.kind != "other" else role
    needs = "needs the pack ComfyUI-GGUF" if role == "wan21" and header.container == "gguf" else ""
    note = "; ".join(filter(None, (found.note, needs, "" if place.name not in ONLY_BY_YAML else YAML)))
    file = FileCheck(role, folder, name, path, size, PRESENT, note)
    if found.problem:
        return replace(file, state=INCOMPLETE if HALF.search(found.problem) else WRONG, problem=f"'{path.name}' {found.problem}")
    if folder not in WHERE[role]:
        return replace(
            file, state=WRONG, problem=f"it is a {role} model, and loaders look for it in models/{WHERE[role][0]}. Move it there."
        )
    if entry and entry.size and size != entry.size:
        state = INCOMPLETE if size < entry.size else WRONG
        return replace(file, state=state, problem=f"it has {size:,} bytes, the published file {entry.size:,}. Get it again.")
    return file


def _whole(files: Iterator[FileCheck]) -> Iterator[FileCheck]:
    """Parts of one model become one row. An encoder in parts loads, if all are there with their list beside them."""
    groups: dict[tuple[Path, str, int], list[FileCheck]] = {}
    for file in files:
        part = PART.search(file.path.name)
        if part is None:
            yield file
        else:
            groups.setdefault((file.path.parent, file.path.name[: part.start()], int(part[2])), []).append(file)
    for (folder, _, count), parts in groups.items():
        first = parts[0]
        size = sum(part.size for part in parts)
        if first.folder == "audio_encoders" and len(parts) == count and (folder / "model.safetensors.index.json").exists():
            yield replace(first, role="wav2vec", size=size, state=PRESENT, problem="", note=f"{count} parts")
        else:
            yield replace(first, size=size, state=INCOMPLETE, problem=f"{len(parts)} of {count} parts are there. Get a file that is whole.")


def _hashed(files: list[FileCheck], manifest: Manifest, told: Told | None) -> list[FileCheck]:
    """The same files, with what their SHA-256 tells."""
    total = sum(file.size for file in files if _comparable(file, manifest))
    done, compared = 0, []
    for file in files:
        if (entry := _comparable(file, manifest)) is None:
            listed = _listed(file, manifest)
            words = (
                "" if file.state != PRESENT else "no hash is known of it" if listed else "it is no listed file, so there is no hash of it"
            )
            compared.append(replace(file, sha256=words))
            continue
        before = done

        def hear(count: int, before: int = before) -> None:
            if told:
                told(before + count, total)

        digest = checksum(file.path, hear)
        done += file.size
        compared.append(_compared(file, entry, digest))
    return compared


def _comparable(file: FileCheck, manifest: Manifest) -> Entry | None:
    """The published file with its hash that this one claims to be."""
    entry = _listed(file, manifest)
    return entry if file.state == PRESENT and entry is not None and entry.sha256 is not None else None


def _compared(file: FileCheck, entry: Entry, digest: str) -> FileCheck:
    if digest == entry.sha256:
        return replace(file, sha256="SHA-256 is right" if entry.confirmed else "SHA-256 is as seen in a copy; nobody has confirmed it")
    if entry.confirmed:
        problem = f"its SHA-256 is {digest}, the published file's {entry.sha256}: it is damaged, or another version. Get it again."
        return replace(file, state=WRONG, problem=problem, sha256="SHA-256 differs")
    return replace(file, sha256=f"SHA-256 is {digest}, not the one seen in a copy; nobody has confirmed either")
