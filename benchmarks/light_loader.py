"""How long a training step of the light model waits for its images: workers or none, the cache or not."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.turns import against_first, turned
from benchmarks.light_remedies import Remedy, Steps
from gflv2.data import CocoDetection, make_loader

WAYS = {
    "no workers": (0, False),
    "no workers again": (0, False),
    "2 workers (the default)": (2, False),
    "no workers, cache_images": (0, True),
    "2 workers, cache_images": (2, True),
}


def train_file(folder: Path) -> Path | None:
    """The COCO file of a folder's training images, which lie beside it."""
    return next(folder.rglob("instances_train.json"), None)


def lacking(folder: Path, batch: int, batches: int) -> str | None:
    """What a folder lacks for so many steps of a turn, and the one that is not counted."""
    file = train_file(folder)
    if file is None:
        return f"expected instances_train.json and its images in --data, {folder}, got none"
    found = len(make_loader(CocoDetection(file, train=True), batch, train=True, workers=0, seed=0))
    if found <= batches:
        return f"expected at least {batches + 1} batches of {batch} images in {file}, got {found}"
    return None


def waits(steps: Steps, data: Path, batch: int, batches: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each way, on the wall's clock: a way has the machine for ``batches`` steps, then the next one has it.

    The first step of a turn is not counted: workers start then.
    """
    steps.lay_out(True)
    config = steps.model.config.data
    file = train_file(data)
    sets = {
        cached: CocoDetection(file, config=dataclasses.replace(config, cache_images=cached), train=True)
        for cached in (False, True)
    }
    times: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in turned(list(WAYS), number):
            workers, cached = WAYS[name]
            loader = make_loader(sets[cached], batch, train=True, config=sets[cached].config, workers=workers, seed=0)
            waited, took = _turn(steps, loader, batches)
            times[name].append(took / batches)
            shares[name].append(waited / took)
    for name, numbers in against_first(times):
        yield {"part": "loader", "name": name, "share": statistics.median(shares[name]), **numbers}


def _turn(steps: Steps, loader: Any, batches: int) -> tuple[float, float]:
    """Seconds that some steps waited, and that they took."""
    source = iter(loader)
    waited = start = 0.0
    for number in range(-1, batches):
        asked = time.perf_counter()
        if number == 0:
            start = asked
        found = next(source)
        if number >= 0:
            waited += time.perf_counter() - asked
        steps.take(found)
        steps(Remedy())
    took = time.perf_counter() - start
    del source  # ends the workers
    return waited, took
