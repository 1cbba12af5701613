"""``gflv2.kernels`` and ``gflv2.configs`` in every kind of install: whole, once, and nothing else of the repository."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.install.environments import ROOT, Environment, expected_in_a_wheel, held_by_sdist, held_by_wheel

WITHOUT_LIBRARY = {"GFLV2_BUILD_NATIVE": "0"}
KERNELS = sorted(path.name for path in (ROOT / "kernels").glob("*.py"))
EGG_INFO = "PKG-INFO SOURCES.txt dependency_links.txt entry_points.txt requires.txt top_level.txt".split()
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

# Two bins, the upper one with probability 1/4.
OPERATION = """
import gflv2, torch
logits = torch.tensor([3.0, 1.0]).log().expand(1, 4, 2)
print([round(value, 6) for value in gflv2.ops.integral(logits)[0].tolist()])
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
def test_the_archives_of_a_release(clone: Path, tracked: list[str], environment: Environment) -> None:
    """What ``python -m build`` makes without the library: the sdist, and from it a wheel for every machine."""
    dist = environment.elsewhere / "dist"
    environment.build(clone, dist, **WITHOUT_LIBRARY)
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")

    links = {"gflv2/kernels", "gflv2/configs"}
    made = "PKG-INFO setup.cfg".split() + [f"gflv2.egg-info/{name}" for name in EGG_INFO]
    assert sorted(held_by_sdist(sdist).elements()) == sorted([*(set(tracked) - links), *made])
    assert {"csrc/cuda/integral.cu", "kernels/integral.py", "docs/environment.md"} <= set(held_by_sdist(sdist))

    assert wheel.name.endswith("-py3-none-any.whl")
    assert held_by_wheel(wheel) == expected_in_a_wheel()
    assert {"gflv2/py.typed", "gflv2/kernels/integral.py", "gflv2/configs/gflv2_lite0.yaml"} <= set(
        held_by_wheel(wheel)
    )

    environment.install(wheel)
    assert check(environment).is_relative_to(environment.python.parent.parent)
    assert "native library: the native library was not built" in environment.gflv2("env")
    told = environment.gflv2("configs")
    assert all(f"\n{name.removesuffix('.yaml')} " in told for name in CONFIGS)
    for backend, variables in {"reference": {}, "triton": {"TRITON_INTERPRET": "1"}}.items():
        assert environment.run(OPERATION, GFLV2_BACKEND=backend, **variables) == "[0.25, 0.25, 0.25, 0.25]", backend

    with tarfile.open(sdist) as archive:
        archive.extractall(dist, filter="data")
    unpacked = dist / sdist.name.removesuffix(".tar.gz")
    environment.install(unpacked, "--editable", **WITHOUT_LIBRARY)
    assert check(environment) == unpacked / "gflv2"
