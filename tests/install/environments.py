"""Virtual environments that see the torch of the environment that runs the tests, and installs into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "gflv2 kernels configs csrc setup.py pyproject.toml CMakeLists.txt MANIFEST.in LICENSE README.md".split()
# Enough to prove the path from sources to a loaded library; the kernels themselves are tested elsewhere.
QUICK_BUILD = {
    "GFLV2_BUILD_CUDA": "0",
    "CMAKE_ARGS": "-DGFLV2_INSTRUCTION_SETS=baseline -DCMAKE_CXX_FLAGS_RELEASE=-O0",
}
CLEARED = (
    "GFLV2_BUILD_NATIVE",
    "GFLV2_BUILD_CUDA",
    "GFLV2_CUDA_ARCHS",
    "GFLV2_NATIVE_LIBRARY",
    "GFLV2_BACKEND",
    "GFLV2_CPU_ISA",
    "PYTHONPATH",
    "CXX",
    "CUDACXX",
)


@dataclass
class Environment:
    """A virtual environment, and the folder that its programs run in."""

    python: Path
    elsewhere: Path

    def pip(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """pip of the running environment, at work on this one."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        return self._run(command, variables)

    def install(self, source: Path, *options: str, **variables: str) -> str:
        """``pip install`` without dependencies, in an ordinary isolated build; the output of pip."""
        done = self.pip("install", "--no-deps", "--verbose", *options, str(source), **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def build(self, source: Path, dist: Path, *options: str, **variables: str) -> None:
        """``python -m build`` with the tools of the running environment: the sdist, and from it the wheel."""
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), *options, str(source)]
        done = self._run(command, variables)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, code: str, *arguments: str, **variables: str) -> str:
        """The output of a Python program started outside the sources."""
        done = self._run([str(self.python), "-c", code, *arguments], variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def gflv2(self, *arguments: str, **variables: str) -> str:
        """What the command ``gflv2`` prints, started outside the sources."""
        done = self._run([str(self.python.parent / "gflv2"), *arguments], variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _run(self, command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in CLEARED}
        environment |= {"OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.elsewhere, timeout=900)


def make_environment(folder: Path) -> Environment:
    """An empty virtual environment that finds torch and numpy where the tests found them, but not gflv2."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=300)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout.strip()
    # A path in a .pth file is searched after the environment's own packages, and its own .pth files (an editable
    # install of the checkout, say) are not read.
    paths = {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}
    (Path(site) / "outer.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Environment(python, elsewhere)


def has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def held_by_sdist(path: Path) -> Counter[str]:
    """The files of an sdist, each as often as it is there. Links are refused: pip may drop them."""
    with tarfile.open(path) as archive:
        assert not any(member.islnk() or member.issym() for member in archive)
        return Counter(member.name.split("/", 1)[1] for member in archive if member.isfile())


def held_by_wheel(path: Path) -> Counter[str]:
    """The files of a wheel, each as often as it is there; its folder of facts is called DIST-INFO."""
    with zipfile.ZipFile(path) as archive:
        facts = "-".join(path.name.split("-")[:2]) + ".dist-info/"
        return Counter(name.replace(facts, "DIST-INFO/") for name in archive.namelist())


def expected_in_a_wheel() -> Counter[str]:
    """What every wheel holds: the package with its kernels and configurations, and nothing else of the repository."""
    package = ROOT / "gflv2"
    kinds = (".py", ".css", ".html", ".js")
    modules = [path.relative_to(ROOT) for path in package.rglob("*") if path.suffix in kinds]
    names = [str(path) for path in modules if path.parts[1] not in ("kernels", "configs")]
    for folder in ("kernels", "configs"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        names += [f"gflv2/{path.relative_to(ROOT)}" for path in files]
    names += ["gflv2/py.typed", "gflv2/_build.json"]
    facts = "METADATA WHEEL RECORD entry_points.txt top_level.txt licenses/LICENSE".split()
    return Counter(names + [f"DIST-INFO/{name}" for name in facts])
