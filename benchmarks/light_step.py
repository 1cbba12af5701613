"""``python -m benchmarks.light_step``: where a training step of the light model spends its time on a CPU, and what each
remedy gains, alone and together, with one thread and with two.

    python -m benchmarks.light_step --output benchmarks/results/light_step-DEVICE.csv
    python -m benchmarks.light_step --output benchmarks/results/light_step-DEVICE.csv --parts compile   # minutes more

Remedies take turns in one process, another one first each time; a ratio is the median over the rounds of plain time to
own time, and the second plain step is the noise. With one thread the clock is the processor time of the process, which
other programs disturb little; with several it is the wall's, so the machine should be quiet.

Rows of the file that are of another part, or of another number of threads, stay.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import light_floors, light_loader
from benchmarks.harness import machine, table
from benchmarks.harness.table import Row
from benchmarks.harness.turns import against_first, turned
from benchmarks.light_remedies import AGAIN, PLAIN, REMEDIES, Remedy, Steps
from gflv2.engine.memory import keep_freed_memory
from tests.shared import shared_folder

COLUMNS = (
    "device threads config batch size rounds load part name count gflop gbyte ms fast_ms ratio low high share numbers "
    "seconds torch commit"
).split()
PARTS = ("step", "floors", "loader", "compile")
SAME = "same"  # of the column ``numbers``: no bit of the weights after a step differs; else the gradient's difference
COMPILED = "torch.compile of the forward pass"


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(steps: Steps, ways: dict[str, tuple[Remedy, Any]], rounds: int) -> Iterator[dict[str, Any]]:
    """In turns: milliseconds of each step, and how many times as fast as the first one it is.

    Args:
        ways: name → remedy and a forward pass in place of the model's, or None.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):  # the first one warms up
        for name in turned(list(ways), number):
            remedy, forward = ways[name]
            steps.lay_out(remedy.last)
            start = clock()
            steps(remedy, forward)
            if number >= 0:
                times[name].append(clock() - start)
    for name, numbers in against_first(times):
        yield {"name": name, **numbers}


def remedied(steps: Steps, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each remedy."""
    numbers = differences(steps)
    for row in timed(steps, {name: (remedy, None) for name, remedy in REMEDIES.items()}, rounds):
        yield {"part": "step", **row, "numbers": numbers.get(row["name"], "")}


def differences(steps: Steps) -> dict[str, str]:
    """What each remedy does to the numbers of a step: ``SAME``, or the relative difference of the gradient."""
    plain_gradients, plain_weights = steps.numbers(Remedy())
    found = {}
    for name, remedy in REMEDIES.items():
        gradients, weights = steps.numbers(remedy)
        if torch.equal(weights, plain_weights):
            found[name] = SAME
        elif gradients.shape == plain_gradients.shape:
            found[name] = table.text(float((gradients - plain_gradients).norm() / plain_gradients.norm()))
    return found


def compiled(steps: Steps, rounds: int) -> Iterator[dict[str, Any]]:
    """The plain step twice, and with its forward pass compiled; the first such step compiles."""
    steps.lay_out(True)
    forward = torch.compile(steps.forward)
    start = time.perf_counter()
    steps(Remedy(), forward)
    took = time.perf_counter() - start
    ways = {PLAIN: (Remedy(), None), AGAIN: (Remedy(), None), COMPILED: (Remedy(), forward)}
    for row in timed(steps, ways, rounds):
        yield {"part": "compile", **row} | ({"seconds": took} if row["name"] == COMPILED else {})


def measured(part: str, new: Callable[[], Steps], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of one part with the present number of threads."""
    if part == "step":
        yield from remedied(new(), options.rounds)
    elif part == "floors":
        yield from light_floors.kinds(new(), 3)
        yield from light_floors.layers(new(), 3, clock)
    elif part == "loader" and (reason := light_loader.lacking(options.data, options.batch, options.batches)):
        print(f"no part loader: {reason}")
    elif part == "loader":
        yield from light_loader.waits(new(), options.data, options.batch, options.batches, rounds=2)
    else:
        yield from compiled(new(), min(options.rounds, 3))


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Rows of the table, for each number of threads."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        known = {
            "device": machine.device_text(torch.device("cpu")).partition(",")[0],
            "threads": str(threads),
            "config": options.config,
            "batch": str(options.batch),
            "size": "×".join(map(str, options.size)),
            "rounds": str(options.rounds),
            "torch": torch.__version__,
            "commit": machine.software("cpu")["commit"],
        }
        new = partial(Steps, options.config, options.batch, tuple(options.size))
        for part in options.parts:
            for row in measured(part, new, options):
                load = {"load": f"{os.getloadavg()[0]:.1f}"}
                values = {name: v if isinstance(v, str) else table.text(v) for name, v in row.items()}
                yield known | load | values


def merged(old: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Old rows, of which those of the same part and number of threads make way for new ones."""

    def place(row: Row) -> tuple[str, str]:
        return row["threads"], row["part"] if row["part"] in PARTS else "floors"

    new = {place(row) for row in rows}
    kept = [row for row in old if place(row) not in new]
    order = {part: number for number, part in enumerate(PARTS)}
    return sorted([*kept, *rows], key=lambda row: (int(row["threads"]), order[place(row)[1]]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.light_step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="gflv2_lite0")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 416])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:3]), help="compile takes minutes more")
    parser.add_argument(
        "--data", type=Path, default=shared_folder() / "data" / "bccd", help="images of the part loader"
    )
    parser.add_argument("--batches", type=int, default=5, help="steps of a turn of the part loader (5)")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the table there")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    there = options.output is not None and options.output.exists()
    old, rows = table.read(options.output, COLUMNS) if there else [], []
    for row in run(options):
        rows.append(row)
        print("  ".join(row.get(name, "") for name in ("threads", "part", "name", "ms", "ratio", "share")), flush=True)
        if options.output is not None:
            table.write(options.output, merged(old, rows), COLUMNS)


if __name__ == "__main__":
    main()
