"""Under Triton's interpreter only the tests of the ``triton`` backend run: see ``under_test``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ops.under_test import INTERPRETED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not INTERPRETED:
        return
    others = [item for item in items if HERE in item.path.parents and _backend(item) != "triton"]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _backend(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("backend") if callspec else None
