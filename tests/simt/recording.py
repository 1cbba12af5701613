"""A plugin of pytest: writes every call of the emulated kernels into the folder that GFLV2_TEST_RECORD names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gflv2.ops.native import loading
from tests.simt.building import provide_emulation

FOLDER = os.environ.get("GFLV2_TEST_RECORD", "")


@contextmanager
def recording(folder: str | Path) -> Iterator[None]:
    """Whose address a call is given, its memory is written to the file of that call."""
    provide_emulation()
    library, reason = loading._emulation()
    assert library is not None, reason
    address_of = torch.Tensor.data_ptr

    def noting(tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        library.note(storage.data_ptr(), storage.nbytes())
        return address_of(tensor)

    library.record(str(folder))
    torch.Tensor.data_ptr = noting
    try:
        yield
    finally:
        del torch.Tensor.data_ptr  # the one that it inherits is back
        library.record("")


@pytest.fixture(autouse=True, scope="session")
def _record() -> Iterator[None]:
    with recording(FOLDER):
        yield
