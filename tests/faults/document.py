"""Writes docs/faults.md from the tables of this folder: ``python -m tests.faults.document``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults import annotation_files, command_rows, image_files, voc_files, yolo_files
from tests.faults.command_rows import Command
from tests.faults.row import Row, told

FILE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"

TABLES: tuple[tuple[str, str, Sequence[Row]], ...] = (
    (
        "COCO annotation files",
        "The base is a file of three images of 160 × 120 pixels with one category and one box each. A row says how it "
        "is changed, in the second image or annotation where nothing else is said.",
        annotation_files.ROWS,
    ),
    (
        "Image files",
        "The file that takes the place of the base's second image.",
        image_files.ROWS,
    ),
    (
        "YOLO data sets",
        "The base: `data.yaml` with `path`, `train: images/train` and `names: [box]`, three images of 160 × 120 "
        "pixels, one row in each label file. A row changes the YAML file or the second label file.",
        yolo_files.ROWS,
    ),
    (
        "Pascal VOC data sets",
        "The base: the challenge's folders with three images of 160 × 120 pixels and one object each. A row changes "
        "the second XML file, where nothing else is said. SET is the folder.",
        voc_files.ROWS,
    ),
)

COMMANDS: tuple[tuple[str, str, Sequence[Command]], ...] = (
    (
        "Settings",
        "A configuration file `a.yaml` for `gflv2 configs a.yaml`, or the arguments of a command.",
        command_rows.SETTINGS,
    ),
    (
        "Checkpoints",
        "A file `w.pt` of a small detector, changed, for `gflv2 convert` or `gflv2 bench`. (More are in "
        "`tests/faults/test_checkpoints.py`, and random ones in `test_fuzz_checkpoints.py`.)",
        command_rows.CHECKPOINTS,
    ),
    (
        "Runs",
        "`gflv2 train` on the base of the first table, in a folder that may hold a complete run, `run`; and "
        "what is done with such a run. Killed and stopped runs are `tests/faults/test_runs.py` and `kill.py`.",
        command_rows.RUNS,
    ),
)

HEAD = """# What was tried, and what happens

Inputs that are wrong or unusual, from public bug reports and by hand. Each data set is read as evaluation and as
training read it, which must agree, and every image is decoded. The lines are the product's own; the tests in
`tests/faults` check them, and the boxes. `python -m tests.faults.document` writes this page. The rules behind it stand
in [data.md](data.md).

"Refused" is one line and exit status 2, before anything is trained; another status is named. What is said is said once,
with the number of records and the first of them.
"""


def text() -> str:
    """The page. Every row is run for it."""
    count = sum(len(rows) for _, _, rows in (*TABLES, *COMMANDS))
    parts = [HEAD, f"{count} inputs.\n"]
    for title, about, rows in TABLES:
        parts.append(f"## {title}\n\n{about}\n\n| tried | what happens | reported as |\n|---|---|---|")
        parts += [_line(row, told) for row in rows]
        parts.append("")
    for title, about, commands in COMMANDS:
        parts.append(f"## {title}\n\n{about}\n\n| tried | what happens | reported as |\n|---|---|---|")
        parts += [_line(row, command_rows.told) for row in commands]
        parts.append("")
    return "\n".join(parts)


def _line(row: Any, told: Callable[[Any, Path], str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        happens = told(row, Path(folder))
    return f"| {_cell(row.tried)} | {_cell(happens)} | {_cell(row.report) or '–'} |"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ").strip()


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"wrote {FILE}")
