"""Inputs for the tests of ``integral``: both forms, every memory layout, dtype and option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference import integral as reference
from gflv2.ops.reference.rows import box_rows
from tests.ops import tolerances
from tests.ops.layouts import SIZES, level_tensor, row_tensor


@dataclass(frozen=True)
class Case:
    """One call of ``integral``; the tensors follow from it and the seed."""

    layout: str = "nchw"
    dtype: torch.dtype = torch.float32
    bins: int = 17
    projection: str = "default"  # or "given", "learned"
    scales: bool = False
    decode: bool = False
    offset: float = 0.0
    batch: int = 2
    sizes: tuple[tuple[int, int], ...] = SIZES
    rows: int = 700
    spread: float = 3.0  # standard deviation of the logits
    seed: int = 0

    @property
    def by_rows(self) -> bool:
        return self.layout.startswith("rows")

    def inputs(self, device: torch.device | str = "cpu") -> Inputs:
        draw = torch.Generator().manual_seed(self.seed)

        def logits(*shape: int) -> Tensor:
            return (self.spread * torch.randn(shape, generator=draw)).to(self.dtype).to(device)

        count = 1 if self.by_rows else len(self.sizes)
        compute = compute_dtype(self.dtype)
        projection = None
        if self.projection != "default":
            # Not uniform, not sorted, some negative.
            projection = (torch.randn(self.bins, generator=draw).cumsum(0) + 1).to(compute).to(device)
        scales = (0.5 + torch.rand(count, generator=draw)).to(compute).to(device) if self.scales else None
        strides: list[float] | Tensor | None = None
        points = None
        if self.by_rows:
            tensors = [row_tensor(self, logits)]
            if self.decode:
                points = (500 * torch.rand(self.rows, 2, generator=draw)).to(compute).to(device)
                strides = (4 + 28 * torch.rand(self.rows, generator=draw)).to(compute).to(device)
        else:
            tensors = [level_tensor(self, height, width, logits) for height, width in self.sizes]
            if self.decode:
                strides = [8.0 * 2**level for level in range(count)]
        return Inputs(tensors, projection, scales, strides, points, self.offset, self)

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)


@dataclass
class Inputs:
    tensors: list[Tensor]
    projection: Tensor | None
    scales: Tensor | None
    strides: list[float] | Tensor | None
    points: Tensor | None
    offset: float
    case: Case

    def call(self, function: Callable[..., Tensor]) -> Tensor:
        return function(
            self.tensors[0] if self.case.by_rows else self.tensors,
            self.projection,
            scales=self.scales,
            strides=self.strides,
            points=self.points,
            offset=self.offset,
        )

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that get a gradient, by name."""
        leaves = {f"grad of logits {index}": tensor for index, tensor in enumerate(self.tensors)}
        if self.case.projection == "learned":
            leaves["grad of projection"] = self.projection
        if self.scales is not None:
            leaves["grad of scales"] = self.scales
        return leaves

    def converted(self, dtype: torch.dtype) -> Inputs:
        """The same values on the CPU in another dtype."""

        def to(tensor: Tensor | None) -> Tensor | None:
            return tensor.detach().to("cpu", dtype) if isinstance(tensor, Tensor) else tensor

        tensors = [to(tensor) for tensor in self.tensors]
        return replace(
            self,
            tensors=tensors,
            projection=to(self.projection),
            scales=to(self.scales),
            strides=to(self.strides),
            points=to(self.points),
        )


def results(function: Callable[..., Tensor], inputs: Inputs, *, scale: float = 1.0) -> dict[str, Tensor]:
    """The output and every gradient of <output, a fixed cotangent>, by name."""
    for leaf in inputs.leaves().values():
        leaf.requires_grad_()
    out = inputs.call(function)
    found = {"output": out.detach()}
    gradients = torch.autograd.grad(out, list(inputs.leaves().values()), cotangent(out) * scale)
    return found | dict(zip(inputs.leaves(), gradients, strict=True))


def cotangent(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(99)).to(out)


def definitions(inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of the reference in float64 and in float32."""
    return tuple(results(reference.integral, inputs.converted(dtype)) for dtype in (torch.float64, torch.float32))


def magnitudes(inputs: Inputs) -> dict[str, Tensor]:
    """The sum of the absolute terms behind each result: what round-off is relative to where the terms cancel."""
    exact = inputs.converted(torch.float64)
    box_logits = exact.tensors[0] if inputs.case.by_rows else exact.tensors
    raw, scaled = box_rows(box_logits), box_rows(box_logits, exact.scales)  # (B, A, 4, R) or (M, 4, R)
    if not raw.numel():
        return {}
    projection = torch.arange(raw.shape[-1]).double() if exact.projection is None else exact.projection
    if isinstance(exact.strides, list):
        sizes = [height * width for height, width in inputs.case.sizes]
        stride = torch.tensor(exact.strides).double().repeat_interleave(torch.tensor(sizes))
    else:
        stride = torch.ones(raw.shape[-3]).double() if exact.strides is None else exact.strides
    boxes = exact.call(reference.integral)
    factor = stride[:, None, None] * cotangent(boxes).abs()[..., None]  # |∂<output, cotangent>/∂distance|
    probabilities = scaled.softmax(-1)
    # The kernels' exponential ends at the smallest normal number instead of 0, which is an error of all of it.
    probabilities = probabilities.clamp(min=torch.finfo(torch.float32).tiny / tolerances.FLOOR["integral"])
    mean = (probabilities * projection.abs()).sum(-1, keepdim=True)
    slope = factor * probabilities * (projection.abs() + mean)  # of the scaled logits

    found = {"output": (boxes.abs() + 2 * mean[..., 0] * stride[:, None]).max()}
    found["grad of projection"] = (factor * probabilities).flatten(0, -2).sum(0)
    counts = [inputs.case.rows] if inputs.case.by_rows else [height * width for height, width in inputs.case.sizes]
    dimension = 0 if inputs.case.by_rows else 1
    parts = zip(slope.split(counts, dimension), raw.split(counts, dimension), strict=True)
    sums = []
    for index, (level_slope, level_raw) in enumerate(parts):
        scale = 1.0 if exact.scales is None else exact.scales[index].abs()
        if level_slope.numel():
            found[f"grad of logits {index}"] = (level_slope * scale).max()
        sums.append((level_slope * level_raw.abs()).sum())
    found["grad of scales"] = torch.stack(sums)
    return found
