"""A test that hangs on the device ends its process (GFLV2_TEST_SECONDS).

A call that never returns cannot be interrupted in any other way.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """Under pytest-xdist another process goes on with the other tests."""
    seconds = float(os.environ.get("GFLV2_TEST_SECONDS", "0"))
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    yield
    if seconds:
        faulthandler.cancel_dump_traceback_later()
