"""``gflv2.kernels`` and ``gflv2.configs`` in every kind of install: whole, once, and nothing else of the repository."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.install.environments import ROOT, Environment

WITHOUT_LIBRARY = {"GFLV2_BUILD_NATIVE": "0"}
KERNELS = sorted(path.name for path in (ROOT / "kernels").glob("*.py"))
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))

PROBE = """
import importlib.util, json, pkgutil, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import gflv2, gflv2.config, gflv2.kernels
print(json.dumps({
    "package": str(Path(gflv2.__file__).parent),
    "search": len(gflv2.__path__),
    "kernels": sorted(module.name + ".py" for module in pkgutil.iter_modules(gflv2.kernels.__path__)),
    "models": gflv2.list_models(),
    "backbone": gflv2.load_config("gflv2_lite0").model.backbone.name,
    "strangers": [n for n in ("setup", "tests", "benchmarks", "csrc") if importlib.util.find_spec("gflv2." + n)],
}))
"""


def check(environment: Environment, *search_path: Path) -> Path:
    """What a program started elsewhere finds; the folder of the package."""
    found = json.loads(environment.run(PROBE, *map(str, search_path)))
    assert found["strangers"] == [] and found["search"] == 1
    assert sorted([*found["kernels"], "__init__.py"]) == KERNELS
    assert [f"{name}.yaml" for name in found["models"]] == CONFIGS and found["backbone"] == "tf_efficientnet_lite0"
    return Path(found["package"])


def test_a_checkout_on_the_search_path(pristine: Path, environment: Environment) -> None:
    assert check(environment, pristine) == pristine / "gflv2"


@pytest.mark.slow
def test_a_plain_install(sources: Path, environment: Environment) -> None:
    environment.install(sources, **WITHOUT_LIBRARY)
    assert check(environment).is_relative_to(environment.python.parent.parent)


@pytest.mark.slow
def test_an_editable_install(sources: Path, environment: Environment) -> None:
    environment.install(sources, "--editable", **WITHOUT_LIBRARY)
    assert check(environment) == sources / "gflv2"


@pytest.mark.slow
def test_an_sdist_and_the_wheel_built_from_it(sources: Path, environment: Environment) -> None:
    dist = environment.elsewhere / "dist"
    done = environment.pip("install", "setuptools>=77")
    assert done.returncode == 0, done.stderr
    build = (
        "import os, sys; os.chdir(sys.argv[1]); from setuptools import build_meta; build_meta.build_sdist(sys.argv[2])"
    )
    environment.run(build, str(sources), str(dist), **WITHOUT_LIBRARY)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not any(member.islnk() or member.issym() for member in archive)
        inside = Counter(member.name.split("/", 1)[1] for member in archive if member.isfile())
    assert held(inside, "kernels/") == KERNELS and held(inside, "configs/") == CONFIGS
    assert not held(inside, "gflv2/kernels/") and not held(inside, "gflv2/configs/")

    done = environment.pip("wheel", "--no-deps", "--wheel-dir", str(dist), str(sdist), **WITHOUT_LIBRARY)
    assert done.returncode == 0, done.stderr
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = Counter(archive.namelist())
    assert held(inside, "gflv2/kernels/") == KERNELS and held(inside, "gflv2/configs/") == CONFIGS
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == {"gflv2"}
    environment.install(wheel)
    assert check(environment).is_relative_to(environment.python.parent.parent)

    with tarfile.open(sdist) as archive:
        archive.extractall(dist, filter="data")
    unpacked = dist / sdist.name.removesuffix(".tar.gz")
    environment.install(unpacked, "--editable", **WITHOUT_LIBRARY)
    assert check(environment) == unpacked / "gflv2"


def held(inside: Counter[str], folder: str) -> list[str]:
    """The files directly in a folder of an archive, each as often as it is there."""
    return sorted(
        name.removeprefix(folder)
        for name in inside.elements()
        if name.startswith(folder) and "/" not in name.removeprefix(folder)
    )
