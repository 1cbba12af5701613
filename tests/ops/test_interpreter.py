"""The Triton kernels without a GPU: every operation's tests for the ``triton`` backend, under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.ops.under_test import backends_of
from tests.running import run_tests

HERE = Path(__file__).parent
USE = "backends_of("  # what a file says that tests the backends of an operation


@pytest.mark.gpu
def test_kernels_on_a_gpu() -> None:
    """A reminder in the report: `under_test` leaves out what cannot run here at all."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the cuda backend and the compiled Triton kernels were not run")
    assert {"cuda", "triton"} <= set(backends_of("integral"))


# About the backends, not on them; by hand: of kernels that do not know the dtypes of their arguments, as Triton's do.
OTHERS = (Path(__file__).name, "test_instruction_sets.py", "test_by_hand.py")
FILES = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in OTHERS and USE in path.read_text())
# Several processes share the cores of a machine (pytest -n); few, since each imports and collects for four seconds.
GROUPS = [FILES[first::6] for first in range(6)]


def test_every_file_is_in_one_group() -> None:
    assert sorted(file for group in GROUPS for file in group) == FILES and all(GROUPS)


def silent(files: Sequence[str], output: str) -> list[str]:
    """The files of which no test ran, whatever came out: they would go under among others."""
    return [file for file in files if not re.search(rf"/{re.escape(file)} [.sxXFE]", output)]


def test_a_file_of_which_no_test_ran_is_found() -> None:
    output = "tests/ops/test_a.py ..s   [ 75%]\ntests/ops/test_c.py F  [100%]\n"
    assert silent(["test_a.py", "test_b.py", "test_c.py"], output) == ["test_b.py"]


@pytest.mark.slow
@pytest.mark.parametrize("files", GROUPS, ids=lambda files: "-".join(name[5:-3] for name in files))
def test_triton_kernels_under_the_interpreter(files: list[str]) -> None:
    """In a process of its own: Triton chooses interpreter or compiler when a kernel is decorated."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed on this platform")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "GFLV2_BACKEND": "", "OMP_NUM_THREADS": "1"}
    # Warnings in the child are the parent's too: its other backends give the same ones.
    wrong, output = run_tests(
        [*(str(HERE / file) for file in files), "-rfEs", "--no-header", "-W", "ignore"], environment, timeout=3600
    )
    if not wrong and (unheard := silent(files, output)):
        wrong = f"no test of the triton backend in {', '.join(unheard)}"
    if wrong:
        pytest.fail(f"{wrong}\n{output}", pytrace=False)
    print(output)
