"""What setup.py builds and what it leaves out, by what the machine has and what its user asks for."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from tests.install.environments import ROOT

VARIABLES = ("GFLV2_BUILD_NATIVE", "GFLV2_BUILD_CUDA", "GFLV2_CUDA_ARCHS")
NVCC = "/opt/cuda/bin/nvcc"


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def load(monkeypatch: pytest.MonkeyPatch, *, nvcc: bool = True, driver: bool = False) -> tuple[ModuleType, Any]:
    """setup.py on a machine with or without nvcc and driver; and what it hands to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    spec = importlib.util.spec_from_file_location("gflv2_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_nvcc", lambda: NVCC if nvcc else None)
    monkeypatch.setattr(module, "has_driver", lambda: driver)
    return module, given


@pytest.mark.parametrize(
    ("driver", "asked", "builds"),
    [
        (False, {}, False),
        (True, {}, True),
        (False, {"GFLV2_BUILD_CUDA": "1"}, True),
        (True, {"GFLV2_BUILD_CUDA": "0"}, False),
        (False, {"GFLV2_CUDA_ARCHS": "90"}, True),  # who names an architecture wants it
        (False, {"GFLV2_CUDA_ARCHS": "90", "GFLV2_BUILD_CUDA": "0"}, False),
        (False, {"GFLV2_CUDA_ARCHS": "  "}, False),
    ],
)
def test_the_cuda_part_is_built_where_it_can_run_or_is_asked_for(monkeypatch, driver, asked, builds) -> None:
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    nvcc, reason = load(monkeypatch, driver=driver)[0].cuda_compiler()
    assert (nvcc, reason is None) == ((NVCC, True) if builds else (None, False))
    if not builds:
        assert ("GFLV2_BUILD_CUDA=0" if asked.get("GFLV2_BUILD_CUDA") else "GFLV2_BUILD_CUDA=1 builds it") in reason


def test_what_is_asked_for_and_cannot_be_built_is_an_error(monkeypatch) -> None:
    module, _ = load(monkeypatch, nvcc=False, driver=True)
    assert module.cuda_compiler() == (None, "no CUDA compiler (nvcc) was found")
    monkeypatch.setenv("GFLV2_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match=r"GFLV2_BUILD_CUDA=1, but no CUDA compiler \(nvcc\) was found"):
        module.cuda_compiler()
    monkeypatch.setenv("GFLV2_BUILD_NATIVE", "0")
    with pytest.raises(SystemExit, match="GFLV2_BUILD_CUDA=1 is a part of the native library"):
        load(monkeypatch)


def test_without_the_library_there_is_no_extension(monkeypatch) -> None:
    assert load(monkeypatch)[1]["ext_modules"]
    monkeypatch.setenv("GFLV2_BUILD_NATIVE", "0")
    assert load(monkeypatch)[1]["ext_modules"] == []  # so that setuptools names its wheel py3-none-any
