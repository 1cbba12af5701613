"""The module behind an operation on a backend: one of the same name in each room."""

from __future__ import annotations

import importlib
from types import ModuleType


def implementation(op: str, backend: str) -> ModuleType:
    """The module whose functions write into preallocated outputs.

    Args:
        op: file name of the operation.
        backend: any but ``reference``.
    """
    return importlib.import_module(f"gflv2.kernels.{op}" if backend == "triton" else f"gflv2.ops.native.{op}")
