"""Under Triton's interpreter only the tests of the ``triton`` backend run, under ``GFLV2_TEST_BACKENDS`` those of the
backends that it names; the reference, the emulation and further instruction sets get fewer examples: ``under_test``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

from tests.ops.interpreter import replace_names_once_a_launch
from tests.ops.under_test import EMULATED_EXAMPLES, INTERPRETED, Backend

HERE = Path(__file__).parent
ONLY = os.environ.get("GFLV2_TEST_BACKENDS", "")
if INTERPRETED:
    replace_names_once_a_launch()


def pytest_make_parametrize_id(val: object) -> str | None:
    return val.title if isinstance(val, Backend) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = ["triton"] if INTERPRETED else [name for name in ONLY.split(",") if name]
    if not wanted:
        return
    others = [item for item in items if HERE in item.path.parents and _backend(item) not in wanted]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _backend(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("backend") if callspec else None


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A parameter cannot change a decorator, so the settings of the function are changed for the time of the call."""
    function = getattr(pyfuncitem.obj, "__func__", pyfuncitem.obj)
    backend = _backend(pyfuncitem)
    fewer = backend in ("reference", "simt") or getattr(backend, "instruction_set", None) is not None
    if not fewer or not is_hypothesis_test(function):
        return (yield)
    before = function._hypothesis_internal_use_settings
    examples = min(before.max_examples, EMULATED_EXAMPLES)
    function._hypothesis_internal_use_settings = settings(before, max_examples=examples)
    try:
        return (yield)
    finally:
        function._hypothesis_internal_use_settings = before
