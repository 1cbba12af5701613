"""Inputs for the tests of ``dgqp`` and ``dgqp_statistics``: both forms, every memory layout, dtype and option.

Two things make their gradients jump: two probabilities that change places among the k largest, and a hidden unit at
the bend of its ReLU. Where float32 cannot tell on which side of a jump a point lies, every side is right; the
cotangent is 0 at such points, so that none of the gradients depends on them. (Probabilities that are exactly equal are
no such case: there the lower bin comes first, in every precision.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gflv2.ops import dgqp, dgqp_statistics
from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference import dgqp as reference
from gflv2.ops.reference.rows import box_rows
from tests.ops.layouts import SIZES, level_tensor, row_tensor

PREDICTOR = ("weight1", "bias1", "weight2", "bias2")


@dataclass(frozen=True)
class Case:
    """One call; the tensors follow from it and the seed."""

    layout: str = "nchw"
    dtype: torch.dtype = torch.float32
    bins: int = 17
    topk: int = 4
    mean: bool = True
    variance: bool = False
    scales: bool = False
    hidden: int = 64  # 0: dgqp_statistics
    predictor_dtype: torch.dtype | None = None  # None: that of the arithmetic
    batch: int = 2
    sizes: tuple[tuple[int, int], ...] = SIZES
    rows: int = 700
    spread: float = 3.0  # standard deviation of the logits
    ties: bool = False  # few different logits, so that many are equal
    seed: int = 0

    @property
    def op(self) -> str:
        return "dgqp" if self.hidden else "dgqp_statistics"

    @property
    def by_rows(self) -> bool:
        return self.layout.startswith("rows")

    @property
    def features(self) -> int:
        return 4 * (self.topk + self.mean + self.variance)

    def inputs(self, device: torch.device | str = "cpu") -> Inputs:
        draw = torch.Generator().manual_seed(self.seed)

        def logits(*shape: int) -> Tensor:
            values = self.spread * torch.randn(shape, generator=draw)
            return (values.round() if self.ties else values).to(self.dtype).to(device)

        count = 1 if self.by_rows else len(self.sizes)
        compute = compute_dtype(self.dtype)
        if self.by_rows:
            tensors = [row_tensor(self, logits)]
        else:
            tensors = [level_tensor(self, height, width, logits) for height, width in self.sizes]
        scales = (0.5 + torch.rand(count, generator=draw)).to(compute).to(device) if self.scales else None
        predictor = []
        if self.hidden:
            shapes = [(self.hidden, self.features), (self.hidden,), (1, self.hidden), (1,)]
            spreads = (1.0, 0.1, self.hidden**-0.5, 1.0)
            kind = self.predictor_dtype or compute
            predictor = [
                (spread * torch.randn(shape, generator=draw)).to(kind).to(device)
                for shape, spread in zip(shapes, spreads, strict=True)
            ]
        inputs = Inputs(tensors, predictor, scales, self)
        inputs.cotangent = jumps_left_out(inputs)
        return inputs

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)


@dataclass
class Inputs:
    tensors: list[Tensor]
    predictor: list[Tensor]
    scales: Tensor | None
    case: Case
    cotangent: Tensor = field(default_factory=lambda: torch.empty(0))  # float64, on the CPU

    def call(self, *, of_reference: bool = False, function: Callable[..., Tensor] | None = None) -> Tensor:
        case = self.case
        if function is None:
            rooms = {"dgqp": dgqp, "dgqp_statistics": dgqp_statistics}
            function = getattr(reference, case.op) if of_reference else rooms[case.op]
        box_logits = self.tensors[0] if case.by_rows else self.tensors
        settings = {"topk": case.topk, "mean": case.mean, "variance": case.variance}
        return function(box_logits, *self.predictor, scales=self.scales, **settings)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that get a gradient, by name."""
        leaves = {f"grad of logits {index}": tensor for index, tensor in enumerate(self.tensors)}
        leaves |= {f"grad of {name}": tensor for name, tensor in zip(PREDICTOR, self.predictor, strict=False)}
        if self.scales is not None:
            leaves["grad of scales"] = self.scales
        return leaves

    def converted(self, dtype: torch.dtype) -> Inputs:
        """The same values on the CPU in another dtype."""

        def to(tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", dtype)

        scales = None if self.scales is None else to(self.scales)
        return replace(self, tensors=[*map(to, self.tensors)], predictor=[*map(to, self.predictor)], scales=scales)


def results(inputs: Inputs, *, scale: float = 1.0, **room: object) -> dict[str, Tensor]:
    """The output and every gradient of <output, the cotangent>, by name; ``room`` as in `Inputs.call`."""
    for leaf in inputs.leaves().values():
        leaf.requires_grad_()
    out = inputs.call(**room)
    found = {"output": out.detach()}
    gradients = torch.autograd.grad(out, list(inputs.leaves().values()), inputs.cotangent.to(out) * scale)
    return found | dict(zip(inputs.leaves(), gradients, strict=True))


def definitions(inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of the reference in float64 and in float32."""
    return tuple(results(inputs.converted(dtype), of_reference=True) for dtype in (torch.float64, torch.float32))


def _distributions(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: scaled logits and probabilities (…, 4, R), and the statistics (…, F)."""
    exact = inputs.converted(torch.float64)
    case = inputs.case
    scaled = box_rows(exact.tensors[0] if case.by_rows else exact.tensors, exact.scales)
    probabilities = scaled.softmax(-1)
    return scaled, probabilities, reference.statistics_of(probabilities, case.topk, case.mean, case.variance)


def jumps_left_out(inputs: Inputs) -> Tensor:
    """A random cotangent, and 0 where a gradient jumps within the round-off of float32."""
    case = inputs.case
    scaled, probabilities, statistics = _distributions(inputs)
    draw = torch.Generator().manual_seed(99)
    shape = statistics.shape[:-1] if case.hidden else statistics.shape
    cotangent = torch.randn(shape, generator=draw, dtype=torch.float64)
    if not statistics.numel():
        return cotangent

    # Relative error of a probability: a few units of exp, and the rounding of a large exponent.
    relative = 1e-5 + scaled.abs().amax(-1) * 2.0**-21
    ordered, place = scaled.sort(-1, descending=True)
    upper, lower = ordered[..., : case.topk], ordered[..., 1 : case.topk + 1]
    upper = upper[..., : lower.shape[-1]]
    matters = probabilities.gather(-1, place)[..., : lower.shape[-1]] > 1e-30
    jumps = ((upper != lower) & (upper - lower < relative[..., None]) & matters).flatten(-2).any(-1)
    if case.hidden:
        weight1, bias1 = (tensor.detach().double().cpu() for tensor in inputs.predictor[:2])
        side = relative.repeat_interleave(case.features // 4, -1)
        error = (statistics * side) @ weight1.abs().T + 1e-6 * (statistics @ weight1.abs().T + bias1.abs())
        hidden = statistics @ weight1.T + bias1
        jumps |= (hidden.abs() < error).any(-1)
    return torch.where(jumps if case.hidden else jumps[..., None], 0.0, cotangent)


def magnitudes(inputs: Inputs) -> dict[str, Tensor]:
    """The sum of the absolute terms behind each result: what round-off is relative to where the terms cancel."""
    case, exact = inputs.case, inputs.converted(torch.float64)
    _, probabilities, statistics = _distributions(inputs)
    if not statistics.numel():
        return {}
    upstream = inputs.cotangent.abs()
    found = {}
    if case.hidden:
        weight1, bias1, weight2, bias2 = (tensor.abs() for tensor in exact.predictor)
        signed = [tensor.double() for tensor in exact.predictor[:2]]
        active = upstream[..., None] * (statistics @ signed[0].T + signed[1] > 0)
        terms = statistics @ weight1.T + bias1
        found["output"] = (terms @ weight2[0] + bias2).max()
        found["grad of weight1"] = weight2.T * torch.einsum("...h,...f->hf", active, statistics)
        found["grad of bias1"] = weight2[0] * active.flatten(0, -2).sum(0)
        found["grad of weight2"] = (active * terms).flatten(0, -2).sum(0)[None]
        found["grad of bias2"] = upstream.sum()[None]
        slope = (active * weight2[0]) @ weight1
    else:
        found["output"] = statistics.max()
        slope = upstream
    slope = slope.unflatten(-1, (4, -1))  # of each statistic
    ranks = slope[..., : case.topk]
    ranks = ranks + slope[..., case.topk :].sum(-1, keepdim=True) * 2 / case.topk
    largest = ranks.amax(-1, keepdim=True)  # of any probability
    per_logit = 2 * probabilities * largest
    raw = box_rows(exact.tensors[0] if case.by_rows else exact.tensors)
    counts = [case.rows] if case.by_rows else [height * width for height, width in case.sizes]
    dimension = 0 if case.by_rows else 1
    sums = []
    for index, (part, part_raw) in enumerate(
        zip(per_logit.split(counts, dimension), raw.split(counts, dimension), strict=True)
    ):
        scale = 1.0 if exact.scales is None else exact.scales[index].abs()
        if part.numel():
            found[f"grad of logits {index}"] = (part * scale).max()
        sums.append((part * part_raw.abs()).sum())
    found["grad of scales"] = torch.stack(sums)
    return found
