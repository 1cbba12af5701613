"""Inputs for the tests of ``focal``: rows and levels, every memory layout, kind, dtype and reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.ops.qfl_cases import Case as QflCase
from tests.ops.row_losses import Call

KINDS = ("sigmoid_focal", "varifocal", "matchability_aware", "iou_aware_bce")
# Of each kind: alpha, gamma, iou_weighted, detach. The first are the published ones.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "sigmoid_focal": ({}, {"alpha": -1.0, "gamma": 1.5}, {"alpha": 1.0, "gamma": 0.5}, {"gamma": 0.0}, {"gamma": 3.0}),
    "varifocal": (
        {},
        {"detach": True},
        {"iou_weighted": False, "alpha": 0.3},
        {"gamma": 1.5},
        {"gamma": 1.0, "detach": True},
        {"gamma": 0.0},
    ),
    "matchability_aware": ({}, {"gamma": 2.0, "alpha": 0.5}, {"gamma": 0.7}, {"detach": False}, {"gamma": 0.0}),
    "iou_aware_bce": ({}, {"alpha": 0.0}, {"alpha": 1.0, "gamma": 1.5}, {"gamma": 2.5}, {"detach": True}),
}
EVERY = [(kind, number) for kind in KINDS for number in range(len(SETTINGS[kind]))]


@dataclass(frozen=True)
class Case(QflCase):
    """One call of ``focal``; layouts, sizes, labels and scores are those of ``qfl``'s form of one logit."""

    form: str = "logits"
    kind: str = "varifocal"
    setting: int = 0  # of SETTINGS

    def call(self) -> Call:
        made = super().call()
        if self.kind == "sigmoid_focal":
            del made.tensors["scores"]
        del made.keywords["beta"], made.keywords["form"]
        made.keywords.update(kind=self.kind, **SETTINGS[self.kind][self.setting])
        return made


def adapted(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``focal`` of the tensors of a `Call`."""

    def function(*tensors: Tensor, levels: int, kind: str, **keywords: Any) -> Tensor:
        logits = list(tensors[:levels]) if levels else tensors[0]
        rest = tensors[max(levels, 1) :]
        return op(logits, rest[0] if kind == "sigmoid_focal" else rest, kind=kind, **keywords)

    return function
