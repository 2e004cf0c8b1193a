"""Samples and how they are shown, for the programs here that compare two peers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


class Table:
    """Samples by (row, column), printed with the ratio of the second column to the first."""

    def __init__(self, unit: str = "ms", *, factor: float = 1000.0, more_is_better: bool = False) -> None:
        self.unit = unit
        self._factor = factor
        self._more = more_is_better
        self.samples: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, column: str, value: float) -> None:
        self.samples.setdefault(row, {}).setdefault(column, []).append(value * self._factor)

    def show(self, columns: Sequence[str]) -> None:
        wide = max(map(len, self.samples), default=0) + 2
        print(f"{self.unit:{wide}}" + "".join(f"{column:>28}" for column in columns) + "   ratio")
        for row, found in self.samples.items():
            cells = "".join(f"{shown(found[column]) if column in found else '':>28}" for column in columns)
            ratio = ""
            if all(column in found for column in ("skepd", "dockerd")):
                ours, theirs = (statistics.median(found[column]) for column in ("skepd", "dockerd"))
                ratio = f"{(ours / theirs if self._more else theirs / ours) if ours and theirs else 0:8.2f}"
            print(f"{row:{wide}}{cells}{ratio}", flush=True)

    def document(self) -> dict[str, Any]:
        return {"unit": self.unit, "samples": self.samples}


def shown(values: Sequence[float]) -> str:
    """Median (smallest to largest)."""
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 2 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
