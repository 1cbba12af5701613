"""Which backends a test of an operation runs on.

A test of an operation is parametrised by ``backend`` over ``backends_of(op)`` and computes within ``running(backend)``:
registering a kernel is all that it takes to test it.

On a machine without a GPU, Triton's kernels run under its interpreter, which is chosen for a whole process when the
kernels are decorated (TRITON_INTERPRET=1). Such a process tests only ``triton``; ``test_interpreter.py`` starts it.
The sources of the CUDA kernels run on a CPU as ``simt``: the first test of it builds its library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import gflv2
from gflv2.ops import backends
from tests.simt.building import emulation_expected, provide_emulation

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# Examples that a hypothesis test draws. The interpreter takes about a second for one.
EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "25" if INTERPRETED else "200"))
# The same on simt, where the emulation is slower than a kernel.
EMULATED_EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "25"))


def few(values: Sequence[Any], count: int = 2) -> Sequence[Any]:
    """All of them, but only the first ``count`` under the interpreter, which is slow."""
    return values[:count] if INTERPRETED else values


def backends_of(op: str, *, kernels_only: bool = False) -> list[str]:
    """The backends that implement an operation and are tested in this process, for ``pytest.mark.parametrize``.

    Args:
        kernels_only: leave out the reference.
    """
    implemented = [name for name in backends.BACKENDS if name in backends._refusals[op]]
    if INTERPRETED:
        return [name for name in implemented if name == "triton"]
    absent = set() if torch.cuda.is_available() else {"cuda", "triton"}
    if not emulation_expected():
        absent.add("simt")
    if kernels_only:
        absent.add("reference")
    return [name for name in implemented if name not in absent]


@contextmanager
def running(backend: str) -> Iterator[torch.device]:
    """Ask for a backend and give the device to test it on; skip, saying why, where it cannot run."""
    on_gpu = backend == "cuda" or (backend == "triton" and not INTERPRETED)
    device = torch.device("cuda" if on_gpu else "cpu")
    if backend == "simt":
        provide_emulation()
    reason = backends.unavailable(backend, device.type)
    if reason is not None and backend == "simt":
        pytest.fail(f"{backend}: {reason}")  # it has just been built
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    with gflv2.use_backend(backend):
        yield device
