"""The forecast's workload, once, for a profiler: the head, `integral` and `decode` on sixteen images.

    ncu --profile-from-start off … python -m tests.gpu.workload --backend cuda

What is profiled are the launches of one backend, after a first call of each. A kernel that does nothing stands before
every stage, so that `tests.gpu.ncu` knows to which of `STAGES` a launch belongs.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

import gflv2
from benchmarks.harness.candidates import gradients
from benchmarks.harness.cases import Case

CASE = Case(batch=16, dtype="bfloat16", boxes=100)
# Benchmark, mode, and whose launches of the forecast these are.
STAGES = (
    ("head", "forward", ("atss", "gfl_targets", "dgqp", "qfl", "gfl_loss")),
    ("head", "backward", ("qfl", "gfl_loss")),
    ("integral", "forward", ("integral",)),
    ("integral", "backward", ("integral",)),
    ("decode", "forward", ("decode",)),
)


def stages(device: torch.device, case: Case = CASE) -> list[Callable[[], Any]]:
    """One function for each of `STAGES`; a backward one needs that its forward one has run."""
    made: dict[str, tuple[Any, Any]] = {}
    results: dict[str, Any] = {}
    found: list[Callable[[], Any]] = []
    for name, mode, _ in STAGES:
        if name not in made:
            operation = importlib.import_module(f"benchmarks.{name}").OPERATION
            made[name] = operation, operation.inputs(case, device, 0)

        def forward(name: str = name) -> None:
            operation, inputs = made[name]
            results[name] = operation.run(*inputs.args, **inputs.kwargs)

        def backward(name: str = name) -> None:
            operation, inputs = made[name]
            gradients(operation, results[name], inputs)

        found.append(forward if mode == "forward" else backward)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.workload", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", required=True, choices=("cuda", "triton"))
    options = parser.parse_args(arguments)
    with gflv2.use_backend(options.backend):
        calls = stages(torch.device("cuda"))
        for call in calls:  # compiles, loads, allocates
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for call in calls:
            torch.cuda._sleep(1)
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
