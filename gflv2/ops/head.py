"""The arguments that `gfl_targets`, `gfl_loss` and `decode` share: checked once, and handed on as one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.ops import backends
from gflv2.ops.checks import bad_type, bad_value, check_number, check_tensor
from gflv2.ops.dgqp import Predictor, check_predictor, predicted
from gflv2.ops.levels import (
    BoxLogits,
    check_levels,
    check_projection,
    check_scales,
    check_strides,
    read_box_logits,
    rows_of,
)
from gflv2.ops.registration import wants_gradient

# The tensors that all three registered operations begin with, in the order of `Head.rows`.
ROWS = "Tensor[] class_logits, Tensor[] box_logits, Tensor? quality, Tensor? scales, Tensor projection"


class Head(NamedTuple):
    """What a head hands over.

    Attributes:
        class_logits: L levels (B, C, H_l, W_l).
        box: L levels (B, 4·R, H_l, W_l).
        strides: of the levels, in pixels.
        scales: (L,) or None.
        projection: (R,).
        predictor: or None.
        quality: (B, A) quality logits that were given instead of a predictor, or None.
        offset: of the point in its cell.
        points: (B, A).
    """

    class_logits: list[Tensor]
    box: BoxLogits
    strides: list[float]
    scales: Tensor | None
    projection: Tensor
    predictor: Predictor | None
    quality: Tensor | None
    offset: float
    points: tuple[int, ...]

    def call(self) -> backends.Call:
        predictor, first = self.predictor, self.class_logits[0]
        facts = {
            "bins": self.box.bins,
            "classes": first.shape[1],
            "class_dtype": first.dtype,
            "topk": None if predictor is None else predictor.topk,
            "hidden": 0 if predictor is None else predictor.weight1.shape[0],
            "projection_learns": wants_gradient(self.projection),
        }
        return backends.Call(self.box.device, self.box.dtype, facts)

    def options(self, projection: Tensor | None) -> dict[str, Any]:
        """As the reference takes it, beside the logits. ``projection``: as it was given."""
        return {
            "strides": self.strides,
            "scales": self.scales,
            "projection": projection,
            "predictor": self.predictor,
            "quality_logits": self.quality,
            "offset": self.offset,
        }

    def rows(self, quality: Tensor | None) -> tuple[Any, ...]:
        """The arguments `ROWS`."""
        return self.class_logits, self.box.tensors, quality, self.scales, self.projection

    def quality_logits(self, backend: str) -> Tensor | None:
        """(B, A): what the predictor says, without gradients; or what was given."""
        if self.predictor is None:
            return self.quality
        return predicted(self.box, self.predictor, self.scales, backend)


def read_head(
    class_logits: Any,
    box_logits: Any,
    strides: Any,
    scales: Any = None,
    projection: Any = None,
    predictor: Any = None,
    quality_logits: Any = None,
    offset: Any = 0.0,
    **_: Any,
) -> Head:
    """Check them.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
    """
    if isinstance(box_logits, Tensor):
        bad_type("box_logits", "a list of level tensors (B, 4·R, H, W)", box_logits)
    box = read_box_logits(box_logits)
    class_logits = check_levels(class_logits, "class_logits", like=box.tensors)
    if class_logits[0].shape[1] == 0:
        bad_value("class_logits", "at least one class", class_logits[0])
    points = rows_of(box.tensors)
    strides = check_strides(strides, len(box.tensors))
    scales = check_scales(scales, box)
    projection = check_projection(projection, box)
    if predictor is not None:
        predictor = check_predictor(predictor, box)
        if quality_logits is not None:
            bad_value("quality_logits", "None with a predictor, which computes them", quality_logits)
    elif quality_logits is not None:
        check_tensor(quality_logits, "quality_logits", shape=points, device=box.device)
    check_number(offset, "offset")
    return Head(class_logits, box, strides, scales, projection, predictor, quality_logits, float(offset), points)


def check_rows(head: Head, rows: Any, prefix: str, kinds: dict[str, Sequence[torch.dtype]]) -> None:
    """Check the fields (B, A) of an assignment or of targets; ``kinds``: their dtypes."""
    shape, device = head.points, head.box.device
    for name, dtypes in kinds.items():
        value = getattr(rows, name)
        # The name is formed only for an error.
        if not (
            isinstance(value, Tensor) and value.dtype in dtypes and value.shape == shape and value.device == device
        ):
            check_tensor(value, f"{prefix}.{name}", shape=shape, dtypes=dtypes, device=device)


def refuse_mixed(call: backends.Call) -> str | None:
    """For `backends.register`: the kernels compute both kinds of logits in one precision."""
    if (call.facts["class_dtype"] == torch.float64) != (call.dtype == torch.float64):
        return "of class and box logits only one is float64"
    return None
