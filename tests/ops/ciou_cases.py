"""Inputs for the tests of ``ciou``: those of ``giou``, and the two conventions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.ops import giou_cases
from tests.ops.row_losses import Call, upstream_of_rows

CONVENTIONS = ("ultralytics", "mmdet")


@dataclass(frozen=True)
class Case(giou_cases.Case):
    """One call of ``ciou``."""

    eps: float = 1e-7
    convention: str = "ultralytics"

    def call(self) -> Call:
        # A box without a height has a gradient of 1/eps, and float16, of pred or of target, has no number for it.
        small = torch.float16 in (self.dtype, self.target_dtype) and self.eps < 1e-3
        call = giou_cases.Case.call(self.but(eps=1e-3) if small else self)
        call.keywords["convention"] = self.convention
        return call


def magnitudes(call: Call) -> dict[str, Tensor]:
    """The sum of the absolute terms behind each result: what round-off is relative to where the terms cancel."""
    pred, target = (call.tensors[name].double() for name in ("pred", "target"))
    if not len(pred):
        return {}
    share, _, upstream = upstream_of_rows(call, len(pred))
    eps = call.keywords["eps"]
    corners = torch.stack([pred, target])
    size = corners[..., 2:] - corners[..., :2]
    common = (torch.minimum(pred, target)[:, 2:] - torch.maximum(pred, target)[:, :2]).clamp(min=0).prod(-1)
    union = (size.prod(-1).sum(0) - common + eps).abs()
    whole = (corners[..., 2:].amax(0) - corners[..., :2].amin(0)).clamp(min=0)
    diagonal = whole.square().sum(-1) + eps
    # A union that is a small difference of large areas carries their rounding.
    doubt = 1 + (size.abs().prod(-1).sum(0) + common) / union
    between = (target - pred).abs().sum(-1)

    # Half a unit in the last place of an angle, and what it makes of α = v / (rest + v).
    width, height = size[..., 0], size[..., 1] + eps
    angles = torch.atan(width / height)
    turn = (angles[1] - angles[0]).abs()
    v = 4 / math.pi**2 * turn**2
    rest = (1 - common / union).abs() + eps
    alpha = v / (rest + v)
    alpha_doubt = alpha + (rest * turn + v * doubt) / (rest + v) ** 2

    losses = share * (1 + 2 * doubt + between**2 / diagonal + turn)
    output = losses if call.keywords.get("reduction", "none") == "none" else losses.sum()
    side = torch.cat([size.abs(), whole[None]]).amax((0, 2)) + eps
    by_shape = (alpha + alpha_doubt * turn) * ((width.abs() + height.abs()) / (width**2 + height**2)).sum(0)
    by_distance = between / diagonal + between**2 * whole.amax(-1) / diagonal**2
    gradient = (upstream * (doubt / union * side + by_shape + by_distance))[:, None].expand(-1, 4)
    return {"output": output, "grad of pred": gradient, "grad of target": gradient}
