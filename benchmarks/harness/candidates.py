"""Who takes part: this project's backends, the fastest eager form, torch.compile of it, other packages."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, Operation
from benchmarks.peers import Absent
from gflv2.ops import backends

# simt emulates a GPU on a CPU, and so does Triton's interpreter: neither is ever measured.
KERNELS = ("cuda", "triton", "cpu")
BEST = "best"  # no backend is asked for: each operation takes the best one that it has


@dataclass
class Candidate:
    """One way to compute an operation.

    Attributes:
        name: the column ``backend``.
        call: function of the operation's arguments.
        kind: "ours", "eager", "compile" or "peer".
        backend: asked for while it runs; None: none.
    """

    name: str
    call: Callable[..., Any]
    kind: str
    backend: str | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with backends.use_backend(self.backend):
            yield

    def __call__(self, inputs: Inputs) -> Any:
        return self.call(*inputs.args, **inputs.kwargs)


@dataclass
class Settings:
    """What a run measures and for how long."""

    seconds: float = 4.0  # of one case
    runs: int = 5  # rows of each candidate
    sets: int = 3  # inputs that the calls rotate over
    compile: str = "operations"  # "none", "operations": not whole models, "all"
    compile_seconds: float = 120.0  # bound of one compilation
    peers: bool = True
    reductions: tuple[str, ...] = ()  # further modes of torch.compile


def can_run(operation: Operation, backend: str, inputs: Inputs) -> bool:
    """Whether a backend takes every call of the operation, as ``gflv2.explain`` says."""
    with backends.use_backend(backend):
        return all(
            any(choice.chosen for choice in backends.explain(op, *args, **kwargs))
            for op, args, kwargs in operation.calls(inputs)
        )


def chosen(operation: Operation, inputs: Inputs) -> list[str]:
    """The backend that each call of the operation takes when none is asked for."""
    return [
        next(choice.backend for choice in backends.explain(op, *args, **kwargs) if choice.chosen)
        for op, args, kwargs in operation.calls(inputs)
    ]


def ours(operation: Operation, inputs: Inputs) -> list[Candidate]:
    """A candidate for each kernel backend that takes all of it; else the mixture that runs, if any kernel does."""
    names = [name for name in KERNELS if can_run(operation, name, inputs)]
    if names:
        return [Candidate(name, operation.run, "ours", name) for name in names]
    if set(chosen(operation, inputs)) != {"reference"}:
        return [Candidate(BEST, operation.run, "ours")]
    return []


def eager_forms(operation: Operation) -> list[Candidate]:
    forms = {"reference": operation.reference, **operation.forms}
    return [Candidate(f"eager: {name}", form, "eager", "reference") for name, form in forms.items()]


def fastest(
    operation: Operation,
    candidates: list[Candidate],
    inputs: Inputs,
    *,
    calls: int = 3,
    notes: Callable[[str], None] = lambda text: None,
) -> list[Candidate]:
    """Some eager forms, the fastest first, all gradients included; the best of a few calls after one to warm up.

    A form whose first call takes four times the best time of another is not called again. One for which memory does not
    do is left out, with a note.
    """
    best: dict[str, float] = {}
    for candidate in candidates:
        times: list[float] = []
        try:
            while len(times) <= calls and not (times and times[0] > 4 * min(best.values(), default=float("inf"))):
                times.append(time_once(operation, candidate, inputs))
        except (MemoryError, RuntimeError) as error:  # torch raises a RuntimeError on a CPU
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            notes(why_not(operation, candidate, error))
            continue
        best[candidate.name] = min(times)
    return sorted((one for one in candidates if one.name in best), key=lambda one: best[one.name])


def why_not(operation: Operation, candidate: Candidate, error: Exception) -> str:
    """The note on a candidate that cannot take part."""
    first = str(error).partition("\n")[0]
    return f"{operation.name}: {candidate.name}: {type(error).__name__}: {first[:200]}"


def time_once(operation: Operation, candidate: Candidate, inputs: Inputs) -> float:
    """Seconds of one call with its gradients."""
    with candidate.running():
        start = time.perf_counter()
        result = candidate(inputs)
        gradients(operation, result, inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def gradients(operation: Operation, result: Any, inputs: Inputs) -> Any:
    """Gradients of the leaves for an upstream gradient of 1, or None where there is nothing to differentiate."""
    if not inputs.leaves:
        return None
    outputs = operation.differentiated(result)
    # Expanded, so that making it costs no pass over memory.
    ones = [output.new_ones(()).expand_as(output) for output in outputs]
    return torch.autograd.grad(outputs, inputs.leaves, ones, allow_unused=True)


def compiled(operation: Operation, form: Candidate, settings: Settings) -> list[Candidate]:
    """``torch.compile`` of an eager form: default mode, and those of the settings."""
    if operation.static_form is not None:
        form = Candidate(operation.static_form, operation.forms[operation.static_form], "eager", "reference")
    found = []
    for mode in (None, *settings.reductions):
        function = torch.compile(form.call, mode=mode, dynamic=False)
        found.append(Candidate(f"compile: {mode or 'default'}", function, "compile", "reference"))
    return found


def other_packages(operation: Operation, case: Case, notes: Callable[[str], None]) -> list[Candidate]:
    found = []
    for name, build in operation.peers.items():
        try:
            call = build(case)
        except Absent as reason:
            notes(f"{name}: {reason}")
            continue
        if call is not None:
            found.append(Candidate(name, call, "peer"))
    return found


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds. Only the main thread of a Unix process has alarms."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
