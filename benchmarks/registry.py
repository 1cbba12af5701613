"""The benchmarks, in the order in which they run and are reported."""

from __future__ import annotations

import importlib

from benchmarks.harness.operation import Operation

NAMES = (
    "integral dgqp dgqp_statistics atss task_aligned dynamic_soft_label qfl focal dfl fgl distribution_kl ddf giou "
    "ciou decode detect head training_step inference"
).split()


def operations() -> list[Operation]:
    return [importlib.import_module(f"benchmarks.{name}").OPERATION for name in NAMES]
