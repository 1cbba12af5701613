"""A copy of the sources, an empty environment, and the PATH of a machine without compilers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.install.environments import ROOT, SOURCES, Environment, make_environment


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a fresh clone has them: no library, no record of a build."""
    folder = tmp_path_factory.mktemp("sources") / "gflv2"
    folder.mkdir()
    built = shutil.ignore_patterns("__pycache__", "_native*", "_build.json", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=built)
        else:
            shutil.copy2(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def tracked() -> list[str]:
    """Every file of the repository: those that git has, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("the list of the repository's files is git's, and this is no clone")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="session")
def clone(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole repository, as a fresh clone of it would be."""
    folder = tmp_path_factory.mktemp("clone") / "gflv2"
    for name in tracked:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder


@pytest.fixture
def sources(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the sources that a test may build in."""
    return Path(shutil.copytree(pristine, tmp_path / "gflv2", symlinks=True))


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return make_environment(tmp_path)


@pytest.fixture
def without_compilers(tmp_path: Path) -> dict[str, str]:
    """The PATH of a machine that has no compiler at all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env", "uname"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return {"PATH": str(folder)}
