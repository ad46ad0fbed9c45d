"""Whether the files that talking video needs are there, whole and the right ones. Only headers are read, unless hashes are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import IncompleteError, WeightsError
from ..files import checksum, gigabytes
from ..notes import OnProgress
from ..weights.files import read_header
from ..weights.header import Header
from ..weights.identify import INSTEAD, PART, Incomplete, identify
from .folders import ONLY_BY_YAML, WHERE, Places, listing
from .published import Entry, Manifest

NEEDED = ("multitalk", "wan21", "wav2vec", "vae", "clip", "text_encoder")  # the first five in the words of older clients
ROLES = (*NEEDED, "lora")
OF_FOLDER = {folder: role for role in reversed(ROLES) for folder in WHERE[role]}  # what an unreadable file there was meant to be
OF_FOLDER["diffusion_models"] = "wan21"
SUFFIXES = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
PRESENT, WRONG, INCOMPLETE, MISSING = "present", "wrong", "incomplete", "missing"
YAML = "ComfyUI looks there if extra_model_paths.yaml says so (models paths)"
SUGGESTED = "infinitetalk"  # preset whose file is named where there is none
INDEX = "model.safetensors.index.json"  # names the parts of an encoder
VERIFIED, AS_SEEN, UNKNOWN, DIFFERS = "verified", "as seen in a copy", "of no known hash", "different"  # what a hash tells


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
    compared: str = ""  # VERIFIED, AS_SEEN, UNKNOWN or DIFFERS, then
    misplaced: bool = False  # right, but not where loaders look

    def as_json(self) -> dict[str, Any]:
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

    def as_json(self) -> dict[str, Any]:
        """As JSON, in the field names of the worker's health and model check."""
        models: dict[str, Any] = {}
        for role in ROLES:
            files = [file.as_json() for file in self.of(role)]
            models[role] = {"state": self.state(role), "available": self.state(role) == PRESENT, "needed": role in NEEDED, "files": files}
            if self.state(role) != PRESENT:
                entry = self.suggested[role]
                models[role]["get"] = {"file": entry.name, "folder": entry.folder, "size": entry.size, "url": entry.url}
        return {"complete": self.complete, "deep": self.deep, "model_info": {"models_available": self.available}, "models": models}

    def table(self, models: str = "DIR") -> str:
        """The same for people: a line a file, and what to do.

        Args:
            models: the models folder, as it is to be typed.
        """
        rows = [("model", "state", "file", "size", "")]
        for role in ROLES:
            for file in self.of(role):
                words = "; ".join(filter(None, (file.problem, file.sha256, file.note)))
                rows.append((role, file.state, f"{file.folder}/{file.name}", gigabytes(file.size), words))
            if self.state(role) == MISSING:
                entry = self.suggested[role]
                wanted = f"for example {entry.name}, {entry.size_in_words}, into {entry.folder}" + (
                    "" if role in NEEDED else "; not needed"
                )
                rows.append((role, MISSING, "-", "", wanted))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.verdict(models)])

    def verdict(self, models: str = "DIR") -> str:
        """In a line or two; `models` as in `table`."""
        hashes = [file.compared for file in self.files if file.compared]
        text = ", ".join(f"{hashes.count(word)} {word}" for word in (VERIFIED, AS_SEEN, UNKNOWN, DIFFERS) if word in hashes)
        text = f" SHA-256: {text}." if self.deep else " Only a deep check compares the contents."
        if self.complete:
            return f"Everything is there.{text}"
        roles = [role for role in NEEDED if self.state(role) != PRESENT]
        lacking = ", ".join(f"{role} is {self.state(role)}" for role in roles)
        moved = [role for role in roles if any(file.misplaced for file in self.of(role))]
        entries = [self.suggested[role] for role in roles if role not in moved]
        lines = [f"Not complete: {lacking}.{text if self.deep else ''}"]
        if moved:
            lines.append(
                f"To move: {', '.join(file.path.name for role in moved for file in self.of(role) if file.misplaced)}, as said by the check."
            )
        if entries:
            size = f"{'' if all(entry.size for entry in entries) else 'about '}{gigabytes(sum(entry.bytes for entry in entries))}"
            names = {entry.name for entry in entries}
            again = " --replace" if any(file.path.name in names and file.state != PRESENT for file in self.files) else ""
            command = f"python dev.py models get {' '.join(entry.name for entry in entries)} --models {models}{again}"
            lines.append(f"To get ({size}{'; takes the place of what is wrong' if again else ''}): {command}")
        return "\n".join(lines)


def check_models(
    places: Places, deep: bool = False, on_progress: OnProgress | None = None, manifest: Manifest | None = None, from_comfy: bool = False
) -> ModelCheck:
    """Look through ComfyUI's folders.

    Args:
        places: ComfyUI's name of each folder, and where it is.
        deep: compares SHA-256 with those of the published files, which reads every byte.
        on_progress: called with the bytes that were hashed, and all.
        from_comfy: ComfyUI itself named the places, so it looks there.
    """
    manifest = manifest or Manifest.load()
    files = _once(_whole(_found(places, manifest, from_comfy)))
    if deep:
        files = _hashed(files, manifest, on_progress)
    usable = {file.role for file in files if file.state == PRESENT}
    # one's other models are no concern, if the right one is there and these do not bear its name
    shown = [file for file in files if file.state == PRESENT or file.role not in usable or _listed(file, manifest)]
    ordered = sorted(shown, key=lambda file: (ROLES.index(file.role), file.name))
    return ModelCheck(tuple(ordered), {role: _suggested(role, ordered, manifest) for role in ROLES}, deep)


def _suggested(role: str, files: Iterable[FileCheck], manifest: Manifest) -> Entry:
    """What to get: again what is there and not right, else the preset's; from the shipped list if there is none in this one."""
    broken = (_listed(file, manifest) for file in files if file.role == role and file.state != PRESENT and not file.misplaced)
    if again := next((entry for entry in broken if entry and entry.kind == role), None):
        return again
    for known in (manifest, Manifest.load()):
        preset = known.presets.get(SUGGESTED)
        entries = [*(entry for entry in (preset.files if preset else ()) if entry.kind == role), *known.of_kind(role)]
        if entries:
            return entries[0]
    raise LookupError(f"The shipped list of models has no {role}. Please report this.")


def _listed(file: FileCheck, manifest: Manifest) -> Entry | None:
    return manifest.files.get(file.path.name)


def _found(places: Places, manifest: Manifest, from_comfy: bool) -> Iterator[FileCheck]:
    """Every file that is meant for one of the roles, by its contents, its name or its folder; a file with links to it in every folder."""
    seen = set()
    for folder in dict.fromkeys(folder for role in ROLES for folder in WHERE[role]):
        for place in map(Path, places.get(folder, ())):
            refused: list[OSError] = []
            for path in listing(place, refused.append):
                real, known = (folder, os.path.realpath(path)), path.name in manifest.files
                if real in seen or path.suffix.lower() not in SUFFIXES or (folder == "loras" and not known):
                    continue
                seen.add(real)
                if (file := _judged(path, folder, place, manifest)) is not None:
                    by_yaml = file.state == PRESENT and place.name in ONLY_BY_YAML and not from_comfy
                    yield replace(file, note=f"{file.note}; {YAML}") if by_yaml else file
            for error in refused:
                yield _refused(Path(error.filename or place), folder, place, error)


def _refused(path: Path, folder: str, place: Path, error: OSError) -> FileCheck:
    problem = f"'{path.name}' cannot be read ({error.strerror or error}). Make it readable for the user that ComfyUI runs as."
    return FileCheck(OF_FOLDER[folder], folder, path.relative_to(place).as_posix(), path, 0, WRONG, problem=problem)


def _once(files: Iterable[FileCheck]) -> list[FileCheck]:
    """A file that is right in one folder is no concern in another that has a link to it."""
    files = list(files)
    right = {os.path.realpath(file.path): file for file in reversed(files) if file.state == PRESENT}
    return [file for file in files if right.get(os.path.realpath(file.path), file) is file]


def _judged(path: Path, folder: str, place: Path, manifest: Manifest) -> FileCheck | None:
    """None for a model of another kind, which is here for something else."""
    entry, name = manifest.files.get(path.name), path.relative_to(place).as_posix()
    role = entry.kind if entry else OF_FOLDER[folder]
    try:
        size = path.stat().st_size
    except OSError as error:
        return replace(_refused(path, folder, place, error), role=role)
    try:
        header = read_header(path, INSTEAD.get(role, "the .safetensors file"))
    except WeightsError as error:
        half = isinstance(error, IncompleteError) or (entry and entry.size and size < entry.size)
        return FileCheck(role, folder, name, path, size, INCOMPLETE if half else WRONG, problem=str(error))
    except OSError as error:
        return replace(_refused(path, folder, place, error), role=role, size=size)
    found = identify(header, path.name)
    if found.kind == "other" and entry is None and not PART.search(path.name):
        return None
    if entry and found.kind not in (entry.kind, "other"):
        problem = f"it bears the name of a {entry.kind} file, but holds {found.kind}. Get it again, or give it another name."
        return FileCheck(role, folder, name, path, size, WRONG, found.note, problem)
    role = found.kind if found.kind != "other" else role
    file = FileCheck(role, folder, name, path, size, PRESENT, "; ".join(filter(None, (found.note, *_noted(role, header, entry)))))
    if found.problem:
        return replace(file, state=INCOMPLETE if isinstance(found.problem, Incomplete) else WRONG, problem=f"'{path.name}' {found.problem}")
    if folder not in WHERE[role]:
        problem = f"it is a {role} model, and loaders look for it in models/{WHERE[role][0]}. Move it there."
        return replace(file, state=WRONG, problem=problem, misplaced=True)
    return file


def _noted(role: str, header: Header, entry: Entry | None) -> Iterator[str]:
    """What is worth knowing of a file that is right as far as its header tells."""
    if role in ("wan21", "text_encoder") and header.container == "gguf":
        yield "needs the pack ComfyUI-GGUF"
    if entry and entry.size and header.size != entry.size:  # nobody has confirmed sizes: only the hash decides
        yield f"it has {header.size:,} bytes, the list says {entry.size:,}: a deep check tells whether it is another version"


def _whole(files: Iterator[FileCheck]) -> Iterator[FileCheck]:
    """Parts of one model become one row. An encoder in parts loads, if all are there with their list beside them."""
    groups: dict[tuple[Path, str, str, int], list[FileCheck]] = {}
    for file in files:
        part = PART.search(file.path.name)
        if part is None:
            yield file
        else:
            groups.setdefault((file.path.parent, file.folder, file.path.name[: part.start()], int(part[2])), []).append(file)
    for (_, folder, _, count), parts in groups.items():
        first = replace(parts[0], size=sum(part.size for part in parts), state=INCOMPLETE)
        if len(parts) != count:
            yield replace(first, problem=f"{len(parts)} of {count} parts are there. Get a file that is whole.")
        elif folder != "audio_encoders":
            yield replace(first, problem=f"it is in {count} parts, which do not load. Get a file that is whole.")
        elif problem := _broken(parts):
            yield replace(first, role="wav2vec", problem=problem)
        else:
            yield replace(first, role="wav2vec", state=PRESENT, problem="", note=f"{count} parts")


def _broken(parts: list[FileCheck]) -> str:
    """Why the parts of an encoder do not load together; "" if they do (multitalk_core/audio/wav2vec_files.py reads them)."""
    folder, tensors = parts[0].path.parent, {}
    for part in parts:
        try:
            tensors |= read_header(part.path).tensors
        except (WeightsError, OSError) as error:
            return str(error)
    try:
        named = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX}, which names its parts, is not beside them or is damaged. Get it again."
    if named != {part.path.name for part in parts}:
        return f"{INDEX} names other parts than are there. Get them all again, from one place."
    if not (folder / "config.json").is_file():
        return "config.json is not beside its parts. Get it again."
    found = identify(Header(tensors, {}, "safetensors", 0), folder.name)
    if found.kind != "wav2vec":
        return f"its parts are no Wav2Vec2 encoder. Get {INSTEAD['wav2vec']}."
    return f"'{folder.name}' {found.problem}" if found.problem else ""


def _hashed(files: list[FileCheck], manifest: Manifest, on_progress: OnProgress | None) -> list[FileCheck]:
    """The same files, with what their SHA-256 tells."""
    entries = {file: _comparable(file, manifest) for file in files}
    total, done, compared = sum(file.size for file in files if entries[file]), 0, []
    for file in files:

        def hear(count: int, before: int = done) -> None:
            if on_progress:
                on_progress(before + count, total)

        if not entries[file]:
            known = _listed(file, manifest)
            words = "no hash is known of it" if known else "it is no listed file, so there is no hash of it"
            compared.append(replace(file, sha256=words, compared=UNKNOWN) if file.state == PRESENT else file)
            continue
        try:
            compared.append(_compared(file, entries[file], _listed(file, manifest), checksum(file.path, hear)))
        except OSError as error:
            compared.append(replace(file, state=WRONG, problem=f"it cannot be read to its end ({error.strerror or error})."))
        done += file.size
    return compared


def _comparable(file: FileCheck, manifest: Manifest) -> list[Entry]:
    """The published files with a hash that this one may be, by its name or its size. Of encoders every one: two look the same."""
    if file.state != PRESENT or PART.search(file.path.name):
        return []
    named = [entry for entry in [_listed(file, manifest)] if entry and entry.sha256]
    as_long = manifest.copies(file.size, file.role)
    return [*named, *(manifest.hashed("wav2vec") if file.role == "wav2vec" else as_long)]


def _compared(file: FileCheck, entries: list[Entry], listed: Entry | None, digest: str) -> FileCheck:
    """
    Args:
        listed: the entry whose name it bears.
    """
    same = next((entry for entry in entries if entry.sha256 == digest), None)
    other = f": it is {same.name}" if same and same.name != file.path.name else ""
    if listed and listed.sha256 and same is not listed and (listed.confirmed or same):
        problem = f"its SHA-256 is {digest}{other}, the published file's {listed.sha256}: it is damaged, or another version. Get it again."
        return replace(file, state=WRONG, problem=problem, sha256="SHA-256 differs", compared=DIFFERS)
    if same and same.confirmed:
        return replace(file, sha256=f"SHA-256 is right{other}", compared=VERIFIED)
    if same:
        return replace(file, sha256=f"SHA-256 is as seen in a copy{other}; nobody has confirmed it", compared=AS_SEEN)
    if listed and listed.sha256:
        return replace(file, sha256=f"SHA-256 is {digest}, not the one seen in a copy; nobody has confirmed either", compared=DIFFERS)
    if file.role == "wav2vec":
        words = f"its SHA-256 is none of the listed ones, so it may be wav2vec2-base-960h; {INSTEAD['wav2vec']} is surely right"
        return replace(file, sha256=words, compared=UNKNOWN)
    words = "no hash is known of it" if listed else "it is no listed file, so there is no hash of it"
    return replace(file, sha256=words, compared=UNKNOWN)
