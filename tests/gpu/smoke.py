"""Does one operation run on a device, forward and backward, with the definition's numbers? In seconds, without pytest.

    python -m tests.gpu.smoke dgqp --backend cuda            # a small call, then sixteen images
    python -m tests.gpu.smoke dgqp --backend cpu --small     # the small call alone

For the first contact with a GPU: one process an operation, so that an illegal access ends no other. Memory that a
kernel must fill holds NaN before. Every result and gradient is held to the rule of `tests.ops.parity`. One line a call,
printed as it ends; status 1 where a number is off.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import gflv2
from benchmarks.harness.candidates import gradients
from benchmarks.harness.cases import Case
from benchmarks.registry import NAMES
from tests.ops import calls, parity
from tests.ops.tolerances import FLOOR

# Operations, and the head that they make up together.
LARGE = [name for name in NAMES if name not in ("detect", "training_step", "inference")]
OPERATIONS = sorted({*calls.operations(), *LARGE})
# Whose row of the tolerances; fgl and ddf run on the kernels of another operation.
_RULE = {"dgqp_statistics": "dgqp", "iou": "giou", "head": "gfl_loss", "fgl": "dfl", "ddf": "distribution_kl"}
_SAME = 0.999  # share of integers that must agree: of equal scores of a level another one may come first

# A result of so few numbers is a sum over all points, whose terms cancel: so many times its size stands for theirs.
_FEW, _CANCELS = 2000, 64
_CASE = Case(batch=16, dtype="bfloat16")

Call = Callable[[str, bool], list[Tensor]]  # backend, in float64 → results and gradients


class poisoned:
    """What torch allocates without filling it is NaN, or the largest integer."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)


def in_float64(value: Any) -> Any:
    """The same arguments, rounded as they are, in float64."""

    def wide(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    return pytree.tree_map_only(Tensor, wide, value)


def small(op: str, device: torch.device) -> Call:
    def run(backend: str, double: bool) -> list[Tensor]:
        made = calls.arguments(op, device)
        made = in_float64(made) if double else made
        with gflv2.use_backend(backend):
            result = calls.function(op)(**made)
            found = calls.gradients(result, made) if op in calls.DIFFERENTIABLE else []
        return calls.tensors([result, found])

    return run


def large(op: str, device: torch.device, case: Case = _CASE) -> Call:
    operation = importlib.import_module(f"benchmarks.{op}").OPERATION
    made = operation.inputs(case, device, 0)

    def run(backend: str, double: bool) -> list[Tensor]:
        inputs = made
        if double:
            args, kwargs, leaves = _together(made)
            inputs = type(made)(args, kwargs, leaves)
        function = operation.reference if backend == "reference" else operation.run
        with gflv2.use_backend(backend):
            result = function(*inputs.args, **inputs.kwargs)
            return calls.tensors([result, gradients(operation, result, inputs) or []])

    return run


def _together(inputs: Any) -> tuple[Any, Any, list[Tensor]]:
    """Arguments in float64, and the leaves among them."""
    place = {id(tensor): number for number, tensor in enumerate(inputs.leaves)}
    leaves: dict[int, Tensor] = {}

    def wide(tensor: Tensor) -> Tensor:
        made: Tensor = in_float64(tensor)
        if id(tensor) in place:
            leaves[place[id(tensor)]] = made
        return made

    args, kwargs = pytree.tree_map_only(Tensor, wide, (inputs.args, inputs.kwargs))
    return args, kwargs, [leaves[number] for number in sorted(leaves)]


def compare(op: str, found: Sequence[Tensor], exact: Sequence[Tensor], eager: Sequence[Tensor]) -> Iterator[str]:
    """What is wrong, one text each."""
    rule = _RULE.get(op, op)
    if not len(found) == len(exact) == len(eager):
        yield f"{len(found)} results, {len(exact)} expected"
        return
    # Rows of the result, as those of `decode`, whose integers differ are others.
    other: dict[torch.Size, Tensor] = {}
    for number, (a, b) in enumerate(zip(found, exact, strict=True)):
        if not a.is_floating_point() and a.numel():
            differs = a != b.to(a)
            share = 1 - float(differs.double().mean())
            if share < _SAME:
                yield f"result {number}: {share:.4f} of the integers agree, {_SAME} expected"
            other[a.shape] = other[a.shape] | differs if a.shape in other else differs
    for number, (a, b, c) in enumerate(zip(found, exact, eager, strict=True)):
        if not a.is_floating_point() or not a.numel():
            continue
        b, c = b.double(), c.double()
        mask = other.get(a.shape[:2])
        if mask is not None:
            rows = mask.reshape(*mask.shape, *[1] * (a.dim() - mask.dim()))
            b, c = torch.where(rows, a.double(), b), torch.where(rows, a.double(), c)
        bad = int((~torch.isfinite(a)).sum())
        if bad:
            yield f"result {number}: {bad} of {a.numel()} values are not finite"
        elif rule in FLOOR:
            magnitude = _CANCELS * float(b.abs().max()) if a.numel() <= _FEW else None
            measured = parity.measure(rule, str(number), a, b, c, magnitude)
            if not measured.fine:
                yield f"result {number}: error {measured.error:.3g} at {measured.index}, allowed {measured.allowed:.3g}"
        elif not torch.equal(a.double(), b):
            yield f"result {number}: not the bits of the definition"


def check(op: str, name: str, call: Call, backend: str) -> list[str]:
    with poisoned():
        found = call(backend, False)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # an illegal access shows here
    # Thresholds are decided in float32: an assignment in float64 could differ by a rounding.
    exact, eager = call("reference", op != "atss"), call("reference", False)
    found, exact, eager = ([tensor.detach() for tensor in tensors] for tensors in (found, exact, eager))
    return [f"{name}: {text}" for text in compare(op, found, exact, eager)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.smoke", description=__doc__.split("\n")[0])
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--backend", required=True, help="cuda, triton, or cpu to rehearse")
    parser.add_argument("--small", action="store_true", help="the small call alone")
    options = parser.parse_args(arguments)
    op, backend = options.operation, options.backend
    device = torch.device("cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu")
    makers: Mapping[str, Any] = {"small": small if op in calls.operations() else None, "B=16": large}
    wrong = []
    for name, maker in makers.items():
        if maker is None or (name == "B=16" and (options.small or op not in LARGE)):
            continue
        start = time.perf_counter()
        problems = check(op, name, maker(op, device), backend)
        took = time.perf_counter() - start
        print(f"{op} {backend} {name}: {'; '.join(problems) or 'as the definition'} ({took:.1f} s)", flush=True)
        wrong += problems
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
