"""The benchmarks, in the order in which they run and are reported."""

from __future__ import annotations

import importlib

from benchmarks.harness.operation import Operation

NAMES = (
    "integral dgqp dgqp_statistics atss dynamic_soft_label qfl dfl distribution_kl giou decode detect head "
    "training_step inference"
).split()


def operations() -> list[Operation]:
    return [importlib.import_module(f"benchmarks.{name}").OPERATION for name in NAMES]
