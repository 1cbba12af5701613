"""Inputs for the tests of ``giou`` and ``iou``: every memory layout, dtype, reduction, and relation of two boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from tests.ops.row_losses import Call, Reduced, upstream_of_rows

LAYOUTS = ("dense", "sliced", "sides apart", "steps", "expanded")
RELATIONS = ("near", "apart", "equal", "inside", "grid", "empty", "turned", "huge", "tiny")
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One call of ``giou`` (``reduced`` given) or of ``iou``; the tensors follow from it and the seed."""

    layout: str = "dense"
    target_layout: str = "dense"
    dtype: torch.dtype = torch.float32
    target_dtype: torch.dtype | None = None  # as pred's
    rows: int = 700  # several blocks of a kernel, and a tail
    relation: str = "any"
    reduced: Reduced | None = Reduced()
    eps: float = EPS
    seed: int = 0

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    def call(self) -> Call:
        draw = torch.Generator().manual_seed(self.seed)
        pairs = [self._pairs(relation, draw) for relation in RELATIONS]
        if self.relation == "any":
            kind = torch.randint(len(RELATIONS), (self.rows,), generator=draw)
            pred, target = torch.stack(pairs)[kind, :, torch.arange(self.rows)].unbind(1)
        else:
            pred, target = pairs[RELATIONS.index(self.relation)]
        tensors = {
            "pred": _laid_out(pred.to(self.dtype), self.layout),
            "target": _laid_out(target.to(self.target_dtype or self.dtype), self.target_layout),
        }
        keywords = {"eps": self.eps}
        if self.reduced is not None:
            keywords |= self.reduced.keywords(self.rows, compute_dtype(self.dtype), draw)
        return Call(tensors, keywords, ("pred", "target"))

    def _pairs(self, relation: str, draw: torch.Generator) -> Tensor:
        """(2, N, 4): boxes and what they are compared with."""

        def corners(*shape: int) -> Tensor:
            return torch.rand(*shape, self.rows, 2, generator=draw)

        if relation == "grid":  # many corners and sides coincide, and some boxes are empty
            first, size = (6 * corners(2)).floor(), (4 * corners(2)).floor()
        elif relation == "apart":
            first, size = 40 * corners(2) + torch.tensor([0.0, 50.0])[:, None, None], 1 + 8 * corners(2)
        else:
            first, size = 8 * corners(2), 2 + 8 * corners(2)
        boxes = torch.cat([first, first + size], -1)
        if relation == "equal":
            boxes[1] = boxes[0]
        elif relation == "inside":  # and touching one side
            boxes[1] = boxes[0] + torch.tensor([0.5, 0.0, -0.25, -1.0])
        elif relation == "empty":  # no width, on both sides for a part
            boxes[0, :, 2] = boxes[0, :, 0]
            boxes[1, ::3] = boxes[0, ::3]
        elif relation == "turned":  # x2 < x1: a negative area
            boxes[0] = boxes[0][:, [2, 1, 0, 3]]
        elif relation == "huge":
            boxes *= 1000
        elif relation == "tiny":  # areas of 2e-7 to 6e-6: below and above eps
            boxes = torch.cat([first.floor(), first.floor() + 2.0**-11 * (size / 2).floor()], -1)
        return boxes


def _laid_out(boxes: Tensor, layout: str) -> Tensor:
    rows = len(boxes)
    if layout == "sliced":  # the box part of a longer prediction row
        return boxes.new_zeros(rows, 7)[:, 3:].copy_(boxes)
    if layout == "sides apart":
        return boxes.new_zeros(4, rows).T.copy_(boxes)
    if layout == "steps":
        return boxes.new_zeros(rows, 2, 4, 2)[:, 1, :, 1].copy_(boxes)
    if layout == "expanded":
        return boxes[:1].expand(rows, 4)
    return boxes.contiguous()


def magnitudes(call: Call) -> dict[str, Tensor]:
    """The sum of the absolute terms behind each result: what round-off is relative to where the terms cancel."""
    pred, target = (call.tensors[name].double() for name in ("pred", "target"))
    if not len(pred):
        return {}
    share, _, upstream = upstream_of_rows(call, len(pred))
    eps = call.keywords["eps"]
    corners = torch.stack([pred, target])
    size = (corners[..., 2:] - corners[..., :2]).abs()
    areas = size.prod(-1).sum(0)  # of both, added
    common = (torch.minimum(pred, target)[:, 2:] - torch.maximum(pred, target)[:, :2]).clamp(min=0)
    union = (size.prod(-1).sum(0) - common.prod(-1)).clamp(min=eps)
    whole = (corners[..., 2:].amax(0) - corners[..., :2].amin(0)).clamp(min=0)
    enclosing = whole.prod(-1).clamp(min=eps)
    # A union that is a small difference of large areas carries their rounding.
    doubt = 1 + (areas + common.prod(-1)) / union
    loss = "reduction" in call.keywords
    losses = share * (1 + doubt + (areas / enclosing if loss else 0))
    output = losses if call.keywords.get("reduction", "none") == "none" else losses.sum()
    slope = doubt / union + (doubt * areas / enclosing**2 + 1 / enclosing if loss else 0)
    side = torch.cat([size, whole[None]]).amax((0, 2))
    gradient = (upstream * slope * side)[:, None].expand(-1, 4)
    return {"output": output, "grad of pred": gradient, "grad of target": gradient}
