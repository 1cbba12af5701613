"""The native ``qfl``, called with torch tensors.

S below is the dtype of the arithmetic: float32, or float64 where the scores are float64. A `Reduction` comes from
``Reduction.on``; results are (B, A), (N,) or () tensors in S, contiguous, and so are their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops.native.loading import library
from gflv2.ops.native.reduction import describe_reduction
from gflv2.ops.native.tensors import DTYPES, map_strides, place, pointer
from gflv2.ops.reduction import Reduction

_FORMS = {"logits": 0, "class_logits": 1, "probabilities": 2}


def qfl_forward(
    values: Sequence[Tensor],
    quality: Tensor | None,
    labels: Tensor | None,
    scores: Tensor,
    form: str,
    beta: float,
    reduction: Reduction,
    out: Tensor,
) -> None:
    """Losses of the rows, or their total, written to ``out``.

    Args:
        values: L levels (B, C, H, W), or one tensor (N, C); any strides.
        quality: (B, A) or (N,) S, contiguous, with form "class_logits".
        labels: (B, A) or (N,) int64, contiguous; None: the target is dense.
        scores: (B, A) or (N,) S, contiguous; dense: (N, C) S, any strides.
    """
    _qfl(False, values, quality, labels, scores, form, beta, reduction, out, None, [], None)


def qfl_backward(
    grad: Tensor | None,
    values: Sequence[Tensor],
    quality: Tensor | None,
    labels: Tensor | None,
    scores: Tensor,
    form: str,
    beta: float,
    reduction: Reduction,
    grad_values: Sequence[Tensor],
    grad_quality: Tensor | None,
    out: Tensor | None = None,
) -> None:
    """Gradients, written to ``grad_values`` (like ``values``, or empty) and ``grad_quality`` (S, or None). On a CPU
    ``grad`` may be None, which means 1, and the result is written too where ``out`` is given."""
    _qfl(True, values, quality, labels, scores, form, beta, reduction, out, grad, grad_values, grad_quality)


def _qfl(
    backward: bool,
    values: Sequence[Tensor],
    quality: Tensor | None,
    labels: Tensor | None,
    scores: Tensor,
    form: str,
    beta: float,
    reduction: Reduction,
    out: Tensor | None,
    grad: Tensor | None,
    grad_values: Sequence[Tensor],
    grad_quality: Tensor | None,
) -> None:
    module = library()
    first = values[0]
    device, where = place(first)
    levels: list[int] = []
    for index, level in enumerate(values):
        height, width = (1, level.shape[0]) if level.dim() == 2 else level.shape[2:]
        levels += (level.data_ptr(), height, width, *map_strides(level))
        if grad_values:
            levels += (grad_values[index].data_ptr(), *map_strides(grad_values[index]))
    batch = 1 if first.dim() == 2 else first.shape[0]
    head = (len(values), levels, bool(grad_values))
    workspace = None
    if device >= 0 and reduction.total and not backward:
        size = module.qfl_workspace(levels, len(values), bool(grad_values), batch)
        workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
    module.qfl(
        backward,
        device,
        where,
        DTYPES[first.dtype],
        _FORMS[form],
        first.shape[1],
        batch,
        *head,
        pointer(quality),
        pointer(labels),
        scores.data_ptr(),
        *(scores.stride() if labels is None else (0, 0)),
        beta,
        describe_reduction(module, reduction, out, grad),
        pointer(grad_quality),
        pointer(workspace),
    )
