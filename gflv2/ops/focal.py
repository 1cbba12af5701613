"""``focal``: the focal family on class logits, in one operation of four kinds.

`sigmoid_focal`, `varifocal`, `matchability_aware` and `iou_aware_bce` are the kinds, under the names of the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_choice, check_number, check_tensor, values_are_checked
from gflv2.ops.levels import check_levels, rows_of
from gflv2.ops.reduction import INTEGERS, Loss, read_reduction
from gflv2.ops.reference import focal as reference
from gflv2.ops.reference.focal import Settings
from gflv2.ops.registration import constant, like_map

# α and γ where they are not given, and whether the weight of a negative is a constant to the gradient.
_DEFAULTS = {
    "sigmoid_focal": (0.25, 2.0, False),
    "varifocal": (0.75, 2.0, False),
    "matchability_aware": (1.0, 1.5, True),
    "iou_aware_bce": (0.25, 2.0, False),
}
KINDS = tuple(_DEFAULTS)


def focal(
    logits: Tensor | Sequence[Tensor],
    target: tuple[Tensor, Tensor] | Tensor,
    *,
    kind: str,
    alpha: float | None = None,
    gamma: float | None = None,
    iou_weighted: bool = True,
    detach: bool | None = None,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ over classes of a focal loss on one logit a class, σ = sigmoid(logit).

    A negative, a class other than the row's label, is a·σ^γ·softplus(logit). The element of the label by ``kind``:

    * ``"sigmoid_focal"``: α·(1 − σ)^γ·softplus(−logit), and a = 1 − α; α < 0: both factors are 1 (arXiv 1708.02002).
    * ``"varifocal"``: y·BCE(σ, y), or with ``iou_weighted=False`` BCE(σ, y); a = α (arXiv 2008.13367).
    * ``"matchability_aware"``: BCE(σ, y^γ); a = α (arXiv 2412.04234).
    * ``"iou_aware_bce"``: BCE(σ, t) with t = max(σ^α·y^(1−α), 0.01), a constant to the gradient; a = 1 (arXiv
      2406.03459).

    The packages' losses are these (`tests/ops/test_golden_focal.py` has figures of them):

    * mmdet's FocalLoss, torchvision's sigmoid_focal_loss (ATSS, FCOS, PAA, RetinaNet): ``sigmoid_focal``;
    * mmdet's VarifocalLoss (VFNet): ``varifocal``. It takes a score of 0 for a negative: such a row's label must be
      background here;
    * PP-YOLOE's: ``varifocal``; D-FINE's and RT-DETR's: ``varifocal(detach=True)``, with their α. A label with a score
      of 0 then costs nothing;
    * DEIM's MAL: ``matchability_aware``, with their ``mal_alpha`` as α;
    * the IA-BCE of LW-DETR and RF-DETR: ``iou_aware_bce``, with their ``focal_alpha`` as α.

    They differ in what they divide the sum by: see ``reduction`` and ``avg_factor``.

    An infinite logit gives the limit: a loss of 0, or +∞ where it grows without bound, with a finite gradient. A weight
    or factor of 0 on an infinite loss is 0·∞, no number. A NaN stays in its row.

    Scores come as the network leaves them, L levels (B, C, H_l, W_l), or as rows (N, C); any strides. Below, a row is
    one of N, or one of B × A with A = Σ H_l·W_l points, level-major, then row-major.

    Args:
        logits: levels or rows. float32, float16, bfloat16 or float64.
        target: (labels, scores), both (N,) or (B, A); of "sigmoid_focal" the labels alone. Labels outside [0, C) are
            background. Scores y lie in [0, 1], results are undefined otherwise, and are constants.
        kind: as above.
        alpha: None: 0.25, 0.75, 1 and 0.25, in the order of the kinds. In [0, 1] for "iou_aware_bce", at most 1 for
            "sigmoid_focal", else ≥ 0.
        gamma: exponent ≥ 0; None: 2, and 1.5 for "matchability_aware".
        iou_weighted: of "varifocal": is y the weight of the label's element?
        detach: is the weight a·σ^γ a constant to the gradient? None: that of "matchability_aware" is, others are not.
            Not with "sigmoid_focal".
        weight: (N,) or (B, A) factor of each row.
        avg_factor: with "mean", what the sum is divided by instead of the number of rows: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean" (over rows, not over classes).

    Returns:
        (N,) or (B, A) for "none", else 0-d; float32 (float64 for float64 input); 0 for no rows, whatever the average
        factor. Differentiable in the logits, once.

    Raises:
        TypeError, ValueError: a wrong kind, number, shape, dtype or device; the message names the argument. Under
            ``GFLV2_CHECK=1`` also scores outside [0, 1].
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    call, tensors = _read(logits, kind)
    labels, scores = _read_target(target, kind, rows_of(tensors), call.device)
    settings = _settings(kind, alpha, gamma, iou_weighted, detach)
    how = read_reduction(weight, avg_factor, reduction, shape=labels.shape, device=call.device)
    if scores is not None and values_are_checked() and not bool(torch.all((scores >= 0) & (scores <= 1))):
        bad_value("target[1] (scores)", "values in [0, 1]", [float(scores.min()), float(scores.max())])
    backend = backends.select("focal", call)
    if backend == "reference":
        options: dict[str, Any] = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
        return reference.focal(logits, labels, scores, settings, **options)
    return _focal.of((tensors, labels, scores), settings, how, backend)


def sigmoid_focal(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002), as `focal` has it."""
    options: dict[str, Any] = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
    return focal(logits, labels, kind="sigmoid_focal", alpha=alpha, gamma=gamma, **options)


def varifocal(
    logits: Tensor | Sequence[Tensor],
    target: tuple[Tensor, Tensor],
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    detach: bool = False,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Varifocal loss (arXiv 2008.13367), as `focal` has it."""
    options: dict[str, Any] = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
    options |= {"iou_weighted": iou_weighted, "detach": detach}
    return focal(logits, target, kind="varifocal", alpha=alpha, gamma=gamma, **options)


def matchability_aware(
    logits: Tensor | Sequence[Tensor],
    target: tuple[Tensor, Tensor],
    *,
    alpha: float | None = None,
    gamma: float = 1.5,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Matchability-aware loss (DEIM, arXiv 2412.04234), as `focal` has it; ``alpha`` None: 1, as theirs."""
    options: dict[str, Any] = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
    return focal(logits, target, kind="matchability_aware", alpha=alpha, gamma=gamma, **options)


def iou_aware_bce(
    logits: Tensor | Sequence[Tensor],
    target: tuple[Tensor, Tensor],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """IoU-aware binary cross-entropy (LW-DETR, arXiv 2406.03459), as `focal` has it."""
    options: dict[str, Any] = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
    return focal(logits, target, kind="iou_aware_bce", alpha=alpha, gamma=gamma, **options)


def _read(logits: Any, kind: Any) -> tuple[backends.Call, list[Tensor]]:
    check_choice(kind, "kind", KINDS)
    if isinstance(logits, (list, tuple)):
        tensors = check_levels(logits, "logits")
    else:
        tensors = [check_tensor(logits, "logits", shape=(None, None))]
    first = tensors[0]
    return backends.Call(first.device, first.dtype, {"kind": kind, "classes": first.shape[1]}), tensors


def _read_target(target: Any, kind: str, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Labels and scores."""
    if kind == "sigmoid_focal":
        return check_tensor(target, "target (labels)", shape=shape, dtypes=INTEGERS, device=device), None
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        bad_type("target", "(labels, scores)", target)
    labels = check_tensor(target[0], "target[0] (labels)", shape=shape, dtypes=INTEGERS, device=device)
    return labels, constant(check_tensor(target[1], "target[1] (scores)", shape=shape, device=device))


def _settings(kind: str, alpha: Any, gamma: Any, iou_weighted: Any, detach: Any) -> Settings:
    own = _DEFAULTS[kind]
    alpha = own[0] if alpha is None else alpha
    gamma = float(check_number(own[1] if gamma is None else gamma, "gamma", least=0))
    detach = bool(own[2] if detach is None else detach)
    if kind == "sigmoid_focal":
        check_number(alpha, "alpha", most=1)
        if detach:
            bad_value("detach", "False or None with sigmoid_focal", detach)
        factors = (float(alpha), 1.0 - float(alpha)) if alpha >= 0 else (1.0, 1.0)
    elif kind == "iou_aware_bce":
        factors = float(check_number(alpha, "alpha", least=0, most=1)), 1.0
    else:
        factors = 0.0, float(check_number(alpha, "alpha", least=0))
    return Settings(kind, *factors, gamma, bool(iou_weighted), detach)


def _describe(logits: Any, target: Any = None, *, kind: Any, **_: Any) -> backends.Call:
    return _read(logits, kind)[0]


# `logits`: levels (B, C, H, W), or one tensor (N, C). `scores` None: sigmoid_focal. The settings are those of
# `reference.focal.Settings`.
_focal = Loss(
    "focal",
    describe=_describe,
    tensors="Tensor[] logits, Tensor labels, Tensor? scores",
    settings="str kind, float alpha, float negative, float gamma, bool iou_weighted, bool detach",
    small=("scores",),
    indices=("labels",),
    gradients={"logits": like_map},
)
for _kind in KINDS:
    backends.alias(_kind, "focal", partial(_describe, kind=_kind))
