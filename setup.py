"""Hands the native build (CMakeLists.txt) to pip. Everything else about the package stands in pyproject.toml.

The library is a bonus, never a condition: without a compiler, or after a failed build, the install goes on, and
``gflv2/_build.json`` records what was built and why the rest was not (``python -m gflv2.env`` shows it).
The environment variables read here are listed in docs/environment.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Without a GPU to ask: native code for the two most used data-centre families, and PTX that later GPUs compile at load.
ARCHITECTURES_WITHOUT_GPU = "80-real;90"


class BuildFailed(Exception):
    """One CMake step failed; the message is the reason to record."""


def flag(name: str) -> bool | None:
    """An on/off variable: True, False, or None where unset."""
    value = os.environ.get(name, "").strip().lower()
    if value in ("", "auto"):
        return None
    if value in ("1", "on", "true", "yes"):
        return True
    if value in ("0", "off", "false", "no"):
        return False
    raise SystemExit(f"{name} must be 1 or 0, got {value!r}")


def find_nvcc() -> str | None:
    """The CUDA compiler, whether or not a GPU is present."""
    for candidate in (os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        path = candidate and shutil.which(candidate)
        if path:
            return path
    return None


def has_driver() -> bool:
    """Can a program here load NVIDIA's driver? (CUDA's toolkit alone does not bring it.)"""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cuda_compiler() -> tuple[str | None, str | None]:
    """The compiler of the CUDA part, or None and why that part is not built.

    nvcc takes minutes, so it starts only where its kernels can run (a driver), or where it is asked for by
    GFLV2_BUILD_CUDA=1 or by naming GFLV2_CUDA_ARCHS.
    """
    wanted = flag("GFLV2_BUILD_CUDA")
    if wanted is False:
        return None, "the build was skipped: GFLV2_BUILD_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None:
        if wanted:
            raise SystemExit("GFLV2_BUILD_CUDA=1, but no CUDA compiler (nvcc) was found")
        return None, "no CUDA compiler (nvcc) was found"
    if wanted or has_driver() or os.environ.get("GFLV2_CUDA_ARCHS", "").strip():
        return nvcc, None
    return None, "there was no NVIDIA driver where it was built; GFLV2_BUILD_CUDA=1 builds it all the same"


def find_cxx() -> str | None:
    """The C++ compiler, looked for on the path alone (CMake would also look elsewhere)."""
    for candidate in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = candidate and shutil.which(candidate.split()[0])
        if path:
            return path
    return None


def cuda_architectures() -> str:
    """GFLV2_CUDA_ARCHS, else those of the GPUs in this machine, else a short list."""
    asked = os.environ.get("GFLV2_CUDA_ARCHS", "").strip()
    if asked:  # "8.0,9.0", "80 90" and "80;90-virtual" are all understood
        return ";".join(part.replace(".", "") for part in re.split(r"[;,\s]+", asked) if part)
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        reply = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        reply = ""
    found = sorted({int(line.replace(".", "")) for line in reply.split() if re.fullmatch(r"\d+\.\d", line)})
    return ";".join(f"{number}-real" for number in found) or ARCHITECTURES_WITHOUT_GPU


def run(command: list[str]) -> None:
    """Run one step, show its output, and turn a failure into the line that explains it."""
    print("+", " ".join(command), flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildFailed(f"{command[0]} could not be started: {error}") from error
    print(done.stdout, flush=True)
    if done.returncode:
        raise BuildFailed(explain(done.stdout))


def explain(output: str) -> str:
    """The cause of a failed build in one line: a known one in words, else the first error and the line that follows."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [i for i, line in enumerate(lines) if re.search(r"CMake Error|\berror\s*:|\bfatal\b", line)]
    rest = lines[causes[0] :] if causes else lines[-2:]
    if re.search(r"missing:.*Development\.Module|Python\.h: No such file", "\n".join(rest)):
        return "Python's C headers were not found (Debian: apt install python3-dev)"
    return " ".join(rest[:2])[:400] or "the build failed without a message"


def link_folders() -> None:
    """What an editable install needs and git has: gflv2/kernels and gflv2/configs as links. An sdist has no links."""
    for name in ("kernels", "configs"):
        if not (ROOT / "gflv2" / name).exists():
            (ROOT / "gflv2" / name).symlink_to(Path("..") / name)


def empty_record(version: str) -> dict:
    """The record of a build that has built nothing yet."""
    return {
        "version": version,
        "native": {"built": False, "reason": None, "compiler": None, "instruction_sets": [], "openmp": False},
        "cuda": {"built": False, "reason": None, "compiler": None, "architectures": []},
    }


def write_record(record: dict, build_lib: str, in_place: bool) -> None:
    """Put the record where the package is built, and for an editable install beside the sources."""
    folders = [Path(build_lib) / "gflv2"]
    if in_place:
        link_folders()
        folders.append(ROOT / "gflv2")
        if not record["native"]["built"]:
            # A library of an earlier build must not outlive a record that says there is none.
            for old in (ROOT / "gflv2").glob("_native*.so"):
                old.unlink()
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(record, indent=2) + "\n")


class PythonBuild(build_py):
    """The build without the library (GFLV2_BUILD_NATIVE=0), whose wheel is py3-none-any; writes the record itself."""

    def run(self) -> None:
        super().run()
        record = empty_record(self.distribution.get_version())
        record["native"]["reason"] = record["cuda"]["reason"] = "the build was skipped: GFLV2_BUILD_NATIVE=0"
        write_record(record, self.build_lib, self.editable_mode)


class CMakeBuild(build_ext):
    """Builds the one extension with CMake, and writes the record beside it."""

    def run(self) -> None:
        super().run()
        write_record(self.record, self.build_lib, bool(self.inplace))

    def build_extension(self, ext: Extension) -> None:
        self.record = empty_record(self.distribution.get_version())
        native, cuda = self.record["native"], self.record["cuda"]
        required = flag("GFLV2_BUILD_NATIVE") or flag("GFLV2_BUILD_CUDA")
        nvcc, cuda["reason"] = cuda_compiler()
        try:
            try:
                self.cmake(ext, nvcc)
            except BuildFailed as error:
                if nvcc is None or required:
                    raise
                cuda["reason"] = f"the build with nvcc failed: {error}"
                self.cmake(ext, None)
        except BuildFailed as error:
            if required:
                raise SystemExit(f"the native build failed: {error}") from error
            native["reason"] = str(error)
            cuda["reason"] = cuda["reason"] or str(error)
            print(f"gflv2: installed without its native library: {error}", file=sys.stderr)

    def cmake(self, ext: Extension, nvcc: str | None) -> None:
        """Configure and build once, with CUDA where nvcc is given, and fill the record from what CMake says."""
        try:
            import pybind11
        except ImportError as error:  # only with --no-build-isolation
            raise BuildFailed("pybind11 is not installed") from error
        cxx = find_cxx()
        if cxx is None:
            raise BuildFailed("no C++ compiler was found (Debian: apt install g++)")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / ("cuda" if nvcc else "cpu")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_COMPILER": cxx,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "GFLV2_OUTPUT_DIR": str(target.parent),
            "GFLV2_OUTPUT_NAME": target.name,
            "GFLV2_CUDA": "ON" if nvcc else "OFF",
        }
        if nvcc:
            options |= {"CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": cuda_architectures()}
        extra = os.environ.get("CMAKE_ARGS", "").split()
        defines = [f"-D{name}={value}" for name, value in options.items()]
        run(["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defines, *extra])
        run(["cmake", "--build", str(folder), "--parallel", jobs])
        built = json.loads((folder / "native_build.json").read_text())
        self.record["native"].update(built["native"], built=True)
        if nvcc:
            self.record["cuda"].update(built["cuda"], built=True)


if flag("GFLV2_BUILD_NATIVE") is False:
    if flag("GFLV2_BUILD_CUDA"):
        raise SystemExit("GFLV2_BUILD_CUDA=1 is a part of the native library, which GFLV2_BUILD_NATIVE=0 leaves out")
    build = {"ext_modules": [], "cmdclass": {"build_py": PythonBuild}}
else:
    # `optional`: setuptools then accepts that the library may be absent.
    extension = Extension("gflv2._native", sources=[], optional=True)
    build = {"ext_modules": [extension], "cmdclass": {"build_ext": CMakeBuild}}

# Packages are built from the top-level folders, not through the links.
setup(
    packages=sorted({*find_packages(include=["gflv2", "gflv2.*"]), "gflv2.kernels", "gflv2.configs"}),
    package_dir={"gflv2": "gflv2", "gflv2.kernels": "kernels", "gflv2.configs": "configs"},
    **build,
)
