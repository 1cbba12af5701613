"""Where the kernels of an operation stand: in each room under the same names, with the same named arguments."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from gflv2.ops.native.calling import EMULATION, NATIVE


@functools.cache
def implementation(op: str, backend: str) -> Any:
    """What has the functions of an operation: they take their arguments by name, and write into preallocated outputs.

    Args:
        op: file name of the operation.
        backend: any but ``reference``.
    """
    if backend == "triton":
        return importlib.import_module(f"gflv2.kernels.{op}")
    return EMULATION if backend == "simt" else NATIVE
