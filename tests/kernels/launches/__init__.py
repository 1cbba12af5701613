"""The launches of each operation's Triton kernels that are compiled ahead of time: one module an operation."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from gflv2.kernels.variants import Variant
from tests.kernels.hot import Hot

OPERATIONS = sorted(module.name for module in pkgutil.iter_modules(__path__))


@functools.cache
def variants_of(op: str) -> dict[str, list[Variant]]:
    """What each listed call of an operation launches, by a description of the call."""
    return importlib.import_module(f"{__name__}.{op}").variants()


def hot() -> list[Hot]:
    """The launches of the forecast's workload, of both kinds of kernels."""
    return [item for op in OPERATIONS for item in getattr(importlib.import_module(f"{__name__}.{op}"), "HOT", [])]
