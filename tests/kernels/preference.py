"""Which of a GPU's backends comes first for each operation: the one table that ``gflv2.ops.backends`` reads.

Derived from the forecast of the first GPU of ``model.GPUS``; from its measurements, where the benchmarks have measured
every part of an operation on both backends. ``make forecast`` writes it, and CI compares it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kernels import forecast
from tests.kernels.hot import WORKLOAD
from tests.kernels.model import GPUS

BACKENDS = ("cuda", "triton")
# What the launches of an operation are called in the forecast: operation and mode.
_PARTS = {
    "atss": [("atss", "forward")],
    "decode": [("decode", "forward")],
    "dgqp": [("dgqp", "forward")],
    "dynamic_soft_label": [("dynamic_soft_label", "forward")],
    "focal": [("focal", "forward"), ("focal", "backward")],
    "gfl_loss": [("qfl", "forward"), ("gfl_loss", "forward"), ("qfl", "backward"), ("gfl_loss", "backward")],
    "gfl_targets": [("dgqp", "forward"), ("gfl_targets", "forward")],
    "integral": [("integral", "forward"), ("integral", "backward")],
    "qfl": [("qfl", "forward"), ("qfl", "backward")],
    "task_aligned": [("task_aligned", "forward")],
}
# A forecast is no finer: who is not quicker by this share does not come first. CUDA's launches cost the host less.
_MARGIN = 0.05

Times = Mapping[tuple[str, str, str], float]  # seconds by operation, mode and backend


def table(predicted: Times, measured: Times) -> dict[str, tuple[tuple[str, ...], str]]:
    """For each operation that all parts are known of: the backends in their order, and why."""
    found = {}
    for op, parts in _PARTS.items():
        for times, word in ((measured, "measured on"), (predicted, "predicted for")):
            sums = {name: [times.get((*part, name)) for part in parts] for name in BACKENDS}
            if any(None in values for values in sums.values()):
                continue
            cuda, triton = (sum(value or 0.0 for value in sums[name]) for name in BACKENDS)
            order = ("triton", "cuda") if triton < cuda * (1 - _MARGIN) else BACKENDS
            numbers = {"cuda": cuda, "triton": triton}
            text = ", ".join(f"{name} {forecast.micro(numbers[name])} µs" for name in order)
            found[op] = (order, f"{word} an {GPUS[0].name}: {text}")
            break
    return found


def of_results(results: Sequence[Any], folder: Path = forecast.RESULTS) -> dict[str, tuple[tuple[str, ...], str]]:
    """The table from what ``matrix.compile_all`` returns, and from the tables of results."""
    gpu = GPUS[0]
    return table(forecast.totals(forecast.lines(results, gpu.architecture), gpu), forecast.measured(folder, gpu))


def render(found: Mapping[str, tuple[tuple[str, ...], str]]) -> str:
    """The module that the package reads."""
    lines = [
        '"""Which backend of a GPU comes first, and why. `make forecast` writes this file; CI compares it.',
        "",
        f"The workload: {WORKLOAD};",
        "forward and backward together. An operation that is not here: CUDA first.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "PREFERENCE: dict[str, tuple[tuple[str, ...], str]] = {",
    ]
    for op, (order, reason) in found.items():
        names = ", ".join(f'"{name}"' for name in order)
        lines.append(f'    "{op}": (({names}), "{reason}"),')
    return "\n".join([*lines, "}", ""])


def problems(results: Sequence[Any]) -> list[str]:
    """Where the committed table puts another backend first than these results do."""
    from gflv2.ops.preference import PREFERENCE

    now = of_results(results)
    return [
        f"gflv2/ops/preference.py: {op}: {' before '.join(order)} now ({reason}); run make forecast"
        for op, (order, reason) in now.items()
        if PREFERENCE.get(op, (None,))[0] != order
    ]
