"""Ultralytics' distribution focal loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks import peers
from benchmarks.harness.cases import Case


def dfl(case: Case) -> Callable[..., Tensor]:
    try:
        from ultralytics.utils.loss import DFLoss
    except ImportError as error:
        raise peers.Absent("not installed: pip install ultralytics") from error
    loss = DFLoss(case.bins)

    def call(logits: Tensor, target: Tensor, *, weight: Tensor, avg_factor: float) -> Tensor:
        # It wants the four sides of a box beside each other, and clamps the target in place.
        rows = loss(logits, target.clone()[:, None]).squeeze(1)
        return (rows * weight).sum() / avg_factor

    return call
