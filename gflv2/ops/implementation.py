"""The module behind an operation on a backend: one of the same name in each room."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gflv2.ops.native.loading import emulating


@functools.cache
def implementation(op: str, backend: str) -> ModuleType:
    """The module whose functions write into preallocated outputs.

    Args:
        op: file name of the operation.
        backend: any but ``reference``.
    """
    module = importlib.import_module(f"gflv2.kernels.{op}" if backend == "triton" else f"gflv2.ops.native.{op}")
    return _Emulated(module) if backend == "simt" else module


class _Emulated(ModuleType):
    """A module of the native room whose functions go to the emulation of the CUDA sources."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__, module.__doc__)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return _emulated(found) if callable(found) else found


def _emulated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Of this thread alone: the others may be in a call of another backend.
        token = emulating.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            emulating.reset(token)

    return call
