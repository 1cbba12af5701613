"""The table of a training pair: one row a step and backend, ``results/training_pair-DEVICE.csv``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import table
from benchmarks.harness.table import Row

PREFIX = table.PAIR
COLUMNS = (
    "device config data images batch start backend kernels step loss qfl giou dfl seconds head_seconds ap ap50 "
    "torch triton driver commit"
).split()
SMOOTHED = 15  # steps of a moving mean
WARM_UP = 3  # first steps whose times do not count


class Summary(NamedTuple):
    """One backend of a pair; None: not in the table.

    Attributes:
        last_loss: mean of the last ``SMOOTHED`` steps.
        seconds, head_seconds: median of a step, and of its targets, losses and their backward.
        ap, ap50: on the test images, after the last step.
    """

    steps: int
    last_loss: float
    seconds: float
    head_seconds: float | None
    ap: float | None
    ap50: float | None


def files(folder: Path) -> list[Path]:
    """The tables of pairs in a folder."""
    return sorted(folder.glob(f"{PREFIX}*.csv"))


def read(path: str | Path) -> list[Row]:
    """Rows of one file; errors as `table.read`."""
    return table.read(path, COLUMNS)


def write(path: Path, rows: Iterable[Row]) -> None:
    table.write(path, rows, COLUMNS)


def by_backend(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The steps of each backend, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["backend"], []).append(row)
    return {name: sorted(steps, key=lambda row: int(row["step"])) for name, steps in found.items()}


def numbers(steps: Iterable[Row], column: str) -> list[float]:
    """A column without its empty fields."""
    return [float(row[column]) for row in steps if row[column] != ""]


def summarise(steps: list[Row]) -> Summary:
    counted = steps[WARM_UP:] or steps
    head, ap, ap50 = (numbers(rows, name) for rows, name in ((counted, "head_seconds"), (steps, "ap"), (steps, "ap50")))
    return Summary(
        len(steps),
        statistics.mean(numbers(steps, "loss")[-SMOOTHED:]),
        statistics.median(numbers(counted, "seconds")),
        statistics.median(head) if head else None,
        ap[-1] if ap else None,
        ap50[-1] if ap50 else None,
    )


def smooth(values: list[float]) -> list[float]:
    """Mean of each value and those before it, ``SMOOTHED`` at most."""
    return [statistics.mean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


def largest_difference(first: list[Row], second: list[Row]) -> float:
    """Of the losses of the same step, relative to the mean loss."""
    a, b = numbers(first, "loss"), numbers(second, "loss")
    return max(abs(x - y) for x, y in zip(a, b, strict=False)) / statistics.mean(a)
