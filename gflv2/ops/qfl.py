"""``qfl``: Quality Focal Loss (arXiv 2006.04388, equation 5) on one logit, on class × quality, or on a probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor, compute_dtype, values_are_checked
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import check_levels
from gflv2.ops.one_pass import one_pass, ordinary, prepared
from gflv2.ops.reduction import ARGUMENTS, INTEGERS, Reduction, check_reduction, resolve
from gflv2.ops.reference import qfl as reference

FORMS = ("logits", "class_logits", "probabilities")

# `values`: levels (B, C, H, W), or one tensor (N, C). `labels` None: `scores` is the dense target (N, C).
_ARGUMENTS = (
    f"Tensor[] values, Tensor? quality, Tensor? labels, Tensor scores, str form, float beta, {ARGUMENTS}, str backend"
)
_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define(f"qfl({_ARGUMENTS}) -> Tensor")
_library.define(f"qfl_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) -> Tensor[]")


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
        (N,) or (B, A) for "none", else 0-d; float32 (float64 for float64 input); 0 for no rows. Differentiable in the
        logits or probabilities, once.

    Raises:
        TypeError, ValueError: none or several forms, a wrong shape, dtype or device; the message names the argument.
            Under ``GFLV2_CHECK=1`` also probabilities or scores outside [0, 1].
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    forms = {"logits": logits, "class_logits": class_logits, "probabilities": probabilities}
    scores = _read(forms, quality_logits)
    _check_target(target, scores)
    check_number(beta, "beta", least=0)
    check_reduction(weight, avg_factor, reduction, shape=scores.shape, device=scores.device)
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
    settings = (labels, y.detach(), scores.form, float(beta), *resolve(weight, avg_factor, reduction), backend)
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (quality_logits, *scores.tensors)
    ):
        return _Qfl.apply(quality_logits, *settings, *scores.tensors)
    return torch.ops.gflv2.qfl(scores.tensors, quality_logits, *settings)


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
        return _rows_of(self.tensors)

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


backends.register(
    "qfl",
    backends.EVERYWHERE,
    _describe,
)


class _Qfl(torch.autograd.Function):
    """Levels come last and flat: a list given to ``apply`` would get no gradient, silently."""

    @staticmethod
    def forward(
        ctx: Any, quality, labels, scores, form, beta, weight, factor, divisor, reduction, backend, *values
    ) -> Tensor:
        ctx.save_for_backward(quality, labels, scores, weight, factor, *values)
        ctx.settings = (form, beta), (divisor, reduction, backend)
        (kind, rest) = ctx.settings
        ctx.one_pass = one_pass(backend, reduction, quality, *values)
        arguments = (list(values), quality, labels, scores, *kind, weight, factor, *rest)
        if not ctx.one_pass:
            return torch.ops.gflv2.qfl(*arguments)
        loss, *ctx.prepared = with_gradients(*arguments, _needs(ctx))
        return loss

    @staticmethod
    @no_double_backward("qfl")
    def backward(ctx: Any, grad: Tensor):
        quality, labels, scores, weight, factor, *values = ctx.saved_tensors
        kind, rest = ctx.settings
        arguments = (values, quality, labels, scores, *kind, weight, factor, *rest, _needs(ctx))
        if ctx.one_pass and ordinary(grad):
            gradients = prepared(ctx, grad, lambda: with_gradients(*arguments)[1:])
        else:
            gradients = torch.ops.gflv2.qfl_backward(grad, *arguments)
        levels, grad_quality = apart(gradients, len(values), _needs(ctx))
        return grad_quality, *[None] * 9, *(levels or [None] * len(values))


def _needs(ctx: Any) -> list[bool]:
    """Are gradients of the values needed, of the quality?"""
    return [any(ctx.needs_input_grad[10:]), ctx.needs_input_grad[0]]


def _rows_of(values: Sequence[Tensor]) -> tuple[int, ...]:
    """Shape of one number a row: (N,) or (B, A)."""
    first = values[0]
    return (first.shape[0],) if first.dim() == 2 else (first.shape[0], sum(v.shape[2] * v.shape[3] for v in values))


def _new_gradients(values: list[Tensor], quality: Tensor | None, needs: list[bool]) -> list[Tensor]:
    gradients = [torch.empty_like(level) for level in values] if needs[0] else []
    if needs[1]:
        gradients.append(quality.new_empty(quality.shape))
    return gradients


def apart(gradients: list[Tensor], count: int, needs: Sequence[bool]) -> tuple[list[Tensor], Tensor | None]:
    """Of the values (empty where they are not needed) and of the quality."""
    return gradients[:count] if needs[0] else [], gradients[-1] if needs[1] else None


def _dense(
    values: list[Tensor], quality: Tensor | None, labels: Tensor | None, scores: Tensor
) -> tuple[Tensor | None, ...]:
    """The arguments of the size of the rows as the kernels take them; a dense target keeps its strides."""
    dtype = compute_dtype(values[0].dtype)
    quality = None if quality is None else quality.to(dtype).contiguous()
    labels = None if labels is None else labels.to(torch.int64).contiguous()
    scores = scores.to(dtype)
    return quality, labels, scores if labels is None else scores.contiguous()


def _forward(values, quality, labels, scores, form, beta, weight, factor, divisor, reduction, backend) -> Tensor:
    reduction, rows = Reduction(weight, factor, divisor, reduction), _rows_of(values)
    out = reduction.new_result(rows, values[0])
    if not any(level.numel() for level in values):
        return out.zero_()
    small = _dense(values, quality, labels, scores)
    implementation("qfl", backend).qfl_forward(values, *small, form, beta, reduction.on(rows, out.dtype), out)
    return out


def _backward(
    grad, values, quality, labels, scores, form, beta, weight, factor, divisor, reduction, backend, needs
) -> list[Tensor]:
    reduction, rows = Reduction(weight, factor, divisor, reduction), _rows_of(values)
    gradients = _new_gradients(values, quality, needs)
    if not any(level.numel() for level in values):
        return [gradient.zero_() for gradient in gradients]
    small = _dense(values, quality, labels, scores)
    # The quality's gradient is formed in the dtype of the arithmetic, and rounded once to its own.
    grad_quality = torch.empty_like(small[0]) if needs[1] else None
    levels, _ = apart(gradients, len(values), needs)
    reduction = reduction.on(rows, compute_dtype(values[0].dtype))
    implementation("qfl", backend).qfl_backward(
        grad.contiguous(), values, *small, form, beta, reduction, levels, grad_quality
    )
    if needs[1]:
        gradients[-1].copy_(grad_quality)
    return gradients


def with_gradients(
    values, quality, labels, scores, form, beta, weight, factor, divisor, reduction, backend, needs
) -> list[Tensor]:
    """The loss, and the gradients that are needed, for an upstream gradient of 1; where `one_pass` allows it."""
    reduction, rows = Reduction(weight, factor, divisor, reduction), _rows_of(values)
    out, gradients = reduction.new_result(rows, values[0]), _new_gradients(values, quality, needs)
    if not any(level.numel() for level in values):
        return [out.zero_(), *(gradient.zero_() for gradient in gradients)]
    small, reduction = _dense(values, quality, labels, scores), reduction.on(rows, out.dtype)
    where = apart(gradients, len(values), needs)
    implementation("qfl", backend).qfl_backward(None, values, *small, form, beta, reduction, *where, out)
    return [out, *gradients]


for _key in ("CPU", "CUDA"):
    _library.impl("qfl", _forward, _key)
    _library.impl("qfl_backward", _backward, _key)
no_vmap("qfl", _library)


@torch.library.register_fake("gflv2::qfl", lib=_library)
def _(values, quality, labels, scores, form, beta, weight, factor, divisor, reduction, backend) -> Tensor:
    return Reduction(weight, factor, divisor, reduction).new_result(_rows_of(values), values[0])


@torch.library.register_fake("gflv2::qfl_backward", lib=_library)
def _(
    grad, values, quality, labels, scores, form, beta, weight, factor, divisor, reduction, backend, needs
) -> list[Tensor]:
    return _new_gradients(values, quality, needs)
