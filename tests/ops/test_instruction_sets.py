"""What an operation computes is tested on every instruction set that the processor has and that was built.

The library picks one when it is loaded, and a test that asks for ``cpu`` alone sees no other: a mistake in the kernels
of one set would stay unseen on a machine with a better one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import is_hypothesis_test

from gflv2.ops import backends, native
from tests.ops.under_test import CHOSEN, INSTRUCTION_SETS, INTERPRETED, Backend, backends_of, running

pytestmark = [
    pytest.mark.skipif(native.unavailable("cpu") is not None, reason=str(native.unavailable("cpu"))),
    pytest.mark.skipif(INTERPRETED, reason="only triton is tested in this process"),
]
CLASSES = ("TestParity", "TestDouble", "TestMemory")  # of one operation, against its definition


def modules() -> list[ModuleType]:
    """All files of tests beside this one."""
    return [importlib.import_module(f"tests.ops.{path.stem}") for path in Path(__file__).parent.glob("test_*.py")]


def computing(module: ModuleType) -> Iterator[tuple[str, set[Key]]]:
    """The parity, golden and property tests of a module that run on a list of backends: name, backends."""
    golden = module.__name__.rpartition(".")[2].startswith("test_golden")
    for name, value in vars(module).items():
        if inspect.isfunction(value) and name.startswith("test_"):
            found = parameters(value)
            if found and (golden or is_hypothesis_test(value)):
                yield f"{module.__name__}::{name}", found
        elif inspect.isclass(value) and name.startswith("Test"):
            for test, function in inspect.getmembers(value, inspect.isfunction):
                found = parameters(value) | parameters(function)
                if found and test.startswith("test_") and (name in CLASSES or is_hypothesis_test(function)):
                    yield f"{module.__name__}::{name}::{test}", found


def parameters(marked: Callable | type) -> set[Key]:
    """The backends that a function or class is parametrised by."""
    marks = [mark for mark in getattr(marked, "pytestmark", []) if mark.name == "parametrize"]
    return {Key.of(value) for mark in marks if mark.args[0] == "backend" for value in mark.args[1]}


class Key(NamedTuple):
    """A `Backend`, which as a string cannot tell cpu from cpu-baseline; or the name of one."""

    name: str
    op: str
    instruction_set: str | None

    @classmethod
    def of(cls, backend: str) -> Key:
        return cls(str(backend), getattr(backend, "op", ""), getattr(backend, "instruction_set", None) or CHOSEN)


def untested(operations: list[str], tests: dict[str, set[Key]]) -> dict[str, set[str]]:
    """The instruction sets on which no test of an operation runs."""
    every = set(INSTRUCTION_SETS)
    found = {}
    for op in operations:
        names = {key.instruction_set for keys in tests.values() for key in keys if key[:2] == ("cpu", op)}
        if every - names:
            found[op] = every - names
    return found


@pytest.fixture(scope="module")
def tests() -> dict[str, set[Key]]:
    return {name: found for module in modules() for name, found in computing(module)}


def test_every_operation_is_tested_on_every_set(tests: dict[str, set[Key]]) -> None:
    assert untested([op for op in backends.operations() if "cpu" in backends._refusals[op]], tests) == {}


def test_an_operation_without_such_tests_is_found(tests: dict[str, set[Key]]) -> None:
    assert untested(["qfl", "imagined"], tests) == {"imagined": set(INSTRUCTION_SETS)}
    fewer = {
        name: {key for key in keys if key.op != "qfl" or key.instruction_set == CHOSEN} for name, keys in tests.items()
    }
    assert untested(["qfl", "dfl"], fewer) == ({"qfl": set(INSTRUCTION_SETS[1:])} if INSTRUCTION_SETS[1:] else {})


def test_no_such_test_leaves_a_set_out(tests: dict[str, set[Key]]) -> None:
    """Whoever compares ``cpu`` with the definition does so on every set."""
    wrong = {}
    for name, keys in tests.items():
        sets = {key.instruction_set for key in keys if key.name == "cpu"}
        if sets and sets != set(INSTRUCTION_SETS):
            wrong[name] = set(INSTRUCTION_SETS) - sets
    assert tests and wrong == {}


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_such_a_test_runs_on_its_set_and_leaves_the_other_in_use(instruction_set: str) -> None:
    with running(Backend("cpu", "qfl", instruction_set)):
        assert native.status()["instruction_set"] == instruction_set
    assert native.status()["instruction_set"] == CHOSEN


def test_names() -> None:
    titles = [backend.title for backend in backends_of("qfl", every_set=True) if backend == "cpu"]
    assert titles == ["cpu", *(f"cpu-{name}" for name in INSTRUCTION_SETS[1:])]
