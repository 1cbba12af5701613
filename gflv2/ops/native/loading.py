"""Finding and loading the native library, at the first use.

A library that is missing or broken is a reason to state, never an exception at import.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

_RECORD = Path(__file__).resolve().parents[2] / "_build.json"


def _import() -> ModuleType:
    """``gflv2._native``, or the library that GFLV2_NATIVE_LIBRARY names: a build that is being worked on."""
    path = os.environ.get("GFLV2_NATIVE_LIBRARY")
    return _import_file("gflv2._native", path) if path else importlib.import_module("gflv2._native")


def _import_file(name: str, path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def _told(module: ModuleType) -> ModuleType:
    """Tell the library, which is built without torch, torch's dtypes in the order of its own."""
    module.set_dtypes([torch.float32, torch.float16, torch.bfloat16, torch.float64])
    return module


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The extension module, or why there is none."""
    # torch comes first: it brings the OpenMP runtime that the library then shares.
    try:
        return _told(_import()), None
    except Exception as error:  # a broken library may raise anything: ImportError, OSError, SystemError…
        if isinstance(error, ModuleNotFoundError) and error.name == "gflv2._native":
            recorded = build_record().get("native", {}).get("reason")
            return None, f"the native library was not built: {recorded or 'no record of a build was found'}"
        return None, f"the native library could not be loaded: {type(error).__name__}: {error}"


def _emulation() -> tuple[ModuleType | None, str | None]:
    """The library that runs the CUDA sources on a CPU, or why there is none."""
    path = os.environ.get("GFLV2_SIMT_LIBRARY")
    if not path:
        return None, "the CUDA sources run on a CPU in a test build alone, which GFLV2_SIMT_LIBRARY must name"
    return _load_emulation(path)


@functools.cache
def _load_emulation(path: str) -> tuple[ModuleType | None, str | None]:
    try:
        return _told(_import_file("gflv2._simt._native", path)), None
    except Exception as error:
        return None, f"the library that GFLV2_SIMT_LIBRARY names could not be loaded: {type(error).__name__}: {error}"


def build_record() -> dict[str, Any]:
    """What the build wrote beside the library: what was built, for what, and why not the rest; empty without one."""
    try:
        record = json.loads(_RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def library() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it is missing or broken; the message says why.
    """
    module, reason = _load()
    return module or _refuse(reason)


def emulation() -> ModuleType:
    """As `library`, the one that runs the CUDA sources on a CPU."""
    module, reason = _emulation()
    return module or _refuse(reason)


def _refuse(reason: str | None) -> NoReturn:
    raise RuntimeError(f"gflv2: {reason}")


@functools.cache
def _cuda_problem(device: int) -> str | None:
    module, reason = _load()
    if module is None:
        return reason
    if not hasattr(module, "cuda_problem"):
        recorded = build_record().get("cuda", {}).get("reason")
        return f"the native library was built without CUDA: {recorded or 'no reason was recorded'}"
    return module.cuda_problem(device) or None


def unavailable(backend: str) -> str | None:
    """Why ``cpu``, ``cuda`` or ``simt`` kernels cannot run in this process at all, or None if they can."""
    if backend == "cpu":
        return _load()[1]
    if backend == "cuda":
        # The current device stands for all: asking each would start a context on each.
        return _cuda_problem(torch.cuda.current_device() if torch.cuda.is_available() else 0)
    if backend == "simt":
        return _emulation()[1]
    raise ValueError(f"backend: expected cpu, cuda or simt, got {backend!r}")


def status() -> dict[str, Any]:
    """What was built, and what of it runs here.

    Returns:
        ``loaded`` and ``reason``; ``instruction_set`` in use and ``instruction_sets`` that this processor has;
        ``cuda_architectures`` compiled for; ``build``: the record of the build.
    """
    module, reason = _load()
    answer: dict[str, Any] = {"loaded": module is not None, "reason": reason, "build": build_record()}
    if module is not None:
        answer["instruction_set"] = module.instruction_set()
        answer["instruction_sets"] = module.instruction_sets()
        answer["cuda_architectures"] = [a for a in getattr(module, "cuda_architectures", "").split(",") if a]
    return answer


def set_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in the whole process; for tests and measurements.

    Raises:
        ValueError: it was not built, or this processor lacks it.
    """
    library().set_instruction_set(name)
