"""The published model files, as far as they are known: where each comes from, where it goes, its size and its SHA-256.

models.json is the one list of them. A hash is `confirmed` if the repository's own page shows it; others were seen in copies of the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import MultiTalkError
from ..files import checksum, gigabytes

SHIPPED = Path(__file__).with_name("models.json")
KINDS = ("multitalk", "wan21", "wav2vec", "vae", "clip", "text_encoder", "lora")
ROUGHLY = 0.05  # that a size is off at most, where it is only known roughly


class ManifestError(MultiTalkError, ValueError):
    """The list of model files cannot be read."""


@dataclass(frozen=True)
class Entry:
    """One published file.

    Attributes:
        kind: multitalk, wan21, wav2vec, vae, clip, text_encoder or lora.
        size: bytes, where they are known exactly; about: where only roughly.
        family, speakers: of multitalk files: multitalk or infinitetalk, one or several.
        source: where size and hash were seen.
    """

    repository: str
    path: str  # in the repository
    folder: str  # of ComfyUI's models
    kind: str
    size: int | None = None
    about: int | None = None
    sha256: str | None = None
    confirmed: bool = False
    family: str | None = None
    speakers: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Raises ManifestError for what is no description of a file."""
        for part in (self.repository, self.path, self.folder):
            if not isinstance(part, str) or {"", ".", ".."} & set(part.split("/")) or "\\" in part or ":" in part:
                raise ManifestError(f"'{part}' is no repository, path or folder that a file can be taken from, or put into.")
        if self.kind not in KINDS:
            raise ManifestError(f"{self.name} has the kind '{self.kind}'. Expected one of {', '.join(KINDS)}.")
        for size in (self.size, self.about):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size <= 0):
                raise ManifestError(f"{self.name} has the size {size!r}. Expected a number of bytes, or null.")
        if self.sha256 is not None:
            if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
                raise ManifestError(f"{self.name} has the SHA-256 {self.sha256!r}. Expected 64 hexadecimal digits, or null.")
            object.__setattr__(self, "sha256", self.sha256.lower())

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.path}"

    @property
    def bytes(self) -> int:
        """Exactly, or about, or 0 where nothing is known."""
        return self.size or self.about or 0

    @property
    def size_in_words(self) -> str:
        """The size in words."""
        if not self.bytes:
            return "of unknown size"
        return gigabytes(self.bytes) if self.size else f"about {gigabytes(self.bytes)}"


@dataclass(frozen=True)
class FileSet:
    """Files that make a pipeline together."""

    name: str
    about: str
    files: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    @property
    def exact(self) -> bool:
        """Whether every size is known to the byte."""
        return all(entry.size for entry in self.files)

    @property
    def size_in_words(self) -> str:
        return f"{'' if self.exact else 'about '}{gigabytes(self.bytes)}"


@dataclass(frozen=True)
class Manifest:
    files: dict[str, Entry]  # by name
    presets: dict[str, FileSet]

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Manifest:
        """Raises ManifestError if it is not there, no JSON, or does not have the form of models.json."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            entries = [Entry(**row) for row in data["files"]]
            files = {entry.name: entry for entry in entries}
            presets = {
                name: FileSet(name, str(row["about"]), tuple(files[file] for file in row["files"])) for name, row in data["presets"].items()
            }
        except ManifestError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"The list of model files {path.name} cannot be read ({type(error).__name__}: {error}).") from error
        if len(files) < len(entries):
            raise ManifestError(f"{path.name} names a file twice.")
        return cls(files, presets)

    def of_kind(self, kind: str) -> list[Entry]:
        return [entry for entry in self.files.values() if entry.kind == kind]

    def hashed(self, kind: str) -> list[Entry]:
        return [entry for entry in self.of_kind(kind) if entry.sha256]

    def copies(self, size: int, kind: str) -> list[Entry]:
        """Published files with a hash that one of this size (bytes) and kind can be a copy of."""
        return [
            entry
            for entry in self.hashed(kind)
            if entry.size == size or (not entry.size and abs(entry.bytes - size) <= ROUGHLY * entry.bytes)
        ]

    def recognise(self, path: Path) -> Entry | None:
        """The published file that this is a copy of, whatever its name; it is hashed only if one of them is as long."""
        size = path.stat().st_size
        as_long = [entry for entry in self.files.values() if entry.size == size and entry.sha256]
        if not as_long:
            return None
        digest = checksum(path)
        return next((entry for entry in as_long if entry.sha256 == digest), None)
