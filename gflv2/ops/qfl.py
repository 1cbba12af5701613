"""``qfl``: Quality Focal Loss (arXiv 2006.04388, equation 5) on one logit, on class × quality, or on a probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor, compute_dtype, values_are_checked
from gflv2.ops.levels import check_levels, rows_of
from gflv2.ops.reduction import INTEGERS, Loss, read_reduction
from gflv2.ops.reference import qfl as reference
from gflv2.ops.registration import Argument, as_rows, convert, first_of, like_map

FORMS = ("logits", "class_logits", "probabilities")


def qfl(
    target: tuple[Tensor, Tensor] | Tensor,
    *,
    logits: Tensor | Sequence[Tensor] | None = None,
    class_logits: Tensor | Sequence[Tensor] | None = None,
    quality_logits: Tensor | None = None,
    probabilities: Tensor | Sequence[Tensor] | None = None,
    beta: float = 2.0,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ over classes of BCE(J, y)·|y − J|^β, the modulating factor included in the gradient.

    Exactly one of three named forms says what J is, so that a probability is never taken for a logit:

    * ``logits=c``: J = sigmoid(c);
    * ``class_logits=c, quality_logits=r``: J = sigmoid(c)·sigmoid(r), one quality for all classes of a row
      (arXiv 2011.12885, equation 1);
    * ``probabilities=p``: J = p, its logarithms floored at −100. Prefer the others: only they stay exact as J → 0 or 1.

    An infinite logit gives the limit. The loss is 0 where J → y (−∞ on background), and +∞ where it grows without
    bound: J → 1 with y < 1, or J → 0 with y > 0. Its gradient is finite also there: (1 − y)^(β+1) or −y^(β+1) for the
    logit that takes J to its limit, and half of that for each of two logits +∞. A weight of 0 on an infinite loss is
    0·∞, no number. A NaN stays in its row.

    Scores come as the network leaves them, L levels (B, C, H_l, W_l), or as rows (N, C); any strides. Below, a row is
    one of N, or one of B × A with A = Σ H_l·W_l points, level-major, then row-major.

    Args:
        target: (labels, scores), both (N,) or (B, A): y is the score at the label's class and 0 elsewhere; labels
            outside [0, C) are background. With rows also the dense y, (N, C). Scores lie in [0, 1].
        logits, class_logits, probabilities: levels or rows. float32, float16, bfloat16 or float64.
        quality_logits: (N,) or (B, A).
        beta: exponent β ≥ 0. For β < 1 the derivative of the factor at J = y is defined as 0.
        weight: (N,) or (B, A) factor of each row.
        avg_factor: with "mean", what the sum is divided by instead of the number of rows: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean" (over rows, not over classes).

    Returns:
        (N,) or (B, A) for "none", else 0-d; float32 (float64 for float64 input); 0 for no rows, whatever the average
        factor. Differentiable in the logits or probabilities, once.

    Raises:
        TypeError, ValueError: none or several forms, a wrong shape, dtype or device; the message names the argument.
            Under ``GFLV2_CHECK=1`` also probabilities or scores outside [0, 1].
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    forms = {"logits": logits, "class_logits": class_logits, "probabilities": probabilities}
    scores = _read(forms, quality_logits)
    _check_target(target, scores)
    check_number(beta, "beta", least=0)
    how = read_reduction(weight, avg_factor, reduction, shape=scores.shape, device=scores.device)
    if values_are_checked():
        _check_values(target, scores)
    backend = backends.select("qfl", scores.call())
    if backend == "reference":
        return reference.qfl(
            target,
            **{scores.form: forms[scores.form]},
            quality_logits=quality_logits,
            beta=float(beta),
            weight=weight,
            avg_factor=avg_factor,
            reduction=reduction,
        )
    labels, y = (None, target) if isinstance(target, Tensor) else target
    return OPERATION.of((scores.tensors, quality_logits, labels, y.detach()), (scores.form, float(beta)), how, backend)


@dataclass
class _Scores:
    """A checked score map."""

    form: str
    tensors: list[Tensor]
    rows: bool
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(N,) or (B, A)."""
        return rows_of(self.tensors)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def call(self) -> backends.Call:
        return backends.Call(self.device, self.tensors[0].dtype, {"form": self.form, "classes": self.classes})


def _read(forms: dict[str, Any], quality_logits: Any) -> _Scores:
    given = [name for name in FORMS if forms[name] is not None]
    if len(given) != 1:
        text = "exactly one of logits, class_logits (with quality_logits) and probabilities"
        raise ValueError(f"qfl: expected {text}, got {', '.join(given) or 'none of them'}")
    name = given[0]
    if (name == "class_logits") != (quality_logits is not None):
        expected = "the quality logits that go with class_logits" if name == "class_logits" else f"None with {name}"
        bad_value("quality_logits", expected, quality_logits)
    rows = not isinstance(forms[name], (list, tuple))
    if rows:
        tensors = [check_tensor(forms[name], name, shape=(None, None))]
    else:
        tensors = check_levels(forms[name], name)
    scores = _Scores(name, tensors, rows, tensors[0].shape[1])
    if quality_logits is not None:
        check_tensor(quality_logits, "quality_logits", shape=scores.shape, device=scores.device)
    return scores


def _check_target(target: Any, scores: _Scores) -> None:
    if isinstance(target, Tensor):
        if not scores.rows:
            bad_type("target", "(labels (B, A), scores (B, A)) with levels", target)
        check_tensor(target, "target", shape=(*scores.shape, scores.classes), device=scores.device)
        return
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        bad_type("target", "(labels, scores), or with rows a tensor (N, C)", target)
    check_tensor(target[0], "target[0] (labels)", shape=scores.shape, dtypes=INTEGERS, device=scores.device)
    check_tensor(target[1], "target[1] (scores)", shape=scores.shape, device=scores.device)


def _check_values(target: tuple[Tensor, Tensor] | Tensor, scores: _Scores) -> None:
    probabilities = scores.tensors if scores.form == "probabilities" else []
    checked = [("target", target if isinstance(target, Tensor) else target[1])]
    for name, values in [*checked, *(("probabilities", level) for level in probabilities)]:
        if not bool(torch.all((values >= 0) & (values <= 1))):
            bad_value(name, "values in [0, 1]", [float(values.min()), float(values.max())])


def _describe(_: Any = None, *, quality_logits: Any = None, **arguments: Any) -> backends.Call:
    return _read({name: arguments.get(name) for name in FORMS}, quality_logits).call()


class _Qfl(Loss):
    def _converted(self, tensors: Sequence[Argument]) -> list[Argument]:
        converted = super()._converted(tensors)
        values, _, labels, scores = converted[:4]
        dtype = compute_dtype(first_of(values).dtype)
        # A dense target keeps its strides.
        converted[3] = scores.to(dtype) if labels is None else convert(scores, dtype)
        return converted


# `values`: levels (B, C, H, W), or one tensor (N, C). `labels` None: `scores` is the dense target (N, C).
OPERATION = _Qfl(
    "qfl",
    describe=_describe,
    tensors="Tensor[] values, Tensor? quality, Tensor? labels, Tensor scores",
    settings="str form, float beta",
    small=("quality",),
    indices=("labels",),
    gradients={"values": like_map, "quality": as_rows},
)
