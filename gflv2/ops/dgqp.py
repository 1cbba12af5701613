"""``dgqp``: the quality of a predicted box from the shape of its four distributions (arXiv 2011.12885, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.autograd import no_double_backward, no_vmap
from gflv2.ops.checks import bad_type, bad_value, check_tensor, compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.levels import BoxLogits, check_scales, read_box_logits
from gflv2.ops.reference import dgqp as reference
from gflv2.ops.reference.dgqp import Predictor

__all__ = ["Predictor", "dgqp", "dgqp_statistics"]

TRITON_HIDDEN = 1024  # all hidden units of a cell are one tile

# `predictor`: weight1 (hidden, F), bias1 (hidden,), weight2 (hidden,), bias2 (1,) in the dtype of the arithmetic.
_SETTINGS = "Tensor? scales, int topk, bool mean, bool variance, str backend"
_ARGUMENTS = {
    "dgqp": f"Tensor[] logits, Tensor[] predictor, {_SETTINGS}",
    "dgqp_statistics": f"Tensor[] logits, {_SETTINGS}",
}
_library = torch.library.Library("gflv2", "FRAGMENT")
for _op, _arguments in _ARGUMENTS.items():
    _library.define(f"{_op}({_arguments}) -> Tensor")
    _library.define(f"{_op}_backward(Tensor grad, {_arguments}, bool[] needs) -> Tensor[]")


def dgqp_statistics(
    box_logits: Tensor | list[Tensor],
    *,
    scales: Tensor | None = None,
    topk: int = 4,
    mean: bool = True,
    variance: bool = False,
) -> Tensor:
    """How sharp each side's distribution is: P = softmax(scale·z), its k largest values, their mean and their variance.

    Args:
        box_logits: L levels (B, 4·R, H_l, W_l), channel = side·R + bin, sides left, top, right, bottom; or rows (M,
            4, R). float32, float16, bfloat16 or float64, any strides.
        scales: one factor a level, (L,) (rows: one factor); None: 1. The product is formed in float32.
        topk: number k of largest probabilities, 1 to R.
        mean: add the mean of the k values (not of all bins).
        variance: add their population variance, Σ(t − mean)²/k.

    Returns:
        (B, A, F) for levels, (M, F) for rows, F = 4·(k + mean + variance), dimensionless; side-major, and in a side
        t1 ≥ … ≥ tk, mean, variance. float32 (float64 for float64 input). Differentiable in ``box_logits`` and
        ``scales``; of equal probabilities the lower bin is taken first.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    box = read_box_logits(box_logits)
    scales = check_scales(scales, box)
    _check_statistics(topk, mean, variance, box.bins)
    backend = backends.select("dgqp_statistics", _call(box, topk))
    if backend == "reference":
        return reference.dgqp_statistics(box_logits, scales=scales, topk=topk, mean=mean, variance=variance)
    settings = (scales, topk, mean, variance, backend)
    if wants_gradient(scales, *box.tensors):
        return _Statistics.apply(*[None] * 4, *settings, *box.tensors)
    return torch.ops.gflv2.dgqp_statistics(box.tensors, *settings)


def dgqp(
    box_logits: Tensor | list[Tensor],
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    scales: Tensor | None = None,
    topk: int = 4,
    mean: bool = True,
    variance: bool = False,
) -> Tensor:
    """Quality logit r = weight2 · relu(weight1 · F + bias1) + bias2 of every point, F as in `dgqp_statistics`.

    The joint score of class logit c is J = sigmoid(c)·sigmoid(r) (equation 1 of the paper).

    Args:
        box_logits, scales, topk, mean, variance: as `dgqp_statistics`.
        weight1: (hidden, F), or (hidden, F, 1, 1) as a convolution has it.
        bias1: (hidden,).
        weight2: (1, hidden) or (1, hidden, 1, 1).
        bias2: (1,).

    Returns:
        Quality logits (B, A) for levels, (M,) for rows. float32 (float64 for float64 box logits). Differentiable in the
        box logits, scales and the four predictor tensors.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        gflv2.ops.backends.BackendError: the requested backend cannot take the call.
    """
    box = read_box_logits(box_logits)
    scales = check_scales(scales, box)
    predictor = Predictor(weight1, bias1, weight2, bias2, topk, mean, variance)
    check_predictor(predictor, box, prefix="")
    backend = backends.select("dgqp", _call(box, topk, weight1.shape[0]))
    if backend == "reference":
        shape = {"topk": topk, "mean": mean, "variance": variance}
        return reference.dgqp(box_logits, weight1, bias1, weight2, bias2, scales=scales, **shape)
    layers = layers_of(predictor, box)
    settings = (scales, topk, mean, variance, backend)
    if wants_gradient(scales, *layers, *box.tensors):
        return _Dgqp.apply(*layers, *settings, *box.tensors)
    return torch.ops.gflv2.dgqp(box.tensors, layers, *settings)


def check_predictor(predictor: Any, box: BoxLogits, prefix: str = "predictor.") -> Predictor:
    """Check the tensors of a predictor against each other and against the box logits.

    Args:
        prefix: stands before the names in error messages.
    """
    if not isinstance(predictor, Predictor):
        bad_type("predictor", "a gflv2.ops.Predictor", predictor)
    _check_statistics(predictor.topk, predictor.mean, predictor.variance, box.bins, prefix)
    features = 4 * (predictor.topk + bool(predictor.mean) + bool(predictor.variance))
    weight1, weight2 = predictor.weight1, predictor.weight2
    check_tensor(weight1, f"{prefix}weight1", device=box.device)
    if weight1.dim() not in (2, 4) or weight1.shape[1] != features or weight1.shape[2:].numel() != 1:
        bad_value(f"{prefix}weight1", f"shape (hidden, {features}) or (hidden, {features}, 1, 1)", weight1)
    hidden = weight1.shape[0]
    if hidden == 0:
        bad_value(f"{prefix}weight1", "at least one hidden unit", weight1)
    check_tensor(predictor.bias1, f"{prefix}bias1", shape=(hidden,), device=box.device)
    check_tensor(weight2, f"{prefix}weight2", device=box.device)
    if weight2.dim() not in (2, 4) or weight2.shape[:2] != (1, hidden) or weight2.shape[2:].numel() != 1:
        bad_value(f"{prefix}weight2", f"shape (1, {hidden}) or (1, {hidden}, 1, 1)", weight2)
    check_tensor(predictor.bias2, f"{prefix}bias2", shape=(1,), device=box.device)
    return predictor


def layers_of(predictor: Predictor, box: BoxLogits) -> list[Tensor]:
    """The four tensors of a checked predictor as the registered operations take them."""
    dtype = compute_dtype(box.dtype)
    weight1, bias1, weight2, bias2 = predictor[:4]
    return [weight1.flatten(1).to(dtype), bias1.to(dtype), weight2.flatten().to(dtype), bias2.to(dtype)]


def _check_statistics(topk: Any, mean: Any, variance: Any, bins: int, prefix: str = "") -> None:
    if isinstance(topk, bool) or not isinstance(topk, int):
        bad_type(f"{prefix}topk", "an integer", topk)
    if not 1 <= topk <= bins:
        bad_value(f"{prefix}topk", f"1 to {bins}, the number of bins", topk)
    for name, value in (("mean", mean), ("variance", variance)):
        if not isinstance(value, bool):
            bad_type(f"{prefix}{name}", "True or False", value)


def _call(box: BoxLogits, topk: int, hidden: int = 0) -> backends.Call:
    return backends.Call(box.device, box.dtype, {"bins": box.bins, "topk": topk, "hidden": hidden})


def _describe(box_logits: Any, weight1: Any = None, *_: Any, topk: int = 4, **__: Any) -> backends.Call:
    hidden = 0 if weight1 is None else check_tensor(weight1, "weight1").shape[0]
    return _call(read_box_logits(box_logits), topk, hidden)


def refuse_triton(call: backends.Call) -> str | None:
    """Why the Triton kernels cannot take a call."""
    hidden = call.facts["hidden"]
    if hidden > TRITON_HIDDEN:
        return f"the Triton kernels take at most {TRITON_HIDDEN} hidden units, not {hidden}"
    return backends.refuse_double(call)


backends.register("dgqp", {**backends.EVERYWHERE, "triton": refuse_triton}, _describe)
backends.register("dgqp_statistics", backends.EVERYWHERE, _describe)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _gradients(ctx: Any, grad: Tensor):
    """Both operations' backward: first the four tensors of the predictor, then scales, settings, levels."""
    saved = ctx.saved_tensors  # asked for once: under activation checkpointing each time computes forward anew
    predictor, scales, logits = saved[:4], saved[4], saved[5:]
    wanted = ctx.needs_input_grad
    needs = [any(wanted[9:]), any(wanted[:4]), wanted[4]]
    if predictor[0] is None:
        settings = (*ctx.settings, [needs[0], needs[2]])
        found = torch.ops.gflv2.dgqp_statistics_backward(grad, logits, scales, *settings)
    else:
        found = torch.ops.gflv2.dgqp_backward(grad, logits, predictor, scales, *ctx.settings, needs)
    grad_logits, grad_predictor, grad_scales = _split(found, len(logits), needs)
    return (
        *(grad_predictor or [None] * 4),
        grad_scales,
        *[None] * 4,
        *(grad_logits or [None] * len(logits)),
    )


class _Dgqp(torch.autograd.Function):
    """Levels come last and flat: a list given to ``apply`` would get no gradient, silently."""

    @staticmethod
    def forward(ctx: Any, weight1, bias1, weight2, bias2, scales, topk, mean, variance, backend, *logits) -> Tensor:
        predictor = (weight1, bias1, weight2, bias2)
        ctx.save_for_backward(*predictor, scales, *logits)
        ctx.settings = (topk, mean, variance, backend)
        if weight1 is None:
            return torch.ops.gflv2.dgqp_statistics(logits, scales, *ctx.settings)
        return torch.ops.gflv2.dgqp(logits, predictor, scales, *ctx.settings)

    backward = staticmethod(no_double_backward("dgqp")(_gradients))


class _Statistics(_Dgqp):
    """The same without a predictor: four times None in its place."""

    backward = staticmethod(no_double_backward("dgqp_statistics")(_gradients))


def _split(gradients: list[Tensor], levels: int, needs: list[bool]) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Gradients of the logits, of the predictor and of the scales; empty or None where ``needs`` says no."""
    first = levels if needs[0] else 0
    return gradients[:first], gradients[first : first + 4 * needs[1]], gradients[-1] if needs[2] else None


def _new_output(logits: list[Tensor], predictor: list[Tensor], topk: int, mean: bool, variance: bool) -> Tensor:
    shape = BoxLogits(logits, logits[0].dim() == 3, 0).result_shape(4 * (topk + mean + variance))
    return logits[0].new_empty(shape[:-1] if predictor else shape, dtype=compute_dtype(logits[0].dtype))


def _new_gradients(
    logits: list[Tensor], predictor: list[Tensor], scales: Tensor | None, needs: list[bool]
) -> list[Tensor]:
    gradients = [torch.empty_like(level) for level in logits] if needs[0] else []
    if needs[1]:
        gradients += [tensor.new_empty(tensor.shape) for tensor in predictor]
    if needs[2]:
        gradients.append(torch.empty_like(scales))
    return gradients


def _forward(logits, predictor, scales, topk, mean, variance, backend) -> Tensor:
    out = _new_output(logits, predictor, topk, mean, variance)
    if out.numel():
        layers = [tensor.contiguous() for tensor in predictor]
        implementation("dgqp", backend).dgqp_forward(logits, layers, scales, topk, mean, variance, out)
    return out


def _backward(grad, logits, predictor, scales, topk, mean, variance, backend, needs) -> list[Tensor]:
    gradients = _new_gradients(logits, predictor, scales, needs)
    if not grad.numel():
        return [gradient.zero_() for gradient in gradients]
    layers = [tensor.contiguous() for tensor in predictor]
    implementation("dgqp", backend).dgqp_backward(
        grad.contiguous(),
        logits,
        layers,
        scales,
        topk,
        mean,
        variance,
        *_split(gradients, len(logits), needs),
    )
    return gradients


# --- The operations as they are registered. `needs`: gradients of the logits, (of the predictor,) of the scales. ---


def _forward_statistics(logits, scales, topk, mean, variance, backend) -> Tensor:
    return _forward(logits, [], scales, topk, mean, variance, backend)


def _backward_statistics(grad, logits, scales, topk, mean, variance, backend, needs) -> list[Tensor]:
    return _backward(grad, logits, [], scales, topk, mean, variance, backend, [needs[0], False, needs[1]])


for _key in ("CPU", "CUDA"):
    _library.impl("dgqp", _forward, _key)
    _library.impl("dgqp_backward", _backward, _key)
    _library.impl("dgqp_statistics", _forward_statistics, _key)
    _library.impl("dgqp_statistics_backward", _backward_statistics, _key)
for _op in _ARGUMENTS:
    no_vmap(_op, _library)


@torch.library.register_fake("gflv2::dgqp", lib=_library)
def _(logits, predictor, scales, topk, mean, variance, backend) -> Tensor:
    return _new_output(logits, predictor, topk, mean, variance)


@torch.library.register_fake("gflv2::dgqp_statistics", lib=_library)
def _(logits, scales, topk, mean, variance, backend) -> Tensor:
    return _new_output(logits, [], topk, mean, variance)


@torch.library.register_fake("gflv2::dgqp_backward", lib=_library)
def _(grad, logits, predictor, scales, topk, mean, variance, backend, needs) -> list[Tensor]:
    return _new_gradients(logits, predictor, scales, needs)


@torch.library.register_fake("gflv2::dgqp_statistics_backward", lib=_library)
def _(grad, logits, scales, topk, mean, variance, backend, needs) -> list[Tensor]:
    return _new_gradients(logits, [], scales, [needs[0], False, needs[1]])
