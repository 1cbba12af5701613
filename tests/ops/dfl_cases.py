"""Inputs for the tests of ``dfl``: every memory layout, dtype, reduction, and kind of target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from tests.ops.row_losses import Call, Reduced, upstream_of_rows

LAYOUTS = ("dense", "sliced", "bins apart", "steps", "expanded")
TARGETS = ("inside", "whole", "outside")


@dataclass(frozen=True)
class Case:
    """One call of ``dfl``; the tensors follow from it and the seed."""

    layout: str = "dense"
    dtype: torch.dtype = torch.float32
    bins: int = 17
    rows: int = 700  # several blocks of a kernel, and a tail
    targets: str = "inside"
    reduced: Reduced = Reduced()
    spread: float = 3.0  # standard deviation of the logits
    seed: int = 0

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    def call(self) -> Call:
        draw = torch.Generator().manual_seed(self.seed)

        def logits(*shape: int) -> Tensor:
            return (self.spread * torch.randn(shape, generator=draw)).to(self.dtype)

        kind = compute_dtype(self.dtype)
        target = (torch.rand(self.rows, generator=draw) * (self.bins - 1)).to(kind)
        if self.targets == "whole":  # the ends too
            target = target.round()
        elif self.targets == "outside":  # of half of the rows, and far
            target = torch.where(torch.rand(self.rows, generator=draw) < 0.5, target, (target - 0.5 * self.bins) * 1e9)
        keywords = self.reduced.keywords(self.rows, kind, draw)
        laid_out_logits = laid_out(self.layout, self.rows, self.bins, logits)
        return Call({"logits": laid_out_logits, "target": target}, keywords, ("logits",))


def laid_out(layout: str, rows: int, bins: int, logits: Callable[..., Tensor]) -> Tensor:
    """(rows, bins) in one of the LAYOUTS, drawn by ``logits(*shape)``."""
    if layout == "sliced":  # the box part of a longer prediction row
        return logits(rows, bins + 5)[:, 5:]
    if layout == "bins apart":
        return logits(bins, rows).T
    if layout == "steps":
        return logits(rows, 3, bins, 2)[:, 1, :, 1]
    if layout == "expanded":
        return logits(1, bins).expand(rows, bins)
    return logits(rows, bins)


def magnitudes(call: Call) -> dict[str, Tensor]:
    """The sum of the absolute terms behind each result: what round-off is relative to where the terms cancel."""
    logits = call.tensors["logits"].double()
    rows, bins = logits.shape
    if not rows:
        return {}
    share, _, upstream = upstream_of_rows(call, rows)
    target = call.tensors["target"].double().clamp(0, bins - 1)
    hat = (1 - (torch.arange(bins) - target[:, None]).abs()).clamp(min=0)
    below = logits.amax(1, keepdim=True) - logits
    losses = share * (1 + (-below).exp().sum(1).log() + (hat * below).sum(1))
    output = losses if call.keywords["reduction"] == "none" else losses.sum()
    # An exponent that is rounded changes its exponential by the exponent's own size; below 1.2e-38 there are none.
    smallest = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
    slopes = logits.softmax(1) * (1 + below) + hat + smallest
    return {"output": output, "grad of logits": upstream[:, None] * slopes}
