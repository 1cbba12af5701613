"""Inputs for the tests of ``decode``, and what its result has to be.

The points of a large level are sorted by their largest joint score. Where the float32 of two backends cannot tell two
scores apart, either order is right: `assert_selection` accepts both within a band, and nothing else. Points whose
scores are equal in float64 have the same logits, and so are equal on every backend: their order is certain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import Decoded
from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference import decode as reference
from gflv2.ops.reference.gfl_loss import joint_probabilities
from gflv2.ops.reference.rows import class_rows
from tests.ops import tolerances
from tests.ops.layouts import level_tensor
from tests.ops.parity import assert_parity
from tests.ops.under_test import INTERPRETED

# The first two are sorted in most cases; a level of no cell, one of one cell.
SIZES = ((13, 17), (8, 5), (0, 4), (1, 1)) if INTERPRETED else ((23, 29), (8, 5), (0, 4), (1, 1))
ODD = (float("nan"), float("inf"), float("-inf"), 1e4, -1e4, 0.0, -0.0)


@dataclass(frozen=True)
class Case:
    """One call of ``decode``; the tensors follow from it and the seed."""

    layout: str = "nchw"
    class_dtype: torch.dtype = torch.float32
    box_dtype: torch.dtype = torch.float32
    classes: int = 7
    bins: int = 17
    quality: bool = True
    scales: bool = False
    projection: bool = False
    clip: bool = False
    rescale: bool = False
    offset: float = 0.0
    pre_topk: int = 30
    score_thr: float = 0.05
    batch: int = 2
    sizes: tuple[tuple[int, int], ...] = SIZES
    kind: str = "random"  # or "tied": few different logits; "odd": NaN, infinite and huge class and quality logits
    spread: float = 1.5  # standard deviation of the class logits
    rows: int = 0  # `layouts.Shapes` asks for it
    seed: int = 0

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    def inputs(self, device: torch.device | str = "cpu") -> Inputs:
        draw = torch.Generator().manual_seed(self.seed)

        def class_logits(*shape: int) -> Tensor:
            values = self.spread * torch.randn(shape, generator=draw) - 2
            return self._of_kind(values, draw).to(self.class_dtype).to(device)

        def box_logits(*shape: int) -> Tensor:
            return (3 * torch.randn(shape, generator=draw)).to(self.box_dtype).to(device)

        kind, count = compute_dtype(self.box_dtype), len(self.sizes)
        points = sum(height * width for height, width in self.sizes)
        classes = [level_tensor(self, *size, class_logits, channels=self.classes) for size in self.sizes]
        boxes = [level_tensor(self, *size, box_logits) for size in self.sizes]
        more: dict[str, Any] = {}
        if self.quality:
            more["quality_logits"] = self._of_kind(torch.randn(self.batch, points, generator=draw), draw).to(kind)
        if self.scales:
            more["scales"] = (torch.rand(count, generator=draw) + 0.5).to(kind)
        if self.projection:
            more["projection"] = (torch.randn(self.bins, generator=draw).cumsum(0) + 1).to(kind)
        if self.clip:
            more["image_sizes"] = torch.randint(20, 150, (self.batch, 2), generator=draw)
        if self.rescale:
            more["scale_factors"] = torch.rand(self.batch, 2, generator=draw) + 0.5
        more = {name: tensor.to(device) for name, tensor in more.items()}
        more["strides"] = [8.0 * 2**level for level in range(count)]
        more |= {"pre_topk": self.pre_topk, "score_thr": self.score_thr, "offset": self.offset}
        return Inputs(classes, boxes, more, self)

    def _of_kind(self, values: Tensor, draw: torch.Generator) -> Tensor:
        if self.kind == "tied":
            return values.round()
        if self.kind == "odd":
            pick = torch.tensor(ODD)[torch.randint(0, len(ODD), values.shape, generator=draw)]
            return torch.where(torch.rand(values.shape, generator=draw) < 0.02, pick, values)
        return values


@dataclass
class Inputs:
    class_logits: list[Tensor]
    box_logits: list[Tensor]
    more: dict[str, Any]
    case: Case

    def call(self, function: Callable[..., Decoded], **changes: Any) -> Decoded:
        more = {"return_distributions": True, **self.more, **changes}
        return function(self.class_logits, self.box_logits, **more)

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.class_logits, *self.box_logits, *(t for t in self.more.values() if isinstance(t, Tensor))]

    def converted(self, dtype: torch.dtype) -> Inputs:
        """The same values on the CPU in another dtype."""

        def to(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to("cpu", dtype if value.is_floating_point() else value.dtype)

        more = {name: to(value) for name, value in self.more.items()}
        return replace(
            self, class_logits=[*map(to, self.class_logits)], box_logits=[*map(to, self.box_logits)], more=more
        )

    def everywhere(self, dtype: torch.dtype) -> Decoded:
        """The reference at every point in raster order, before the threshold."""
        points = max(height * width for height, width in self.case.sizes)
        return self.converted(dtype).call(reference.decode, pre_topk=max(points, 1), score_thr=0.0)


def assert_decoded(found: Decoded, inputs: Inputs) -> None:
    """Everything that ``decode`` promises of a result with distributions."""
    case = inputs.case
    exact = inputs.everywhere(torch.float64)
    eager = exact if case.box_dtype == torch.float64 else inputs.everywhere(torch.float32)
    kind = compute_dtype(case.box_dtype)
    assert found.boxes.dtype == found.scores.dtype == found.distributions.dtype == kind
    assert found.points.dtype == found.counts.dtype == torch.int64
    found = Decoded(*(part.cpu() if isinstance(part, Tensor) else part for part in found))

    # 1. The points and their order.
    magnitude = _score_magnitudes(inputs)
    floor = tolerances.FLOOR["decode in float64" if kind == torch.float64 else "decode"]
    assert_selection(found.points, inputs, floor * magnitude)

    # 2. What belongs to each of them.
    exact, eager = (_rows_of(every, found.points) for every in (exact, eager))
    magnitude = magnitude.gather(1, found.points[..., None].expand(exact.scores.shape))
    band = 4 * floor * magnitude
    exact_scores, eager_scores = (
        _thresholded(every.scores, exact.scores, found.scores, band, case) for every in (exact, eager)
    )
    assert_parity(
        "decode",
        {"boxes": found.boxes, "scores": found.scores, "distributions": found.distributions},
        {"boxes": exact.boxes, "scores": exact_scores, "distributions": exact.distributions},
        {"boxes": eager.boxes, "scores": eager_scores, "distributions": eager.distributions},
        {"boxes": _box_magnitude(inputs), "scores": magnitude},
        context=case,
    )
    assert torch.equal(found.counts, (found.scores > 0).any(-1).sum(1))
    assert found.legacy_background is False


def assert_selection(points: Tensor, inputs: Inputs, bands: Tensor) -> None:
    """Levels that fit in raster order; larger ones sorted, but for what lies within the bands (B, A, C)."""
    case = inputs.case
    keys, which = _joint(inputs).nan_to_num(nan=2.0).max(-1)  # not a number: before all others
    bands = torch.where(keys > 1, 0.0, bands.gather(2, which[..., None])[..., 0].nan_to_num())
    start = row = 0
    for height, width in case.sizes:
        size = height * width
        rows = min(size, case.pre_topk)
        part = points[:, row : row + rows] - start
        everyone = torch.arange(size)
        if rows == size:
            assert torch.equal(part, everyone.expand(len(part), size)), case
        for image in range(len(part) if rows < size else 0):
            kept = part[image]
            assert kept.min() >= 0 and kept.max() < size and kept.unique().numel() == rows, case
            left_out = everyone[~torch.isin(everyone, kept)]
            key, band = keys[image, start : start + size], bands[image, start : start + size]
            position = torch.cat([torch.arange(rows), torch.full((size - rows,), rows)])
            order = torch.cat([kept, left_out])
            before = position[:, None] < position[None, :]
            a, b = order[:, None], order[None, :]
            wrong = before & ((key[b] - band[b] > key[a] + band[a]) | ((key[b] == key[a]) & (b < a)))
            first = wrong.nonzero()[:4].tolist()
            pairs = [(int(order[i]), float(key[order[i]]), int(order[j]), float(key[order[j]])) for i, j in first]
            assert not first, f"image {image}, level of {size}: before, but should not be: {pairs}; {case}"
        start, row = start + size, row + rows
    assert points.shape == (case.batch, row)


def _rows_of(every: Decoded, points: Tensor) -> Decoded:
    def take(part: Tensor) -> Tensor:
        index = points.reshape(*points.shape, *[1] * (part.dim() - 2))
        return part.gather(1, index.expand(*points.shape, *part.shape[2:]))

    return every._replace(boxes=take(every.boxes), scores=take(every.scores), distributions=take(every.distributions))


def _thresholded(scores: Tensor, exact: Tensor, found: Tensor, band: Tensor, case: Case) -> Tensor:
    """0 where not above the threshold; within the band, what was found decides which of the two is right."""
    thr = float(torch.tensor(case.score_thr, dtype=found.dtype))
    near = (exact - thr).abs() <= band
    return torch.where(torch.where(near, found != 0, exact > thr), scores.double(), 0.0)


def _joint(inputs: Inputs) -> Tensor:
    """(B, A, C): J of every point in float64, before any threshold."""
    exact = inputs.converted(torch.float64)
    return joint_probabilities(class_rows(exact.class_logits), exact.more.get("quality_logits"))


def _score_magnitudes(inputs: Inputs) -> Tensor:
    """(B, A, C): J·(1 + (|c| + |r|)/2): an exponential is off by as many units as its argument is large.

    Plus a little: below e^−87 a factor may be 0.
    """
    exact = inputs.converted(torch.float64)
    size = class_rows(exact.class_logits).abs()
    if "quality_logits" in exact.more:
        size = size + exact.more["quality_logits"].abs()[..., None]
    return (_joint(inputs) * (1 + size.clamp(max=200.0) / 2)).nan_to_num() + 1e-22


def _box_magnitude(inputs: Inputs) -> Tensor:
    """The largest of the terms behind a box's side: the point, and the distance."""
    case, exact = inputs.case, inputs.converted(torch.float64)
    reach = max(max(size) * stride for size, stride in zip(case.sizes, exact.more["strides"], strict=True))
    projection = exact.more.get("projection", torch.arange(case.bins).double())
    distance = projection.abs().max() * max(exact.more["strides"])
    factors = exact.more.get("scale_factors")
    return (reach + distance) / (1.0 if factors is None or not factors.numel() else factors.min())
