"""Inputs for the tests of ``distribution_kl``: memory layouts and dtypes of both sides, temperatures, reductions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from tests.ops.dfl_cases import laid_out
from tests.ops.row_losses import Call, Reduced, upstream_of_rows

TEACHERS = ("other", "near", "equal")


@dataclass(frozen=True)
class Case:
    """One call of ``distribution_kl``; the tensors follow from it and the seed."""

    layout: str = "dense"
    dtype: torch.dtype = torch.float32
    teacher_layout: str = "dense"
    teacher_dtype: torch.dtype | None = None  # None: the student's
    teacher: str = "other"  # drawn alone; or the student's logits with a little noise, or as they are
    bins: int = 17
    rows: int = 700  # several blocks of a kernel, and a tail
    temperature: float = 10.0
    reduced: Reduced = Reduced()
    spread: float = 3.0  # standard deviation of the logits
    seed: int = 0

    def call(self) -> Call:
        draw = torch.Generator().manual_seed(self.seed)

        def logits(*shape: int) -> Tensor:
            return (self.spread * torch.randn(shape, generator=draw)).to(self.dtype)

        student = laid_out(self.layout, self.rows, self.bins, logits)
        noise = 0.05 if self.teacher == "near" else 0.0

        def others(*shape: int) -> Tensor:
            return (self.spread * torch.randn(shape, generator=draw)).to(self.teacher_dtype or self.dtype)

        teacher = laid_out(self.teacher_layout, self.rows, self.bins, others)
        if self.teacher != "other":
            if teacher.stride(0) == 0:  # one row of memory for all: it cannot hold the student's
                teacher = teacher.clone()
            teacher.copy_(student + noise * self.spread * torch.randn(student.shape, generator=draw))
        keywords = self.reduced.keywords(self.rows, compute_dtype(self.dtype), draw)
        keywords["temperature"] = self.temperature
        return Call({"logits": student, "teacher_logits": teacher}, keywords, ("logits",))


def magnitudes(call: Call) -> dict[str, Tensor]:
    """The sum of the absolute terms behind each result: what round-off is relative to where the terms cancel."""
    logits, teacher = (tensor.double() for tensor in call.tensors.values())
    rows, bins = logits.shape
    if not rows:
        return {}
    temperature = call.keywords["temperature"]
    share, _, upstream = upstream_of_rows(call, rows)
    below, teacher_below = ((z.amax(1, keepdim=True) - z) / temperature for z in (logits, teacher))
    p, teacher_p = below.neg().softmax(1), teacher_below.neg().softmax(1)
    losses = share * temperature**2 / bins * (1 + (teacher_p * (below + teacher_below)).sum(1))
    output = losses if call.keywords["reduction"] == "none" else losses.sum()
    # An exponent that is rounded changes its exponential by the exponent's own size.
    # Where it would be smaller, it may be the smallest normal number: a softmax cannot tell.
    smallest = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
    slopes = p * (1 + below) + teacher_p * (1 + teacher_below) + smallest
    return {"output": output, "grad of logits": temperature / bins * upstream[:, None] * slopes}
