"""Installing as users do: plain and editable, with and without a compiler, and with a library broken afterwards."""

from __future__ import annotations

import ctypes
import json
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.install.environments import QUICK_BUILD, ROOT, Environment, expected_in_a_wheel, has_compiler, held_by_wheel

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler on this machine")

# What an installed package must be able to do, told as JSON.
PROBE = """
import json, sys, warnings
from pathlib import Path
import torch
warnings.simplefilter("ignore")
import gflv2, gflv2.kernels, gflv2.ops
from gflv2.ops import native
from gflv2.ops.reference import integral as reference
torch.manual_seed(0)
levels = [torch.randn(2, 68, 5, 7), torch.randn(2, 68, 3, 4)]
status = native.status()
explained = {c.backend: c.chosen for c in gflv2.explain("integral", levels)}
print(json.dumps({
    "package": str(Path(gflv2.__file__).parent),
    "kernels": str(Path(gflv2.kernels.__file__).parent),
    "models": gflv2.list_models(),
    "loaded": status["loaded"],
    "reason": status["reason"],
    "build": status["build"],
    "cpu": explained["cpu"],
    "error": (gflv2.ops.integral(levels) - reference.integral(levels)).abs().max().item(),
}))
"""

# In place of CMakeLists.txt: what it leaves, without a compiler.
COPIED = """
cmake_minimum_required(VERSION 3.24)
project(gflv2 LANGUAGES NONE)
file(MAKE_DIRECTORY "${GFLV2_OUTPUT_DIR}")
file(COPY_FILE "LIBRARY" "${GFLV2_OUTPUT_DIR}/${GFLV2_OUTPUT_NAME}")
file(WRITE "${CMAKE_BINARY_DIR}/native_build.json" "{\\"native\\": {}, \\"cuda\\": {}}")
"""


def probe(environment: Environment) -> dict:
    found = json.loads(environment.run(PROBE))
    assert found["error"] < 1e-4
    assert "gflv2_r50_fpn_1x" in found["models"]
    return found


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def report(environment: Environment) -> dict:
    code = "import sys; from gflv2.env import main; sys.exit(main(['--json']))"
    return json.loads(environment.run(code))


@needs_compiler
def test_plain_install_then_a_broken_library(sources: Path, environment: Environment) -> None:
    # What `pip install .` does in two steps, so that the wheel can be looked into.
    dist = environment.elsewhere / "dist"
    done = environment.pip("wheel", "--no-deps", "--wheel-dir", str(dist), str(sources), **QUICK_BUILD)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = dist.iterdir()
    libraries = held_by_wheel(wheel) - expected_in_a_wheel()
    assert held_by_wheel(wheel) - libraries == expected_in_a_wheel()
    (library,) = libraries
    assert library.startswith("gflv2/_native.") and library.endswith(".so")
    assert wheel.stem.split("-")[2:4] == [f"cp{sys.version_info[0]}{sys.version_info[1]}"] * 2
    environment.install(wheel)
    found = probe(environment)
    package = Path(found["package"])
    assert package.is_relative_to(environment.python.parent.parent)
    assert Path(found["kernels"]) == package / "kernels"
    assert found["loaded"] and found["cpu"], found["reason"]
    assert found["build"]["native"]["built"]
    assert found["build"]["native"]["instruction_sets"] == ["baseline"]
    assert "GFLV2_BUILD_CUDA=0" in found["build"]["cuda"]["reason"]
    assert (environment.python.parent / "gflv2").is_file(), "the console script"
    left = {path.name for path in (sources / "gflv2").iterdir()}
    assert "_build.json" not in left, "a plain install leaves the sources as they were"

    library = next(package.glob("_native*.so"))
    library.write_bytes(b"\x7fELF, but no more")
    found = probe(environment)
    assert not found["loaded"] and not found["cpu"]
    assert "could not be loaded" in found["reason"]
    told = report(environment)
    assert told["operations"]["integral"]["cpu"]["backend"] == "reference"


@needs_compiler
def test_editable_install(sources: Path, environment: Environment) -> None:
    """``make install`` is one with the library compiled. Here setup.py gets the checkout's, where there is one."""
    library = ROOT / "gflv2" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if library.is_file():
        (sources / "CMakeLists.txt").write_text(COPIED.replace("LIBRARY", library.as_posix()))
    environment.install(sources, "--editable", **QUICK_BUILD)
    found = probe(environment)
    assert Path(found["package"]) == sources / "gflv2"
    assert Path(found["kernels"]).resolve() == sources / "kernels"
    assert found["loaded"] and found["cpu"], found["reason"]

    # A later install that may not build takes the library away again, so that none outlives its record.
    environment.install(sources, "--editable", GFLV2_BUILD_NATIVE="0")
    found = probe(environment)
    assert not found["loaded"]
    assert "GFLV2_BUILD_NATIVE=0" in found["reason"]


def test_install_without_any_compiler(
    sources: Path, environment: Environment, without_compilers: dict[str, str]
) -> None:
    nvcc = Path(without_compilers["PATH"], "nvcc")
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    output = environment.install(sources, **without_compilers)
    assert "installed without its native library: no C++ compiler was found" in output
    found = probe(environment)
    assert not found["loaded"] and not found["cpu"]
    assert "no C++ compiler was found" in found["reason"]
    told = found["build"]["cuda"]["reason"]
    assert f"CUDA kernels: not built: {told}" in environment.gflv2("env")
    assert ("no NVIDIA driver" in told) != has_driver()
    warned = environment.run(
        "import torch, warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    import gflv2.ops\n"
        "    for _ in range(2): gflv2.ops.integral(torch.zeros(3, 4, 17))\n"
        "print(sum('no C++ compiler was found' in str(w.message) for w in told))"
    )
    assert warned == "1", "the first fallback is told, once"


def test_a_library_that_must_be_built_is_an_error(
    sources: Path, environment: Environment, without_compilers: dict[str, str]
) -> None:
    done = environment.pip(
        "install", "--no-deps", str(sources), GFLV2_BUILD_NATIVE="1", GFLV2_BUILD_CUDA="0", **without_compilers
    )
    assert done.returncode != 0
    assert "the native build failed: no C++ compiler was found" in done.stdout + done.stderr
