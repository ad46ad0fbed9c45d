"""A golden set on disk, and one comparison with it. Every size and name comes from the set's params.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One line of the report. Error and tolerance are absolute maxima, or relative to the golden's own maximum."""

    item: str
    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


TINY = 1e-30  # a golden of zeros has no scale


class Goldens:
    """Reads tensors by the references of params.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params: dict[str, Any] = self.json("params.json")
        self.file = cache(self._file)

    def json(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(f"The golden set has no {name}; expected a folder made like shared/goldens (MANIFEST.md, params.json).")
        return json.loads(path.read_text(encoding="utf-8"))

    def _file(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / name)

    def __getitem__(self, reference: dict[str, Any]) -> Tensor:
        """The tensor of {"file", "tensor"}, of which "persons" takes the first rows."""
        tensor = self.file(reference["file"])[reference["tensor"]]
        return tensor[: reference["persons"]] if "persons" in reference else tensor

    def item(self, number: str) -> dict[str, Any]:
        return self.params["items"][number]


def compare(item: str, name: str, ours: Any, golden: Any, tolerance: dict[str, Any], note: str = "") -> Check:
    """One comparison under a tolerance as params.json writes it: exact, max_abs, relative, or a max_abs relative to a scale.

    {"reported": True} only reports: for what the set itself gives no bound.
    """
    ours, golden = (torch.as_tensor(value).detach().double().cpu() for value in (ours, golden))
    if ours.shape != golden.shape:
        return Check(item, name, math.inf, 0.0, f"shape {tuple(ours.shape)}, expected {tuple(golden.shape)}")
    apart = torch.where(ours == golden, 0.0, (ours - golden).abs())  # equal infinities are equal
    difference = apart.max().item() if apart.numel() else 0.0
    scale = max(golden.abs().max().item() if golden.numel() else 1.0, TINY)
    if not math.isfinite(difference):
        difference = math.inf
    if tolerance.get("reported"):
        return Check(item, name, difference, math.inf, note)
    if tolerance.get("exact"):
        return Check(item, name, difference, 0.0, note)
    if "relative_to" in tolerance:
        return Check(item, name, difference / scale, tolerance["max_abs"], note or f"relative to {tolerance['relative_to']}")
    if "max_abs" in tolerance and "relative" in tolerance:  # both must hold: report what comes closer to its bound
        bound = min(tolerance["max_abs"], tolerance["relative"] * scale)
        return Check(item, name, difference, bound, note)
    if "relative" in tolerance:
        return Check(item, name, difference / scale, tolerance["relative"], note or "relative")
    return Check(item, name, difference, tolerance["max_abs"], note)
