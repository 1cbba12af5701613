"""``make parity``: the table operation × backend × dtype of the worst error, and what is allowed there.

It listens to the rule of parity while the parity tests run, so it shows their cases and no others. Triton's
interpreter needs a process of its own; further backends (cuda, triton, simt) appear where they can run.
Exit status 1: an error is larger than allowed, or a test failed otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SELECTION = "parity and not any_case"
Key = tuple[str, str, str]  # operation, backend, dtype of the input
Row = dict[str, Any]


class Listener:
    """A plugin for pytest: keeps the worst result of every operation, backend and dtype."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self._backend = ""

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        callspec = getattr(item, "callspec", None)
        backend = callspec.params.get("backend", "") if callspec else ""
        self._backend = getattr(backend, "title", backend)

    def listen(self, measured: Any, context: object) -> None:
        op = getattr(context, "op", measured.op)
        dtype = str(getattr(context, "dtype", measured.dtype)).removeprefix("torch.")
        row = self.rows.setdefault((op, self._backend, dtype), {"count": 0, "share": -1.0})
        row["count"] += 1
        share = share_of(measured.error, measured.allowed)
        if share > row["share"]:
            row |= {"share": share, "name": measured.name, "error": measured.error, "allowed": measured.allowed}


def share_of(error: float, allowed: float) -> float:
    """How much of what is allowed an error takes: more than 1 is too much."""
    if math.isnan(error):
        return math.inf
    return error / allowed if allowed else (math.inf if error else 0.0)


def run_tests(arguments: Sequence[str]) -> tuple[int, dict[Key, Row]]:
    """Run the parity tests in this process."""
    from tests.ops import parity

    listener = Listener()
    parity.listeners.append(listener.listen)
    try:
        # The tests of the rule itself tell of errors that were put in.
        ignored = f"--ignore={HERE / 'test_parity.py'}"
        options = ["-q", "-p", "no:cacheprovider", "--no-header", "-W", "ignore", ignored, "-k", SELECTION, *arguments]
        status = pytest.main([str(HERE), *options], plugins=[listener])
    finally:
        parity.listeners.remove(listener.listen)
    return int(status), listener.rows


def run_interpreted(arguments: Sequence[str]) -> tuple[int, dict[Key, Row]]:
    """Run them in a child whose Triton kernels are interpreted."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        environment = {**os.environ, "TRITON_INTERPRET": "1", "GFLV2_BACKEND": ""}
        command = [sys.executable, "-m", "tests.ops.parity_table", "--rows", str(file), "--", *arguments]
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        rows = json.loads(file.read_text()) if file.is_file() else []
    return status, {tuple(key): row for key, row in rows}


def render(rows: dict[Key, Row]) -> str:
    """The table; its last column is the worst error as a part of what is allowed."""
    head = ("operation", "backend", "dtype", "results", "worst", "error", "allowed", "of it")
    lines = [head]
    for (op, backend, dtype), row in sorted(rows.items()):
        numbers = (f"{row['error']:.2e}", f"{row['allowed']:.2e}", f"{row['share']:.0%}")
        if not row["allowed"]:
            numbers = (f"{row['error']:.0f} differ", "0", "-" if not row["share"] else "too much")
        lines.append((op, backend, dtype, str(row["count"]), row["name"], *numbers))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ops.parity_table", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help="write the rows into this file instead of printing the table")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest")
    options = parser.parse_args(arguments)
    status, rows = run_tests(options.pytest)
    if options.rows:
        options.rows.write_text(json.dumps([[key, row] for key, row in rows.items()]))
        return status
    if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
        interpreted_status, interpreted = run_interpreted(options.pytest)
        status = status or interpreted_status
        rows |= {(op, f"{backend} (interpreter)", dtype): row for (op, backend, dtype), row in interpreted.items()}
    print("\n" + render(rows))
    exceeded = [key for key, row in rows.items() if row["share"] > 1]
    if exceeded:
        print(f"{len(exceeded)} rows exceed what is allowed")
    return 1 if exceeded or status else 0


if __name__ == "__main__":
    sys.exit(main())
