"""The forecast's workload, once, for a profiler: the head and the operations beside it, on sixteen images.

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
from benchmarks import inputs
from benchmarks.harness.candidates import gradients
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, Operation

CASE = Case(batch=16, dtype="bfloat16", boxes=100)
# Benchmark, mode, and whose launches of the forecast these are.
STAGES = (
    ("head", "forward", ("atss", "gfl_targets", "dgqp", "qfl", "gfl_loss")),
    ("head", "backward", ("qfl", "gfl_loss")),
    ("integral", "forward", ("integral",)),
    ("integral", "backward", ("integral",)),
    ("decode", "forward", ("decode",)),
    ("focal", "forward", ("focal",)),
    ("focal", "backward", ("focal",)),
    ("task_aligned", "forward", ("task_aligned",)),
    ("dynamic_soft_label", "forward", ("dynamic_soft_label",)),
)


def stages(device: torch.device, case: Case = CASE) -> list[Callable[[], Any]]:
    """One function for each of `STAGES`; a backward one needs that its forward one has run."""
    made: dict[str, tuple[Operation, Inputs]] = {}
    results: dict[str, Any] = {}
    found: list[Callable[[], Any]] = []
    for name, mode, _ in STAGES:
        if name not in made:
            operation = importlib.import_module(f"benchmarks.{name}").OPERATION
            given = operation.inputs(case, device, 0)
            made[name] = operation, on_levels(given, case, device) if name == "focal" else given

        def forward(name: str = name) -> None:
            operation, given = made[name]
            results[name] = operation.run(*given.args, **given.kwargs)

        def backward(name: str = name) -> None:
            operation, given = made[name]
            gradients(operation, results[name], given)

        found.append(forward if mode == "forward" else backward)
    return found


def on_levels(given: Inputs, case: Case, device: torch.device) -> Inputs:
    """Class logits as levels, instead of the benchmark's rows: the forecast's launches of `focal` read these."""
    logits = inputs.levels(case, case.classes, inputs.generator(device, 0), mean=-4.6)
    shape = case.batch, case.points
    target = tuple(part.reshape(shape) for part in given.args[1])
    return Inputs((logits, target), given.kwargs | {"weight": given.kwargs["weight"].reshape(shape)}, logits)


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
