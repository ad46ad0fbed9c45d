"""Runs the items of a set and prints a line for each comparison."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import comfy.utils
import comfyui_version
import torch
import transformers
from safetensors import SafetensorError

from . import cache_items, core_items, host_items
from .goldens import Check, Goldens

ITEMS: dict[str, Callable[[Goldens], Iterable[Check]]] = {
    "01": core_items.item_01,
    "02": partial(core_items.embeddings, number="02"),
    "03": core_items.item_03,
    "04": core_items.item_04,
    "05": host_items.item_05,
    "06": host_items.item_06,
    "07": core_items.item_07,
    "08": core_items.item_08,
    "09": core_items.item_09,
    "10": partial(core_items.plans, number="10"),
    "11": cache_items.item_11,
    "12": host_items.item_12,
    "13": core_items.item_13,
    "14": partial(core_items.embeddings, number="14"),
    "15": partial(core_items.plans, number="15"),
}


def checks(goldens: Goldens, items: Iterable[str]) -> Iterator[Check]:
    """All comparisons of the items; an item that breaks off is a failed comparison, not the end."""
    with torch.inference_mode():
        for number in items:
            if number not in goldens.params["items"] or number not in ITEMS:
                yield Check(number, "missing", float("inf"), 0.0, "not in this set" if number in ITEMS else "no such item is known")
                continue
            try:
                yield from ITEMS[number](goldens)
            except (ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError, OSError, SafetensorError) as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                note = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                yield Check(number, "broke off", float("inf"), 0.0, note)


def run(folder: Path, only: list[str]) -> int:
    """Print the report; 0 if everything is inside its tolerance, 1 if not, 2 for a wrong call."""
    unknown = [item for item in only if item not in ITEMS]
    if unknown:
        print(f"There is no item {', '.join(unknown)}; items are {', '.join(ITEMS)}.")
        return 2
    try:
        goldens = Goldens(folder)
    except FileNotFoundError as error:
        print(error)
        return 2
    print(
        f"parity with set '{goldens.params['model']['set']}' on ComfyUI {comfyui_version.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    comfy.utils.set_progress_bar_enabled(False)
    began = time.perf_counter()
    results = []
    for check in checks(goldens, only or sorted({*ITEMS, *goldens.params["items"]})):
        results.append(check)
        print(line(check), flush=True)
    failed = [c for c in results if not c.passed]
    seconds = time.perf_counter() - began
    print(f"{len(results) - len(failed)} inside tolerance, {len(failed)} outside; {seconds:.1f} s")
    return 1 if failed or not results else 0


def line(check: Check) -> str:
    """One line: verdict, item, name, error, tolerance, note."""
    verdict = "ok" if check.passed else "FAIL"
    figures = f"{check.error:9.2e} ≤ {check.tolerance:.0e}" if check.tolerance else f"{check.error:9.2e} exact"
    return f"{verdict:7} {check.item} {check.name:<58} {figures:<20} {check.note}".rstrip()
