"""Every kernel under the sanitizers: calls recorded on ``simt`` run again in a program free of Python and torch.

The calls are those of every operation's tests of memory (class TestMemory), which go through its layouts and dtypes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.running import run_tests
from tests.simt.building import FOLDER, ROOT, build, emulation_expected, provide_emulation, shared_folder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not emulation_expected(), reason="the emulation is not built here")]
# Of an operation. The thread sanitizer takes a second for a call.
CALLS = {"simt_check": 1000, "simt_check_address": 40, "simt_check_thread": 3}


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The files of the recorded calls by operation."""
    provide_emulation()
    found: dict[str, list[Path]] = {}
    for path in sorted(shared_folder(tmp_path_factory, "calls", record).iterdir()):
        found.setdefault(path.name.split(".")[0], []).append(path)
    return found


def record(folder: Path) -> None:
    environment = {**os.environ, "GFLV2_TEST_RECORD": str(folder), "GFLV2_BACKEND": "", "OMP_NUM_THREADS": "1"}
    arguments = [str(ROOT / "tests" / "ops"), "-q", "-k", "simt and TestMemory", "-p", "tests.simt.recording"]
    wrong, output = run_tests(arguments, environment)
    if wrong:
        pytest.fail(f"{wrong}\n{output}", pytrace=False)


def spread(paths: list[Path], count: int) -> list[Path]:
    """Some of them, evenly."""
    step = max(len(paths) / count, 1.0)
    return [paths[int(index * step)] for index in range(min(count, len(paths)))]


@pytest.mark.parametrize("program", CALLS)
def test_recorded_calls(program: str, calls: dict[str, list[Path]]) -> None:
    """What a sanitizer finds, and a byte that differs from the recorded answer, end the program with a failure."""
    build(program)
    names = subprocess.run([FOLDER / program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert set(calls) == set(names), "an operation has no recorded call"
    files = [path for paths in calls.values() for path in spread(paths, CALLS[program])]
    run = subprocess.run(
        [FOLDER / program, *files], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200
    )
    assert run.returncode == 0, run.stdout[-10000:]
    assert run.stdout.strip() == f"{len(files)} calls, 0 failed", run.stdout[-10000:]
