"""Which backends a test of an operation runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import gflv2
from gflv2.ops import backends


def backends_of(op: str) -> list[str]:
    """The backends that implement an operation, for ``pytest.mark.parametrize``: registering a kernel tests it."""
    return [name for name in backends.BACKENDS if name in backends._refusals[op]]


@contextmanager
def running(backend: str) -> Iterator[torch.device]:
    """Ask for a backend and give the device to test it on; skip, saying why, where it cannot run."""
    kernels_need_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
    device = torch.device("cuda" if kernels_need_gpu else "cpu")
    if kernels_need_gpu and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reason = backends.unavailable(backend, device.type)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    with gflv2.use_backend(backend):
        yield device
