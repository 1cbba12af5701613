"""A copy of the sources, an empty environment, and the PATH of a machine without compilers."""

from __future__ import annotations

import shutil
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
