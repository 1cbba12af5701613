"""The launches of each operation's Triton kernels that are compiled ahead of time: one module an operation."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from gflv2.kernels.variants import Variant

OPERATIONS = sorted(module.name for module in pkgutil.iter_modules(__path__))


@functools.cache
def variants_of(op: str) -> dict[str, list[Variant]]:
    """What each listed call of an operation launches, by a description of the call."""
    return importlib.import_module(f"{__name__}.{op}").variants()
