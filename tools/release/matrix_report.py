"""What a cell of the matrix came to, and docs/measured/compatibility.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Versions of torch and ComfyUI round differently, which eight steps of sampling enlarge; 60 dB is a root mean square error of a thousandth
# of the range, a quarter of an 8-bit step. The report also says what another seed comes to: a limit that that passes would notice nothing.
LEAST = 60.0  # dB
SHOWN = ("transformers", "torch", "torchvision", "torchaudio", "numpy", "av")


@dataclass
class Result:
    """One cell: what was asked for, what was installed, how it went."""

    asked: Mapping[str, str]
    first: bool
    versions: dict[str, str] = field(default_factory=dict)  # as installed
    state: str = "failed"  # or "passed", or "not run"
    said: str = ""  # why
    psnr: float | None = None  # dB, of the worst frame of all graphs; None where there is nothing to compare with
    control: float | None = None  # dB, of the first graph with another seed; in the first cell
    install_seconds: float = 0.0
    run_seconds: float = 0.0

    def judge(self) -> None:
        """Passed or failed, from the figures.

        Raises:
            ValueError: neither the first cell nor compared with it.
        """
        if self.first:
            if self.control is None or self.control >= LEAST:
                raise ValueError(f"another seed makes the same frames ({self.control} dB): the comparison would notice nothing")
            self.state, self.said = "passed", f"the others are compared with this one; another seed comes to {decibels(self.control)}"
        elif self.psnr is None:
            raise ValueError("ran, but the first cell left no frames to compare with")
        elif self.psnr < LEAST:
            self.state, self.said = "failed", f"the frames differ: {decibels(self.psnr)}, expected {LEAST:g} dB at least"
        else:
            self.state, self.said = "passed", f"{decibels(self.psnr)}"


def decibels(value: float) -> str:
    return "the same frames" if math.isinf(value) else f"{value:.1f} dB"


def report(results: Sequence[Result], surroundings: Mapping[str, str]) -> str:
    """docs/measured/compatibility.md."""
    counts = {state: sum(result.state == state for result in results) for state in ("passed", "failed", "not run")}
    summed = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines = [
        "# Compatibility",
        "",
        f"Written by `python dev.py test --matrix` on {surroundings['date']} ({surroundings['system']}): {summed}.",
        "",
        "Each row is an environment of its own, made with pip from that ComfyUI's requirements and the pack's. In it ComfyUI ran the two",
        "graphs of `python dev.py demo` (41 frames of each) through its queue and saved the frames as PNG. A row has passed if it did, and",
        f"the worst of its frames has a PSNR of at least {LEAST:g} dB (of 8 bits) to the first row's: other versions round differently,",
        f"and {LEAST:g} dB is an error of 0.1 % of the range. The control, the first row's first graph with another seed, comes to",
        f"{_control(results)}. **Bold** is what the row is about; the rest is the newest that pip chooses, torch within",
        "`tools/constraints.txt`.",
        "",
        "| ComfyUI | Python | " + " | ".join(SHOWN) + " | result | worst frame | install, run |",
        "|---|---|" + "---|" * len(SHOWN) + "---|---|---|",
    ]
    lines += [*(_row(result, results[0]) for result in results), *_reasons(results)]
    if "torchaudio" in surroundings:
        lines += [
            "",
            f"There is no row without torchaudio: ComfyUI {surroundings['torchaudio']} itself asks for it.",
        ]
    return "\n".join(lines) + "\n"


def _control(results: Sequence[Result]) -> str:
    control = results[0].control
    return "nothing, as that row did not run" if control is None else decibels(control)


def _row(result: Result, first: Result) -> str:
    versions = {**result.asked, **result.versions}
    shown = [versions.get(name, "") for name in ("ComfyUI", "Python", *SHOWN)]
    for place, name in enumerate(("ComfyUI", "Python", *SHOWN)):
        if name in result.asked and result.asked[name] != first.asked.get(name):
            shown[place] = f"**{shown[place]}**"
    worst = "compared with" if result.first else "" if result.psnr is None else decibels(result.psnr)
    seconds = f"{result.install_seconds:.0f} s, {result.run_seconds:.0f} s" if result.versions else ""
    return "| " + " | ".join([*shown, result.state, worst, seconds]) + " |"


def _reasons(results: Sequence[Result]) -> list[str]:
    lines = [
        f"* ComfyUI {result.asked['ComfyUI']}, Python {result.asked['Python']}, transformers {result.asked['transformers']}, "
        f"torch {result.asked['torch']}{', no torchaudio' if 'torchaudio' in result.asked else ''}: {result.state}: {result.said}"
        for result in results
        if result.state != "passed"
    ]
    return ["", *lines] if lines else []
