"""What tests of several folders ask for by name."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import pytest

# Files whose tests take a minute or so each; the longest first.
LONGEST = ("test_interpreter.py", "test_sanitizers.py", "test_install.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that none starts when the others are done and leaves a processor idle (pytest -n)."""

    def place(item: pytest.Item) -> int:
        if item.path.name in LONGEST:
            return LONGEST.index(item.path.name)
        return len(LONGEST) + (item.get_closest_marker("slow") is None)

    items.sort(key=place)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: tests that train run beside each other, and sums keep their order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_configure() -> None:
    """A shell's background commands ignore SIGINT, which tests send to themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Where the examples are to be the same each time (CI), they must not depend on which modules a test imports.

    Hypothesis draws some of them from the constants of all modules of a project that are loaded by then.
    """
    try:
        from hypothesis import settings
        from hypothesis.internal.conjecture import providers
    except ImportError:  # an environment without it, or a version that does not do so
        return
    if settings.default.derandomize and hasattr(providers, "_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants


def _seed() -> None:
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """Like a test, what several tests share has numbers that do not depend on what ran before it in its process."""
    if fixturedef.scope != "function":
        _seed()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run: which tests share a process, and in which order, is chance (pytest -n)."""
    _seed()
