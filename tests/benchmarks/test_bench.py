"""``make bench`` itself, on the tiny case of every operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness import table
from benchmarks.registry import NAMES
from gflv2.ops import backends

ROOT = Path(__file__).resolve().parents[2]


def test_tiny_run(tmp_path) -> None:
    pytest.importorskip("pytest_benchmark")
    output = tmp_path / "tiny.csv"
    options = "--tiny --devices cpu --seconds 0.01 --runs 2 --compile none --no-peers".split()
    command = [sys.executable, "-m", "pytest", "-c", "benchmarks/pytest.ini", "benchmarks/bench.py", *options]
    # Without pytest-xdist's variables, for which pytest-benchmark would measure nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["OMP_NUM_THREADS"] = "1"
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = table.read(output)
    assert list(dict.fromkeys(row["operation"] for row in rows)) == NAMES
    assert f"{len(NAMES)} passed" in done.stdout and "median milliseconds" in done.stdout
    for row in rows:
        assert float(row["ms"]) > 0 and row["torch"] == torch.__version__
    if backends.unavailable("cpu", "cpu") is None:
        ran = {row["operation"] for row in rows if row["backend"] in ("cpu", "best")}
        with_kernels = {name for name in NAMES if "cpu" in backends._refusals.get(name, ())}
        assert with_kernels <= ran and {"head", "training_step", "inference"} <= ran
