"""Measuring in turns: a busy moment of the machine meets all alike, and times are compared round by round."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def turned(items: Sequence[_Item], number: int) -> list[_Item]:
    """All of them, in each round another one first."""
    first = number % len(items)
    return [*items[first:], *items[:first]]


def against_first(times: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each name the median in milliseconds, and how many times as fast as the first one it is: median, least, most.

    Args:
        times: name → seconds of each round.
    """
    base = next(iter(times.values()))
    for name, own in times.items():
        ratios = sorted(a / b for a, b in zip(base, own, strict=True))
        numbers = {"ms": 1e3 * statistics.median(own), "ratio": statistics.median(ratios)}
        yield name, {**numbers, "low": ratios[0], "high": ratios[-1]}
