"""A plugin of pytest: the test that runs, in the file that GFLV2_TEST_RUNNING names, for whoever started this process.

A kernel that writes where it must not can end the process. What is left then is a signal, and this file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "GFLV2_TEST_RUNNING"
ROOT = Path(__file__).resolve().parents[1]


def pytest_runtest_logstart(nodeid: str) -> None:
    _note(nodeid)


def pytest_sessionfinish() -> None:
    _note("")


def _note(name: str) -> None:
    if file := os.environ.get(VARIABLE):
        Path(file).write_text(name)


def run_tests(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float | None = None
) -> tuple[str | None, str]:
    """Run pytest in a process of its own, without cache and with no settings of pytest from this one.

    Returns:
        What went wrong, in one line that names the test where the process ended within one, or None; and the output.
    """
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider", "-p", "tests.running"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "running"
        try:
            run = subprocess.run(
                command,
                cwd=ROOT,
                env={**environment, VARIABLE: str(file)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
            )
            status, output = run.returncode, run.stdout
        except subprocess.TimeoutExpired as error:
            status, output = None, (error.stdout or b"").decode(errors="replace")
        name = file.read_text() if file.is_file() else None
    if status == 0:
        return None, output
    return f"{_ended(status, timeout)}{_where(status, name)}: {' '.join(command)}", output


def _ended(status: int | None, timeout: float | None) -> str:
    if status is None:
        return f"no end after {timeout} s"
    if status < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"ended by {known.get(-status, f'signal {-status}')}"
    return f"exit status {status}"


def _where(status: int | None, name: str | None) -> str:
    if name:
        return f" within {name}"
    if status is not None and status >= 0:
        return ""  # the output names the tests that failed
    return " after the last test" if name == "" else " before the first test"
