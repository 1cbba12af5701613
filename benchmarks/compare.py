"""Is a new table slower than an old one, beyond what the runs of each differ among themselves?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.harness import table
from benchmarks.harness.candidates import BEST, KERNELS

FLOOR = 0.05  # differences below are never a regression: five runs do not show all of the noise
PEAK = 0.02  # allowance for peak memory
_OURS = (*KERNELS, BEST)


def regressions(old: list[table.Row], new: list[table.Row]) -> list[str]:
    """One line for each thing that became worse; empty: nothing did.

    Only this project's backends count, and only cases that both tables have. A candidate is slower when its time grew
    by more than the noise of both tables together, **and** so did its time relative to the eager form that ran in turn
    with it: a machine that has less to give today slows both, another torch changes the eager form alone. Launches,
    syncs and saved bytes have no noise.
    """
    before, after = table.by_key(old), table.by_key(new)
    cases = {(key[0], key[1], key[4]) for key in after}
    found = []
    for key, runs in before.items():
        device, operation, backend, mode, case = key
        if backend not in _OURS or (device, operation, case) not in cases:
            continue
        where = f"{operation} {mode} {backend} ({case}; {device})"
        if key not in after:
            # `best` gives way where one backend has learnt all of an operation.
            if backend != BEST or not any((device, operation, name, mode, case) in after for name in KERNELS):
                found.append(f"{where}: no longer runs")
            continue
        found += [f"{where}: {text}" for text in _worse(runs, after[key])]
    return found


def compared(old: list[table.Row], new: list[table.Row]) -> int:
    """How many candidates of ours both tables have."""
    return len([key for key in table.by_key(old).keys() & table.by_key(new).keys() if key[2] in _OURS])


def noise(*tables: list[table.Row]) -> float:
    """What the runs of one candidate differ by, relatively: all tables' spreads, added as independent ones."""
    return max(FLOOR, math.hypot(*(table.spread(runs) for runs in tables)))


def _worse(old: list[table.Row], new: list[table.Row]) -> Iterator[str]:
    allowed = 1 + noise(old, new)
    before, after = table.median(old, "ms"), table.median(new, "ms")
    ratio_before, ratio_after = table.median(old, "vs_eager"), table.median(new, "vs_eager")
    slower = after > before * allowed
    if slower and None not in (ratio_before, ratio_after):
        slower = ratio_after < ratio_before / allowed
    if slower:
        yield f"{before:.4g} ms → {after:.4g} ms (noise {100 * (allowed - 1):.0f} %)"
    for column, allowance in (("launches", 0.0), ("syncs", 0.0), ("saved_bytes", 0.0), ("peak_bytes", PEAK)):
        before, after = table.median(old, column), table.median(new, column)
        if None not in (before, after) and after > before * (1 + allowance):
            yield f"{column} {before:g} → {after:g}"
