"""Hands the native build (CMakeLists.txt) to pip. Everything else about the package stands in pyproject.toml.

The library is a bonus, never a condition: without a compiler, or after a failed build, the install goes on, and
``gflv2/_build.json`` records what was built and why the rest was not (``python -m gflv2.env`` shows it).
The environment variables read here are listed in docs/environment.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

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


class CMakeBuild(build_ext):
    """Builds the one extension with CMake, and writes the record beside it."""

    def run(self) -> None:
        super().run()
        if self.inplace:
            link_folders()
        record = json.dumps(self.record, indent=2) + "\n"
        folders = [Path(self.build_lib) / "gflv2"] + ([ROOT / "gflv2"] if self.inplace else [])
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(record)
        if self.inplace and not self.record["native"]["built"]:
            # A library of an earlier build must not outlive a record that says there is none.
            for old in (ROOT / "gflv2").glob("_native*.so"):
                old.unlink()

    def build_extension(self, ext: Extension) -> None:
        self.record = {
            "version": self.distribution.get_version(),
            "native": {"built": False, "reason": None, "compiler": None, "instruction_sets": [], "openmp": False},
            "cuda": {"built": False, "reason": None, "compiler": None, "architectures": []},
        }
        native, cuda = self.record["native"], self.record["cuda"]
        wanted = flag("GFLV2_BUILD_NATIVE")
        cuda_wanted = flag("GFLV2_BUILD_CUDA")
        if wanted is False:
            native["reason"] = cuda["reason"] = "the build was skipped: GFLV2_BUILD_NATIVE=0"
            return
        nvcc = find_nvcc() if cuda_wanted is not False else None
        if cuda_wanted is False:
            cuda["reason"] = "the build was skipped: GFLV2_BUILD_CUDA=0"
        elif nvcc is None:
            cuda["reason"] = "no CUDA compiler (nvcc) was found"
            if cuda_wanted:
                raise SystemExit("GFLV2_BUILD_CUDA=1, but " + cuda["reason"])
        try:
            try:
                self.cmake(ext, nvcc)
            except BuildFailed as error:
                if nvcc is None or wanted or cuda_wanted:
                    raise
                cuda["reason"] = f"the build with nvcc failed: {error}"
                self.cmake(ext, None)
        except BuildFailed as error:
            if wanted or cuda_wanted:
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


# Packages are built from the top-level folders, not through the links.
setup(
    packages=sorted({*find_packages(include=["gflv2", "gflv2.*"]), "gflv2.kernels", "gflv2.configs"}),
    package_dir={"gflv2": "gflv2", "gflv2.kernels": "kernels", "gflv2.configs": "configs"},
    # `optional`: setuptools then accepts that the library may be absent.
    ext_modules=[Extension("gflv2._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
