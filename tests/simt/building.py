"""Builds what runs the CUDA sources on a CPU (csrc/simt) into ``build/simt`` of the checkout; see CMakeLists.txt."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "simt"
VARIABLE = "GFLV2_SIMT_LIBRARY"


def _find(*names: str) -> str | None:
    """A program beside Python (pip installs cmake and ninja there), else on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def compiler() -> str | None:
    return _find(os.environ.get("CXX") or "c++", "g++", "clang++")


@functools.cache
def missing() -> str | None:
    """What the build lacks, or None."""
    if not (ROOT / "CMakeLists.txt").is_file():
        return "the sources are not here"
    if compiler() is None:
        return "there is no C++ compiler"
    if _find("cmake") is None:
        return "there is no cmake"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


def build(target: str) -> Path:
    """Build one target, or bring it up to date, and return its file. Fails the test with the compiler's words."""
    import pybind11

    cmake, ninja = _find("cmake"), _find("ninja")
    options = {
        "GFLV2_SIMT": "ON",
        "GFLV2_INSTRUCTION_SETS": "baseline",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "CMAKE_RUNTIME_OUTPUT_DIRECTORY": str(FOLDER),
    }
    make = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    defines = [f"-D{name}={value}" for name, value in options.items()]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:  # of other test processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run([cmake, "-S", str(ROOT), "-B", str(FOLDER), *make, *defines])
        _run([cmake, "--build", str(FOLDER), "--target", target, "--parallel", os.environ.get("MAX_JOBS") or "2"])
    return FOLDER / (f"{target}.so" if target.startswith("_") else target)


def shared_folder(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder that the first test process which asks for it fills, and all others of the run (pytest -n) read."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, filled = root / name, root / f"{name}.filled"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not filled.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


def _run(command: list[str]) -> None:
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if run.returncode:
        pytest.fail(f"{' '.join(command)}\n{run.stdout[-10000:]}", pytrace=False)


def emulation_expected() -> bool:
    """Do the tests run on ``simt``? Not without a compiler, nor where the variable is set to nothing."""
    named = os.environ.get(VARIABLE)
    return bool(named) if named is not None else missing() is None


@functools.cache
def _failed_or_built() -> str:
    """The library's file; or, not to try it again in every test, what the failed build says."""
    try:
        return str(build("_simt"))
    except pytest.fail.Exception as error:
        return f"error: {error}"


def provide_emulation() -> None:
    """Build the library, at the first test that needs it, unless the environment names one."""
    if VARIABLE not in os.environ:
        answer = _failed_or_built()
        if answer.startswith("error: "):
            pytest.fail(answer, pytrace=False)
        os.environ[VARIABLE] = answer
