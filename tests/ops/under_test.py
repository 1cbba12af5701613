"""Which backends a test of an operation runs on.

A test of an operation is parametrised by ``backend`` over ``backends_of(op)`` and computes within ``running(backend)``:
registering a kernel is all that it takes to test it.

On a machine without a GPU, Triton's kernels run under its interpreter, which is chosen for a whole process when the
kernels are decorated (TRITON_INTERPRET=1). Such a process tests only ``triton``; ``test_interpreter.py`` starts it.
The sources of the CUDA kernels run on a CPU as ``simt``: the first test of it builds its library.

``cpu`` is another program for each instruction set. Tests of what an operation computes (parity, golden, property) run
on all of them: ``backends_of(op, every_set=True)``. The others run on the set that the library chooses.
``test_instruction_sets.py`` holds them to that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import gflv2
from gflv2.ops import backends, native
from tests.simt.building import emulation_expected, provide_emulation

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# Examples that a hypothesis test draws. The interpreter takes about a second for one.
EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "25" if INTERPRETED else "200"))
# The same on simt, where the emulation is slower than a kernel, on further instruction sets, and on the reference,
# which every example of a kernel computes as well.
EMULATED_EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "25"))


# That this processor has and that were built; the first is the one in use.
CHOSEN = native.status().get("instruction_set")
INSTRUCTION_SETS = sorted(native.status().get("instruction_sets", []), key=lambda name: name != CHOSEN)


class Backend(str):
    """The name of a backend, as the parameter of a test.

    Attributes:
        op: the operation that the test is about.
        instruction_set: the one that ``cpu`` shall use, or None: the one in use.
    """

    op: str
    instruction_set: str | None

    def __new__(cls, name: str, op: str, instruction_set: str | None = None) -> Backend:
        self = super().__new__(cls, name)
        self.op, self.instruction_set = op, instruction_set
        return self

    @property
    def title(self) -> str:
        """In the name of a test: cpu-baseline."""
        return f"{self}-{self.instruction_set}" if self.instruction_set else str(self)


def few(values: Sequence[Any], count: int = 2) -> Sequence[Any]:
    """All of them, but only the first ``count`` under the interpreter, which is slow."""
    return values[:count] if INTERPRETED else values


def backends_of(op: str, *, kernels_only: bool = False, every_set: bool = False) -> list[Backend]:
    """The backends that implement an operation and are tested in this process, for ``pytest.mark.parametrize``.

    Args:
        kernels_only: leave out the reference.
        every_set: ``cpu`` once more for each further instruction set.
    """
    implemented = [Backend(name, op) for name in backends.BACKENDS if name in backends._refusals[op]]
    if every_set and "cpu" in implemented:
        place = implemented.index("cpu") + 1
        implemented[place:place] = [Backend("cpu", op, name) for name in INSTRUCTION_SETS[1:]]
    if INTERPRETED:
        return [name for name in implemented if name == "triton"]
    absent = set() if torch.cuda.is_available() else {"cuda", "triton"}
    if not emulation_expected():
        absent.add("simt")
    if kernels_only:
        absent.add("reference")
    return [name for name in implemented if name not in absent]


@contextmanager
def using(instruction_set: str | None) -> Iterator[None]:
    """The kernels of ``cpu`` use another instruction set. None: the one in use."""
    if instruction_set is None:
        yield
        return
    before = native.status()["instruction_set"]
    native.set_instruction_set(instruction_set)
    try:
        yield
    finally:
        native.set_instruction_set(before)


def skip_unless_host(backend: Backend) -> None:
    """For a test of the process's peak memory: it runs on the CPU's kernels, once."""
    if backend != "cpu":
        pytest.skip("the host's peak memory says nothing about a device or an interpreter")
    if backend.instruction_set:
        pytest.skip("the instruction set changes nothing")


@contextmanager
def running(backend: str) -> Iterator[torch.device]:
    """Ask for a backend, and for the instruction set of a `Backend`. Gives the device to test it on; skips, saying why,
    where it cannot run.
    """
    on_gpu = backend == "cuda" or (backend == "triton" and not INTERPRETED)
    device = torch.device("cuda" if on_gpu else "cpu")
    if backend == "simt":
        provide_emulation()
    reason = backends.unavailable(backend, device.type)
    if reason is not None and backend == "simt":
        pytest.fail(f"{backend}: {reason}")  # it has just been built
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    with using(getattr(backend, "instruction_set", None)), gflv2.use_backend(str(backend)):
        yield device
