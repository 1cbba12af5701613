"""torchvision's GIoU loss, and its sigmoid focal loss for orientation (another loss than the quality focal loss)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness.cases import Case


def _ops() -> ModuleType:
    try:
        import torchvision.ops
    except ImportError as error:
        raise peers.Absent("not installed: pip install torchvision") from error
    return torchvision.ops


def sigmoid_focal_loss(case: Case) -> Callable[..., Tensor] | None:
    if case.form != "logits":
        return None
    loss = _ops().sigmoid_focal_loss

    def call(target, *, logits, weight, avg_factor) -> Tensor:
        labels, scores = target
        hit = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
        dense = torch.where(hit, scores[:, None], 0.0)
        return (loss(logits, dense, reduction="none") * weight[:, None]).sum() / avg_factor

    return call


def sigmoid_focal(case: Case) -> Callable[..., Tensor] | None:
    if case.form != "sigmoid_focal":
        return None
    loss = _ops().sigmoid_focal_loss

    def call(logits, target, *, kind, weight, avg_factor) -> Tensor:
        dense = torch.nn.functional.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
        return (loss(logits, dense, reduction="none") * weight[:, None]).sum() / avg_factor

    return call


def giou(case: Case) -> Callable[..., Tensor]:
    loss = _ops().generalized_box_iou_loss
    return lambda pred, target, *, weight, avg_factor: (loss(pred, target) * weight).sum() / avg_factor
