"""What the measurements of the demo model add up to: figures with intervals, what they must reach, and tables of them.

A figure is a statistic over the records of one row; a record is one measured video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .cases import ROWS, Record

Values = Callable[[Record], list[float]]  # of one video: one for each mouth, or one

RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
MEAN, DECILE, WORST = "mean", "10 % quantile", "mean of the worst tenth"
OWN, PLACES, OTHER = "own voice", "voice of its place", "other's voice above ground truth's"
AMPLITUDE, PICTURE = "opening", "PSNR"
SILENT, FIRST, DRIFT = "silent mouth's mean opening, off by", "first clip's PSNR", "last clip's PSNR minus the first's"
TRUTH = "truth-"  # before the name of the row whose ground truth it is


@dataclass(frozen=True)
class Quantity:
    """Something that every video of a row has, and what is said about all of them."""

    name: str
    values: Values
    statistics: tuple[str, ...] = (MEAN,)
    form: str = "{:.3f}"


@dataclass(frozen=True)
class Figure:
    """A statistic of a quantity over the videos of a row, with its 95 % interval."""

    row: str
    name: str
    value: float
    low: float
    high: float
    clips: int
    form: str = "{:.3f}"

    def __str__(self) -> str:
        return self.form.format(self.value)

    @property
    def interval(self) -> str:
        return f"{self.form.format(self.low)} … {self.form.format(self.high)}"


@dataclass(frozen=True)
class Bound:
    """What a figure has to reach."""

    row: str
    name: str
    relation: Literal["≥", "≤"]
    bound: float

    def holds(self, figure: Figure) -> bool:
        return figure.value >= self.bound if self.relation == "≥" else figure.value <= self.bound


def own(record: Record, of: str = "made") -> list[float]:
    """Correlation of every mouth with the voice that its face was given."""
    return [record[of]["correlations"][mouth][voice] for mouth, voice in enumerate(record["hears"]) if voice is not None]


def others(record: Record, of: str = "made") -> list[float]:
    """Mean correlation of every mouth with the voices that its face was not given."""
    return [
        float(np.mean([value for voice, value in enumerate(values) if voice != given]))
        for values, given in zip(record[of]["correlations"], record["hears"], strict=True)
    ]


def others_above_truth(record: Record) -> list[float]:
    return [made - truth for made, truth in zip(others(record), others(record, "truth"), strict=True)]


def amplitude(record: Record) -> list[float]:
    """How far mouths open and close, as a share of how far they should."""
    pairs = zip(record["made"]["deviations"], record["truth"]["deviations"], record["hears"], strict=True)
    return [made / truth for made, truth, given in pairs if given is not None]


def picture(record: Record) -> list[float]:
    return [record["psnr"]]


def silent_mean(record: Record) -> list[float]:
    """How far a silent mouth's mean opening is from what it should be, as a share of the talking mouth's."""
    made, truth = record["made"]["means"], record["truth"]["means"]
    return [abs(made[mouth] - truth[mouth]) / _talking(record) for mouth, voice in enumerate(record["hears"]) if voice is None]


def silent_deviation(record: Record) -> list[float]:
    return [record["made"]["deviations"][mouth] / _talking(record) for mouth, voice in enumerate(record["hears"]) if voice is None]


def _talking(record: Record) -> float:
    """Mean opening that the mouths should have that talk."""
    return float(np.mean([record["truth"]["means"][mouth] for mouth, voice in enumerate(record["hears"]) if voice is not None]))


SPOKEN = Quantity(OWN, own, (MEAN, DECILE, WORST))
TOLD_APART = Quantity(OTHER, others_above_truth)
CLIP = (SPOKEN, Quantity(AMPLITUDE, amplitude), Quantity(PICTURE, picture, form="{:.1f} dB"))
QUANTITIES: dict[str, tuple[Quantity, ...]] = {
    "one": CLIP,
    "two": (*CLIP, TOLD_APART),
    "swapped": (Quantity(PLACES, own), Quantity("voice of the other place", others)),
    "silent": (
        Quantity(SILENT, silent_mean, form="{:.1%}"),
        Quantity("silent mouth's deviation", silent_deviation, form="{:.1%}"),
        Quantity(OWN, own),
    ),
    "vae": (Quantity(PICTURE, picture, form="{:.2f} dB"),),
    "drift": (
        Quantity(FIRST, lambda record: record["psnr"][:1], form="{:.2f} dB"),
        Quantity("last clip's PSNR", lambda record: record["psnr"][-1:], form="{:.2f} dB"),
        Quantity(DRIFT, lambda record: [record["psnr"][-1] - record["psnr"][0]], form="{:+.2f} dB"),
        Quantity(OWN, own),
    ),
    "three": (*CLIP, TOLD_APART),
    "four": (*CLIP, TOLD_APART),
}
TRUTH_ONE = (Quantity(OWN, lambda record: own(record, "truth"), (MEAN, DECILE, WORST)),)
TRUTHS = {"one": TRUTH_ONE} | {
    row: (*TRUTH_ONE, Quantity("other's voice", lambda record: others(record, "truth"))) for row in ("two", "three", "four")
}

BOUNDS = (
    Bound("one", f"{OWN}, {MEAN}", "≥", 0.94),
    Bound("one", f"{OWN}, {DECILE}", "≥", 0.90),
    Bound("two", f"{OWN}, {MEAN}", "≥", 0.94),
    Bound("two", f"{OWN}, {DECILE}", "≥", 0.88),
    Bound("two", OTHER, "≤", 0.04),
    Bound("swapped", PLACES, "≥", 0.93),
    Bound("silent", SILENT, "≤", 0.10),
    Bound("vae", PICTURE, "≥", 26.5),
    Bound("drift-multitalk", DRIFT, "≥", -2.0),
    Bound("drift-infinitetalk", DRIFT, "≥", -2.0),
)
# Correlations alone would let grey pictures with a mouth in them pass, or mouths that hardly open.
BOUNDS += tuple(
    bound
    for row in ("one", "two")
    for bound in (Bound(row, AMPLITUDE, "≥", 0.75), Bound(row, PICTURE, "≥", 22.0))
) + tuple(Bound(f"drift-{family}", FIRST, "≥", 22.0) for family in ("multitalk", "infinitetalk"))  # fmt: skip
# For few clips, whose means scatter, and for other machines' arithmetic.
QUICK_BOUNDS = (
    Bound("one", f"{OWN}, {MEAN}", "≥", 0.90),
    Bound("two", f"{OWN}, {MEAN}", "≥", 0.88),
    Bound("two", OTHER, "≤", 0.12),
    Bound("swapped", PLACES, "≥", 0.86),
    Bound("silent", SILENT, "≤", 0.20),
    Bound("one", AMPLITUDE, "≥", 0.70),
    Bound("two", AMPLITUDE, "≥", 0.65),
    Bound("one", PICTURE, "≥", 21.0),
    Bound("two", PICTURE, "≥", 21.0),
)


def figures(records: Iterable[Record]) -> list[Figure]:
    """All figures of the rows that were measured, in the order of ROWS; ground truth comes before what it belongs to."""
    by_row: dict[str, list[Record]] = {name: [] for name in ROWS}
    for record in records:
        by_row[record["row"]].append(record)
    found = []
    for row, rows_records in by_row.items():
        if rows_records:
            found += _figures(TRUTH + row, rows_records, TRUTHS.get(row, ()))
            found += _figures(row, rows_records, QUANTITIES.get(row.split("-")[0], CLIP))
    return found


def _figures(row: str, records: Sequence[Record], quantities: Sequence[Quantity]) -> list[Figure]:
    found = []
    for quantity in quantities:
        values = np.array([quantity.values(record) for record in records])
        for statistic in quantity.statistics:
            name = quantity.name if quantity.statistics == (MEAN,) else f"{quantity.name}, {statistic}"
            value = float(_statistic(statistic, values.reshape(1, -1))[0])
            found.append(Figure(row, name, value, *interval(values, statistic), len(records), quantity.form))
    return found


def interval(values: np.ndarray, statistic: str = MEAN) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic.

    Args:
        values: [clips, values of a clip]. Whole clips are drawn, because the mouths of one clip have much in common.
    """
    drawn = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    found = _statistic(statistic, values[drawn].reshape(RESAMPLES, -1))
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _statistic(name: str, values: np.ndarray) -> np.ndarray:
    """[R, n] → [R]"""
    if name == DECILE:
        return np.quantile(values, 0.1, axis=1)
    if name == WORST:
        return np.sort(values, axis=1)[:, : math.ceil(values.shape[1] / 10)].mean(axis=1)
    return values.mean(axis=1)


def missed(found: Sequence[Figure], bounds: Sequence[Bound]) -> list[str]:
    """A sentence for every bound that a measured figure does not keep."""
    return [
        f"{title(figure.row)}: {figure.name} is {_unlike(figure, bound)}, expected {bound.relation} {figure.form.format(bound.bound)}"
        for figure, bound in _bounded(found, bounds)
        if not bound.holds(figure)
    ]


def _unlike(figure: Figure, bound: Bound) -> str:
    """The figure, with all its digits where the usual ones would be those of the bound."""
    return str(figure) if str(figure) != figure.form.format(bound.bound) else f"{figure.value:.6f}"


def title(row: str) -> str:
    if row.startswith(TRUTH):
        return f"ground truth, {ROWS[row.removeprefix(TRUTH)].title}"
    return ROWS[row].title


def bounded_table(found: Sequence[Figure], bounds: Sequence[Bound]) -> list[list[str]]:
    """What must be reached, the evaluator's own error, and what has no place among the columns of `reported_table`."""
    lines = [["", "figure", "value", "95 % interval", "clips", "bound", ""]]
    by_figure = {(figure.row, figure.name): bound for figure, bound in _bounded(found, bounds)}
    for figure in found:
        bound = by_figure.get((figure.row, figure.name))
        if bound or figure.row.startswith(TRUTH) or not _has_columns(found, figure.row):
            verdict = ["", ""] if bound is None else _verdict(figure, bound)
            lines.append([title(figure.row), figure.name, str(figure), figure.interval, str(figure.clips), *verdict])
    return lines


def reported_table(found: Sequence[Figure]) -> list[list[str]]:
    """A line for every row of ordinary clips."""
    columns = {
        "own voice": f"{OWN}, {MEAN}",
        "10 % quantile": f"{OWN}, {DECILE}",
        "worst tenth": f"{OWN}, {WORST}",
        "other's, above truth's": OTHER,
        "opening": AMPLITUDE,
        "PSNR": PICTURE,
    }
    lines = [["", "clips", "own voice", "95 % interval", *list(columns)[1:]]]
    for row in dict.fromkeys(figure.row for figure in found):
        if _has_columns(found, row):
            of_row = {figure.name: figure for figure in found if figure.row == row}
            mean, *rest = (of_row.get(name) for name in columns.values())
            lines.append([title(row), str(mean.clips), str(mean), mean.interval, *("" if f is None else str(f) for f in rest)])
    return lines


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Columns by spaces."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def as_json(found: Sequence[Figure], bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    by_figure = {(figure.row, figure.name): bound for figure, bound in _bounded(found, bounds)}
    lines = []
    for figure in found:
        line = {"row": figure.row, "figure": figure.name, "value": figure.value, "interval": [figure.low, figure.high]}
        if bound := by_figure.get((figure.row, figure.name)):
            line |= {"bound": f"{bound.relation} {bound.bound:g}", "reached": bound.holds(figure)}
        lines.append(line | {"clips": figure.clips})
    return lines


def recorded(found: Sequence[Figure], bounds: Sequence[Bound]) -> dict[str, str]:
    """Every bounded figure with its interval, in words: what a weight file says about itself."""
    return {
        f"{title(figure.row)}: {figure.name}": f"{figure} ({figure.interval}, {figure.clips} clips)"
        for figure, _ in _bounded(found, bounds)
    }


def _bounded(found: Sequence[Figure], bounds: Sequence[Bound]) -> list[tuple[Figure, Bound]]:
    by_name = {(figure.row, figure.name): figure for figure in found}
    return [(by_name[bound.row, bound.name], bound) for bound in bounds if (bound.row, bound.name) in by_name]


def _verdict(figure: Figure, bound: Bound) -> list[str]:
    return [f"{bound.relation} {figure.form.format(bound.bound)}", "reached" if bound.holds(figure) else "MISSED"]


def _has_columns(found: Sequence[Figure], row: str) -> bool:
    return any(figure.row == row and figure.name == AMPLITUDE for figure in found)
