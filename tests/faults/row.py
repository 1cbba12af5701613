"""One tried input: how the base set is changed, and what must happen. The tables of this folder are lists of these."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from gflv2.config import DataConfig
from gflv2.data import CocoDetection
from gflv2.data.image import _said

BOX = [20.0, 20.0, 80.0, 70.0]  # x1 y1 x2 y2 of the one box of each base image
BASE = {1: [BOX], 2: [BOX], 3: [BOX]}


@dataclass(frozen=True)
class Row:
    """A tried input.

    Attributes:
        tried: what it is, for docs/faults.md.
        make: writes the input into an empty folder and gives the data set's source.
        refused: part of the one line that refuses it; None: it is read.
        said: parts of the lines that say what was left out, replaced or cut.
        boxes: boxes per image id after reading, crowds included; None: the base's.
        options: of ``DataConfig``.
        environment: variables of the environment while it is read.
        pixels: asserts something of the second image, (H, W, 3) uint8.
        report: where somebody met it.
    """

    tried: str
    make: Callable[[Path], Path]
    refused: str | None = None
    said: tuple[str, ...] = ()
    boxes: dict[Any, list] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    pixels: Callable[[np.ndarray], bool] | None = None
    report: str = ""


@dataclass
class Outcome:
    """What happened: the message, or the boxes per image id and the second image."""

    refused: str | None
    boxes: dict[Any, list]
    pixels: np.ndarray | None = None


def run(row: Row, folder: Path) -> Outcome:
    """Read the input as evaluation and as training do, which must agree; decode every image."""
    _said.clear()
    source = row.make(folder)
    config = DataConfig(
        long_side=64, short_side=[48, 48], test_short_side=48, workers=0, keep_empty=True, **row.options
    )
    with mock.patch.dict(os.environ, row.environment):
        outcomes = [_read(source, config, train) for train in (False, True)]
    assert outcomes[0].refused == outcomes[1].refused, "training and evaluation differ"
    assert outcomes[0].boxes == outcomes[1].boxes, "training and evaluation count other boxes"
    return outcomes[0]


def _read(source: Path, config: DataConfig, train: bool) -> Outcome:
    try:
        dataset = CocoDetection(source, config=config, train=train, split="train")
        boxes, images = {}, []
        for item, image_id in enumerate(dataset.image_ids):
            image, rows, _ = dataset.raw(item)
            assert image.shape[0] == 3 and np.isfinite(rows).all()
            boxes[image_id] = rows.tolist()
            images.append(image.permute(1, 2, 0).numpy())
    except (ValueError, OSError) as error:
        return Outcome(str(error), {})
    return Outcome(None, boxes, images[1] if len(images) > 1 else None)


def check(row: Row, folder: Path, messages: Callable[[], list[str]]) -> Outcome:
    """Assert that what happens is what the row says.

    Args:
        messages: gives what was logged; asked after the run.
    """
    outcome = run(row, folder)
    if row.refused is not None:
        assert outcome.refused is not None, f"expected a refusal, got boxes {outcome.boxes}"
        assert row.refused in _plain(outcome.refused, folder), outcome.refused
        assert "\n" not in outcome.refused and len(outcome.refused) < 1000, "one line"
        return outcome
    assert outcome.refused is None, outcome.refused
    assert outcome.boxes == (BASE if row.boxes is None else row.boxes)
    if row.pixels is not None:
        assert row.pixels(outcome.pixels), "the second image looks otherwise"
    said = [_plain(line, folder) for line in messages() if "images; left out" not in line]
    for part in row.said:
        assert any(part in line for line in said), f"nobody said {part!r}: {said}"
    if not row.said:
        assert said == [], "something was said that the row does not know of"
    return outcome


def told(row: Row, folder: Path) -> str:
    """What happens, for the document: the product's own lines, without the folder."""
    log, handler = logging.getLogger("gflv2"), _Lines()
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        outcome = run(row, folder)
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
    if outcome.refused is not None:
        return f"refused: {_plain(outcome.refused, folder)}"
    said = "; ".join(dict.fromkeys(_plain(line, folder) for line in handler.lines if "images; left out" not in line))
    return f"read; said: {said}" if said else "read"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _plain(text: str, folder: Path) -> str:
    """Without the folder, and without what other versions of Python and Pillow say in other words."""
    text = text.replace(f"{folder}/", "").replace(str(folder), "SET")
    return re.sub(r"(is not JSON: ).*|( \(\d+ bytes not processed\))", lambda m: f"{m[1]}…" if m[1] else "", text)
