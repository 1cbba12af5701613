"""A test that ends its process is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.running import run_tests

FILE = """
import os, signal, time
import pytest
def test_fine():
    pass
@pytest.mark.parametrize("kernel", ["sound", "broken"])
def test_a_kernel(kernel):
    if kernel == "broken":
        {end}
"""
ENDS = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", r"ended by SIGSEGV within .*test_kernels\.py::test_a_kernel\[broken\]: "),
    ("os.abort()", r"ended by SIGABRT within .*test_kernels\.py::test_a_kernel\[broken\]: "),
    ("os._exit(3)", r"exit status 3 within .*test_kernels\.py::test_a_kernel\[broken\]: "),
    ("time.sleep(600)", r"no end after \d+ s within .*test_kernels\.py::test_a_kernel\[broken\]: "),
    ("assert False", r"exit status 1: "),
    ("import atexit; atexit.register(os.abort)", r"ended by SIGABRT after the last test: "),
]


@pytest.mark.parametrize(("end", "words"), ENDS, ids=lambda text: text.split("(")[0])
def test_the_test_that_ends_its_process_is_named(end: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "test_kernels.py").write_text(FILE.format(end=end))
    # A busy machine may take longer than five seconds to reach the test that sleeps.
    for timeout in (5, 20, 80) if "sleep" in end else (300,):
        wrong, output = run_tests([str(tmp_path), "-q", "--rootdir", str(tmp_path)], os.environ, timeout=timeout)
        if wrong is not None and "before the first test" not in wrong:
            break
    assert wrong is not None and re.match(words, wrong), f"{wrong}\n{output}"


def test_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "test_kernels.py").write_text(FILE.format(end="pass"))
    wrong, output = run_tests([str(tmp_path), "-q", "--rootdir", str(tmp_path)], os.environ)
    assert wrong is None and "3 passed" in output


def test_a_worker_of_xdist_is_replaced_and_its_test_named(tmp_path: Path) -> None:
    """What ``make test`` does with the emulation, which runs in its own processes."""
    pytest.importorskip("xdist")
    (tmp_path / "test_kernels.py").write_text(FILE.format(end="os.kill(os.getpid(), signal.SIGSEGV)"))
    wrong, output = run_tests([str(tmp_path), "-q", "--rootdir", str(tmp_path), "-n", "1"], os.environ)
    assert wrong is not None and "2 passed" in output and "1 failed" in output
    assert re.search(r"worker 'gw\d' crashed while running 'test_kernels\.py::test_a_kernel\[broken\]'", output), output


def test_without_other_processes_the_stack_names_the_test(tmp_path: Path) -> None:
    """``pytest tests/ops`` alone: pytest's faulthandler writes the Python stack, whose frame has the test's name."""
    (tmp_path / "test_kernels.py").write_text(FILE.format(end="import ctypes; ctypes.string_at(0)"))
    _, output = run_tests([str(tmp_path), "-q", "--rootdir", str(tmp_path), "-p", "no:xdist"], os.environ)
    assert re.search(r"Fatal Python error: .*Segmentation fault", output), output
    assert re.search(r'test_kernels\.py", line \d+ in test_a_kernel\n', output), output
