"""``dgqp``: the quality of a predicted box from the shape of its four distributions (arXiv 2011.12885, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_integer, check_tensor, compute_dtype
from gflv2.ops.levels import BoxLogits, check_scales, read_box_logits, rows_of
from gflv2.ops.reference import dgqp as reference
from gflv2.ops.reference.dgqp import Predictor
from gflv2.ops.registration import Operation, as_rows, like_map

__all__ = ["Predictor", "dgqp", "dgqp_statistics"]

TRITON_HIDDEN = 1024  # all hidden units of a cell are one tile


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
    topk = int(topk)
    backend = backends.select("dgqp_statistics", _call(box, topk))
    if backend == "reference":
        return reference.dgqp_statistics(box_logits, scales=scales, topk=topk, mean=mean, variance=variance)
    return _statistics((box.tensors, scales), (topk, mean, variance, backend))


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
    predictor = check_predictor(Predictor(weight1, bias1, weight2, bias2, topk, mean, variance), box, prefix="")
    topk = predictor.topk
    backend = backends.select("dgqp", _call(box, topk, weight1.shape[0]))
    if backend == "reference":
        shape = {"topk": topk, "mean": mean, "variance": variance}
        return reference.dgqp(box_logits, weight1, bias1, weight2, bias2, scales=scales, **shape)
    return _dgqp((box.tensors, predictor[:4], scales), (topk, mean, variance, backend))


def predicted(box: BoxLogits, predictor: Predictor, scales: Tensor | None, backend: str) -> Tensor:
    """Quality logits of every row, from arguments that are checked already; without gradients."""
    *layers, topk, mean, variance = predictor
    return _dgqp.constant((box.tensors, layers, scales), (topk, mean, variance, backend))


def check_predictor(predictor: Any, box: BoxLogits, prefix: str = "predictor.") -> Predictor:
    """Check the tensors of a predictor against each other and against the box logits, and return it.

    Args:
        prefix: stands before the names in error messages.
    """
    if isinstance(predictor, Predictor) and _is_usual(predictor, box):
        return predictor
    if not isinstance(predictor, Predictor):
        bad_type("predictor", "a gflv2.ops.Predictor", predictor)
    _check_statistics(predictor.topk, predictor.mean, predictor.variance, box.bins, prefix)
    # Not bool(…): torch 2.9 cannot add a symbolic size to a truth value.
    features = 4 * (predictor.topk + (1 if predictor.mean else 0) + (1 if predictor.variance else 0))
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
    return predictor if type(predictor.topk) is int else predictor._replace(topk=int(predictor.topk))  # NumPy's


def _is_usual(predictor: Predictor, box: BoxLogits) -> bool:
    """The checks below in few steps, for a predictor of the usual kind: float32, as a convolution has it."""
    weight1, bias1, weight2, bias2, topk, mean, variance = predictor
    if type(topk) is not int or not 1 <= topk <= box.bins or type(mean) is not bool or type(variance) is not bool:
        return False
    for layer in (weight1, bias1, weight2, bias2):
        if not isinstance(layer, Tensor) or layer.dtype != torch.float32 or layer.device != box.device:
            return False
    hidden = bias1.shape[0] if bias1.dim() == 1 else 0
    features = 4 * (topk + (1 if mean else 0) + (1 if variance else 0))
    shapes = ((hidden, features, 1, 1), (1, hidden, 1, 1), (1,))
    return hidden > 0 and (weight1.shape, weight2.shape, bias2.shape) == shapes


def _check_statistics(topk: Any, mean: Any, variance: Any, bins: int, prefix: str = "") -> None:
    check_integer(topk, f"{prefix}topk")
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


def _new_quality(logits, *_: Any) -> Tensor:
    return logits[0].new_empty(rows_of(logits), dtype=compute_dtype(logits[0].dtype))


def _new_statistics(logits, scales, topk, mean, variance) -> Tensor:
    shape = (*rows_of(logits), 4 * (topk + mean + variance))
    return logits[0].new_empty(shape, dtype=compute_dtype(logits[0].dtype))


_dgqp = Operation(
    "dgqp",
    describe=_describe,
    refusals={**backends.EVERYWHERE, "triton": refuse_triton},
    tensors="Tensor[] logits, Tensor[] predictor, Tensor? scales",
    settings="int topk, bool mean, bool variance",
    new_results=_new_quality,
    small=("predictor", "scales"),
    gradients={"logits": like_map, "predictor": as_rows, "scales": as_rows},
)
_statistics = Operation(
    "dgqp_statistics",
    describe=_describe,
    kernels="dgqp",
    fixed={"predictor": []},
    tensors="Tensor[] logits, Tensor? scales",
    settings="int topk, bool mean, bool variance",
    new_results=_new_statistics,
    small=("scales",),
    gradients={"logits": like_map, "scales": as_rows},
)
