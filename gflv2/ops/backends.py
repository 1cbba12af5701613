"""Which implementation of an operation runs: the best backend that can take the call, or the one that was asked for.

Backends: ``cuda`` (CUDA C++), ``triton``, ``cpu`` (C++), ``reference`` (plain PyTorch, takes everything), and
``simt`` (the CUDA sources on a CPU, for tests). ``gflv2.use_backend(name)`` or the environment variable
``GFLV2_BACKEND`` asks for one; what it cannot take is then an error, never a silent fallback. ``gflv2.explain`` says
who runs a call and why the others do not.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gflv2.ops.preference import PREFERENCE

BACKENDS = ("cuda", "triton", "cpu", "reference", "simt")
# In the order of preference; for a GPU, `preference` may have another one for an operation. On a CPU, Triton means its
# interpreter and simt an emulation: only on request.
_PREFERENCE = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
_DEVICE_OF = {"cuda": "cuda", "cpu": "cpu", "simt": "cpu"}


class BackendError(RuntimeError):
    """The backend that was asked for cannot take the call."""


class Call(NamedTuple):
    """What decides whether a backend can take a call."""

    device: torch.device
    dtype: torch.dtype
    facts: dict[str, Any]  # of the operation: number of bins, k, ...


class Choice(NamedTuple):
    backend: str
    chosen: bool
    reason: str  # why it does not run; empty for the one that does


class Explanation(list["Choice"]):
    """The answer of ``explain``: one ``Choice`` a backend; printed as a small table."""

    def __repr__(self) -> str:
        lines = (f"{row.backend:<10} {'runs this call' if row.chosen else row.reason}" for row in self)
        return "\n".join(lines)


def refuse_double(call: Call) -> str | None:
    """For `register`: the kernels of a GPU compute in float32."""
    return "float64 runs on cpu and reference only" if call.dtype == torch.float64 else None


# For `register`: an operation with a kernel for every kind of machine.
EVERYWHERE: dict[str, Callable[[Call], str | None] | None] = {
    "cuda": refuse_double,
    "triton": refuse_double,
    "cpu": None,
    "reference": None,
}

_refusals: dict[str, dict[str, Callable[[Call], str | None] | None]] = {}
_describers: dict[str, Callable[..., Call]] = {}
_aliases: dict[str, str] = {}
_requested: str | None = None
_warned = False


def register(op: str, backends: dict[str, Callable[[Call], str | None] | None], describe: Callable[..., Call]) -> None:
    """Declare an operation.

    Args:
        op: name of the operation.
        backends: the backends that implement it. Each has None (takes every call on its device) or a function that
            returns why it cannot take a given call. ``simt`` runs the sources of ``cuda``, so it takes the same calls.
        describe: turns the operation's arguments into a ``Call``; it runs the argument checks.
    """
    emulated = {"simt": backends["cuda"]} if "cuda" in backends else {}
    _refusals[op] = {**emulated, **backends}
    _describers[op] = describe


def alias(name: str, op: str, describe: Callable[..., Call]) -> None:
    """Declare a function that runs an operation of another name, for `explain`; ``describe`` as in `register`."""
    _aliases[name], _describers[name] = op, describe


def operations() -> list[str]:
    """Names of the operations, sorted."""
    return sorted(_refusals)


class use_backend:
    """Ask for one backend for every operation, from now on or within a ``with`` block; None ends a request.

    The request is process-wide. It is resolved in the forward pass: a backward pass runs on the backend of its forward.

    Raises:
        ValueError: no such backend.
    """

    def __init__(self, name: str | None) -> None:
        global _requested
        if name is not None and name not in BACKENDS:
            raise ValueError(f"use_backend: name: expected one of {', '.join(BACKENDS)} or None, got {name!r}")
        self._before = _requested
        _requested = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *_: object) -> None:
        global _requested
        _requested = self._before


def requested_backend() -> str | None:
    """The backend asked for by ``use_backend``, else by ``GFLV2_BACKEND``, else None."""
    if _requested is not None:
        return _requested
    name = os.environ.get("GFLV2_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"GFLV2_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@torch.compiler.assume_constant_result
def unavailable(backend: str, device_type: str) -> str | None:
    """Why a backend cannot run at all for tensors on this kind of device, or None. Constant within a process."""
    if (backend, device_type) in _available:
        return None
    reason = _why_unavailable(backend, device_type)
    if reason is None and backend != "simt":  # tests take its library away again
        _available.add((backend, device_type))
    return reason


# What was found to run once runs from then on; the search takes longer than a kernel.
_available: set[tuple[str, str]] = set()


def _why_unavailable(backend: str, device_type: str) -> str | None:
    home = _DEVICE_OF.get(backend)
    if home is not None and home != device_type:
        return f"the tensors are on {device_type}"
    if backend in ("cuda", "cpu", "simt"):
        return importlib.import_module("gflv2.ops.native").unavailable(backend)
    if backend == "triton":
        return _triton_unavailable(device_type)
    return None


@torch.compiler.assume_constant_result
def exporting() -> bool:
    """Whether torch.export is tracing. Asked by tracing itself, torch 2.9 says so of torch.compile too."""
    return torch.compiler.is_exporting()


def _triton_unavailable(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if device_type != "cuda" and not interpreted:
        only = "on a CPU Triton runs only interpreted (TRITON_INTERPRET=1 before the import)"
        return f"the tensors are on {device_type}; {only}"
    return _interpreter_problem() if interpreted else None


def _interpreter_problem() -> str | None:
    """Triton's interpreter before 3.7 cannot run with numpy 2.4 (triton-lang/triton#9171)."""
    import numpy
    import triton

    versions = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, numpy)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        return f"the interpreter of Triton {triton.__version__} needs numpy below 2.4, not {numpy.__version__}"
    return None


def refusal(op: str, backend: str, call: Call) -> str | None:
    """Why ``backend`` cannot take this call of ``op``, or None if it can."""
    known = _refusals[op]
    if backend not in known:
        return f"{op} has no {backend} kernel"
    reason = unavailable(backend, call.device.type)
    if reason is None and known[backend] is not None:
        reason = known[backend](call)
    return reason


def select(op: str, call: Call, *, tell: bool = True) -> str:
    """The backend that runs this call.

    Args:
        tell: warn, once a process, where plain PyTorch runs because the native library is missing.

    Raises:
        BackendError: the requested backend cannot take it; the message says why.
    """
    if exporting():
        return "reference"  # an exported graph must run where this package is not installed
    asked = requested_backend()
    if asked is not None:
        reason = refusal(op, asked, call)
        if reason is not None:
            raise BackendError(f"{op}: backend {asked!r} was asked for, but {reason}")
        return asked
    for backend in order(op, call.device.type):
        if refusal(op, backend, call) is None:
            if tell and backend == "reference":
                _tell_fallback(op, call)
            return backend
    return "reference"


def order(op: str, device_type: str) -> tuple[str, ...]:
    """The backends of an operation in the order in which they are tried."""
    if device_type == "cuda" and op in PREFERENCE:
        return (*PREFERENCE[op][0], "reference")
    return _PREFERENCE.get(device_type, ())


def explain(op: str | Callable, *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend a call would use, and why each other one would not.

    Args:
        op: an operation or its name: ``gflv2.explain("integral", box_logits)``.
        *args, **kwargs: the arguments of the call; nothing is computed.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", str(op))
    if name not in _describers:
        raise ValueError(f"explain: op: expected one of {', '.join(sorted(_describers))}, got {name!r}")
    return explain_call(_aliases.get(name, name), _describers[name](*args, **kwargs))


def explain_call(op: str, call: Call) -> Explanation:
    """``explain`` for a call that is described already."""
    try:
        chosen = select(op, call, tell=False)
    except BackendError:
        chosen = None
    asked = requested_backend()
    rows = Explanation()
    for backend in BACKENDS:
        reason = refusal(op, backend, call)
        if reason is None and backend != chosen:
            reason = f"{asked} was asked for" if asked else f"{chosen} comes first"
            if not asked and {backend, chosen} == {"cuda", "triton"} and op in PREFERENCE:
                reason += f" ({PREFERENCE[op][1]})"
        rows.append(Choice(backend, backend == chosen, reason or ""))
    return rows


def _tell_fallback(op: str, call: Call) -> None:
    """Once a process: the native library is missing, so plain PyTorch runs (pip hides build output from its user)."""
    global _warned
    if _warned or torch.compiler.is_compiling() or call.device.type not in _refusals[op]:
        return
    reason = unavailable(call.device.type, call.device.type)
    if reason is not None:
        _warned = True
        text = f"gflv2: {op} runs in plain PyTorch: {reason}. `python -m gflv2.env` shows what was built."
        warnings.warn(text, RuntimeWarning, stacklevel=4)
