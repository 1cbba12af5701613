"""What tests of several folders ask for by name."""

from __future__ import annotations

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
