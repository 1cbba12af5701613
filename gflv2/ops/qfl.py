"""``qfl``: Quality Focal Loss (arXiv 2006.04388, equation 5) on one logit, on class × quality, or on a probability."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_tensor, values_are_checked
from gflv2.ops.reduction import INTEGERS, check_reduction
from gflv2.ops.reference import qfl as reference


def qfl(
    target: tuple[Tensor, Tensor] | Tensor,
    *,
    logits: Tensor | None = None,
    class_logits: Tensor | None = None,
    quality_logits: Tensor | None = None,
    probabilities: Tensor | None = None,
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

    Args:
        target: (labels (N,), scores (N,)): y is the score at the label's class and 0 elsewhere; labels outside [0, C)
            are background. Or the dense y, (N, C). Scores lie in [0, 1].
        logits, class_logits, probabilities: (N, C). float32, float16, bfloat16 or float64.
        quality_logits: (N,).
        beta: exponent β ≥ 0. For β < 1 the derivative of the factor at J = y is defined as 0.
        weight: (N,) factor of each row.
        avg_factor: with "mean", what the sum is divided by instead of N: a number or a 0-d tensor.
        reduction: "none", "sum" or "mean" (over rows, not over classes).

    Returns:
        (N,) for "none", else 0-d; float32 (float64 for float64 input); 0 for no rows. Differentiable in the logits or
        probabilities, once.

    Raises:
        TypeError, ValueError: none or several forms, a wrong shape, dtype or device; the message names the argument.
            Under ``GFLV2_CHECK=1`` also probabilities or scores outside [0, 1].
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    forms = {"logits": logits, "class_logits": class_logits, "probabilities": probabilities}
    call = _describe(target, quality_logits=quality_logits, **forms)
    name, values = _form(forms, quality_logits)
    _check_target(target, values)
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        bad_type("beta", "a number", beta)
    if not (0 <= beta < math.inf):
        bad_value("beta", "a finite number ≥ 0", beta)
    check_reduction(weight, avg_factor, reduction, count=values.shape[0], device=values.device)
    if values_are_checked():
        _check_values(target, probabilities)
    backends.select("qfl", call)
    return reference.qfl(
        target,
        **{name: values},
        quality_logits=quality_logits,
        beta=float(beta),
        weight=weight,
        avg_factor=avg_factor,
        reduction=reduction,
    )


def _form(forms: dict[str, Tensor | None], quality_logits: Tensor | None) -> tuple[str, Tensor]:
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        text = "exactly one of logits, class_logits (with quality_logits) and probabilities"
        raise ValueError(f"qfl: expected {text}, got {', '.join(given) or 'none of them'}")
    name = given[0]
    if (name == "class_logits") != (quality_logits is not None):
        expected = (
            "the quality logits (N,) that go with class_logits" if name == "class_logits" else f"None with {name}"
        )
        bad_value("quality_logits", expected, quality_logits)
    return name, forms[name]


def _check_target(target: Any, values: Tensor) -> None:
    count, classes = values.shape
    if isinstance(target, Tensor):
        check_tensor(target, "target", shape=(count, classes), device=values.device)
        return
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        bad_type("target", "(labels (N,), scores (N,)) or a tensor (N, C)", target)
    check_tensor(target[0], "target[0] (labels)", shape=(count,), dtypes=INTEGERS, device=values.device)
    check_tensor(target[1], "target[1] (scores)", shape=(count,), device=values.device)


def _check_values(target: tuple[Tensor, Tensor] | Tensor, probabilities: Tensor | None) -> None:
    scores = target if isinstance(target, Tensor) else target[1]
    for name, values in (("target", scores), ("probabilities", probabilities)):
        if values is not None and not bool(torch.all((values >= 0) & (values <= 1))):
            bad_value(name, "values in [0, 1]", [float(values.min()), float(values.max())])


def _describe(
    target: Any = None,
    *,
    logits: Tensor | None = None,
    class_logits: Tensor | None = None,
    quality_logits: Tensor | None = None,
    probabilities: Tensor | None = None,
    **_: Any,
) -> backends.Call:
    name, values = _form(
        {"logits": logits, "class_logits": class_logits, "probabilities": probabilities}, quality_logits
    )
    check_tensor(values, name, shape=(None, None))
    if quality_logits is not None:
        check_tensor(quality_logits, "quality_logits", shape=(values.shape[0],), device=values.device)
    return backends.Call(values.device, values.dtype, {"form": name, "classes": values.shape[1]})


backends.register("qfl", {"reference": None}, _describe)
