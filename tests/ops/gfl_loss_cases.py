"""Inputs for the tests of ``gfl_targets`` and ``gfl_loss``: every source of the quality, layout, mix of dtypes, option.

Where the gradient of the quality jumps within the round-off of float32 (see `dgqp_cases`), the label weight is 0: such
a point gives its quality no gradient, and every side of the jump is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gflv2.ops import Assignment, GFLTargets, Predictor, gfl_loss, gfl_targets
from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference import gfl_loss as reference
from gflv2.ops.reference.boxes import cells_of_levels, distances_to_boxes, level_shapes_of, strides_of_points
from gflv2.ops.reference.giou import giou_rows
from gflv2.ops.reference.rows import box_rows, project
from tests.ops import dgqp_cases
from tests.ops.layouts import SIZES, level_tensor

STRIDES = (8.0, 16.0, 32.0, 64.0)
PREDICTOR = dgqp_cases.PREDICTOR
UPSTREAM = (0.7, -1.3, 2.0)  # of the three losses


@dataclass(frozen=True)
class Case:
    """One pair of calls; the tensors follow from it and the seed."""

    layout: str = "nchw"
    dtype: torch.dtype = torch.float32
    class_dtype: torch.dtype | None = None  # None: that of the box logits
    bins: int = 17
    classes: int = 5
    quality: str | None = "predictor"  # "given"; None: J = sigmoid(c)
    topk: int = 4
    mean: bool = True
    variance: bool = False
    hidden: int = 64
    scales: bool = True
    projection: tuple[float, float] | None = None  # first value and step
    offset: float = 0.0
    beta: float = 2.0
    batch: int = 2
    sizes: tuple[tuple[int, int], ...] = SIZES
    boxes: int = 6  # of the first image; each further one has one less
    padded: bool = False  # boxes as one tensor
    cropped: bool = False  # images smaller than the batch
    spread: float = 1.5  # standard deviation of the logits
    seed: int = 0
    rows: int = 0  # for dgqp_cases

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    @property
    def features(self) -> int:
        return 4 * (self.topk + self.mean + self.variance)

    def inputs(self, device: torch.device | str = "cpu") -> Inputs:
        draw = torch.Generator().manual_seed(self.seed)
        compute = compute_dtype(self.dtype)

        def logits(dtype: torch.dtype, shift: float) -> Callable[..., Tensor]:
            return lambda *shape: (self.spread * torch.randn(shape, generator=draw) + shift).to(dtype).to(device)

        box = [level_tensor(self, height, width, logits(self.dtype, 0.0)) for height, width in self.sizes]
        kind = self.class_dtype or self.dtype
        cls = [level_tensor(self, h, w, logits(kind, -1.0), channels=self.classes) for h, w in self.sizes]
        points = sum(height * width for height, width in self.sizes)
        arguments: dict[str, Any] = {"strides": STRIDES[: len(self.sizes)], "offset": self.offset}
        if self.scales:
            arguments["scales"] = (0.5 + torch.rand(len(self.sizes), generator=draw)).to(compute).to(device)
        if self.projection is not None:
            first, step = self.projection
            arguments["projection"] = (first + step * torch.arange(self.bins)).to(compute).to(device)
        if self.quality == "predictor":
            shapes = [(self.hidden, self.features), (self.hidden,), (1, self.hidden), (1,)]
            spreads = (1.0, 0.1, self.hidden**-0.5, 1.0)
            layers = [(s * torch.randn(shape, generator=draw)) for shape, s in zip(shapes, spreads, strict=True)]
            layers = [layer.to(compute).to(device) for layer in layers]
            arguments["predictor"] = Predictor(*layers, self.topk, self.mean, self.variance)
        elif self.quality == "given":
            arguments["quality_logits"] = torch.randn(self.batch, points, generator=draw).to(compute).to(device)

        # Any assignment: a fifth of the points positive, some ignored.
        counts = [max(self.boxes - image, 0) for image in range(self.batch)]
        boxes, index, labels = [], torch.zeros(self.batch, points, dtype=torch.int64), []
        for image, count in enumerate(counts):
            corner, size = 150 * torch.rand(count, 2, generator=draw), 10 + 120 * torch.rand(count, 2, generator=draw)
            boxes.append(torch.cat([corner, corner + size], 1).to(device))
            chosen = torch.rand(points, generator=draw)
            number = torch.randint(1, max(count, 1) + 1, (points,), generator=draw)
            index[image] = torch.where(chosen < 0.2, number * bool(count), torch.where(chosen > 0.9, -1, 0))
            classes = torch.randint(0, self.classes, (points,), generator=draw)
            labels.append(torch.where(index[image] > 0, classes, -1))
        labels = torch.stack(labels) if labels else torch.zeros(0, points, dtype=torch.int64)
        iou = torch.zeros(index.shape)
        assignment = Assignment(index.to(device), iou.to(device), labels.to(device))
        sizes = None
        if self.cropped:
            height, width = self.sizes[0]
            sizes = [(max(height * 8 - 25 * i, 1), max(width * 8 - 40 * i, 1)) for i in range(self.batch)]
        extra: dict[str, Any] = {"padded_sizes": sizes}
        if self.padded:
            extra["counts"] = torch.tensor(counts, device=device)
            boxes = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)
        return Inputs(self, cls, box, assignment, boxes, arguments, extra)


@dataclass
class Inputs:
    case: Case
    class_logits: list[Tensor]
    box_logits: list[Tensor]
    assignment: Assignment
    boxes: list[Tensor] | Tensor
    arguments: dict[str, Any]  # of both operations
    extra: dict[str, Any]  # of gfl_targets

    def converted(self, dtype: torch.dtype) -> Inputs:
        """The same values on the CPU in another dtype."""

        def to(value: Any) -> Any:
            return value.detach().to("cpu", dtype) if isinstance(value, Tensor) else value

        arguments = {name: to(value) for name, value in self.arguments.items()}
        if "predictor" in arguments:
            arguments["predictor"] = Predictor(*map(to, arguments["predictor"]))
        extra = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in self.extra.items()}
        boxes = self.boxes.cpu() if isinstance(self.boxes, Tensor) else [image.cpu() for image in self.boxes]
        levels = ([to(level) for level in levels] for levels in (self.class_logits, self.box_logits))
        return Inputs(self.case, *levels, Assignment(*(t.cpu() for t in self.assignment)), boxes, arguments, extra)

    def targets(self, *, of_reference: bool = False) -> GFLTargets:
        function = reference.gfl_targets if of_reference else gfl_targets
        maps = (self.class_logits, self.box_logits, self.assignment, self.boxes)
        return function(*maps, **self.arguments, **self.extra)

    def losses(self, targets: GFLTargets, normalisers: Tensor, *, of_reference: bool = False) -> tuple[Tensor, ...]:
        function = reference.gfl_loss if of_reference else gfl_loss
        return function(self.class_logits, self.box_logits, targets, normalisers, **self.arguments, beta=self.case.beta)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that get a gradient, by name."""
        leaves = {f"grad of class logits {index}": tensor for index, tensor in enumerate(self.class_logits)}
        leaves |= {f"grad of logits {index}": tensor for index, tensor in enumerate(self.box_logits)}
        if "predictor" in self.arguments:
            leaves |= {f"grad of {name}": t for name, t in zip(PREDICTOR, self.arguments["predictor"], strict=False)}
        if "quality_logits" in self.arguments:
            leaves["grad of quality"] = self.arguments["quality_logits"]
        if "scales" in self.arguments:
            leaves["grad of scales"] = self.arguments["scales"]
        return leaves

    def of_predictor(self) -> dgqp_cases.Inputs:
        """What the quality predictor sees."""
        case = self.case
        settings = ("layout", "dtype", "bins", "topk", "mean", "variance", "hidden", "batch", "sizes", "rows")
        alone = dgqp_cases.Case(**{name: getattr(case, name) for name in settings}, scales=case.scales)
        predictor = list(self.arguments["predictor"][:4])
        return dgqp_cases.Inputs(self.box_logits, predictor, self.arguments.get("scales"), alone)


def fixed_targets(inputs: Inputs) -> tuple[GFLTargets, Tensor]:
    """Targets and normalisers for the losses, the same for all rooms: the definition's in float64, rounded to float32.
    Their quality is None."""
    exact = inputs.converted(torch.float64)
    targets = exact.targets(of_reference=True)
    label_weights = targets.label_weights
    if inputs.case.quality == "predictor" and label_weights.numel():
        label_weights = label_weights * (dgqp_cases.jumps_left_out(inputs.of_predictor()) != 0)
    targets = targets._replace(label_weights=label_weights, quality=None)
    dtype = compute_dtype(inputs.case.dtype)
    device = inputs.assignment.index.device
    fixed = [t.to(device) if t is None or t.dtype == torch.int64 else t.to(dtype).to(device) for t in targets[:-1]]
    normalisers = fixed[-1].clamp(min=1e-12)
    return GFLTargets(*fixed), normalisers


def move(targets: GFLTargets, dtype: torch.dtype) -> GFLTargets:
    """On the CPU in another dtype."""
    return GFLTargets(*(t if t is None else t.cpu() if t.dtype == torch.int64 else t.to("cpu", dtype) for t in targets))


def results(
    inputs: Inputs, targets: GFLTargets, normalisers: Tensor, *, scale: float = 1.0, of_reference: bool = False
) -> dict[str, Tensor]:
    """The losses and every gradient of their weighted sum, by name."""
    leaves = inputs.leaves()
    for leaf in leaves.values():
        leaf.requires_grad_()
    losses = inputs.losses(targets, normalisers, of_reference=of_reference)
    total = sum(scale * weight * loss for weight, loss in zip(UPSTREAM, losses, strict=True))
    found = {name: loss.detach() for name, loss in zip(("qfl", "giou", "dfl"), losses, strict=True)}
    return found | dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def definitions(
    inputs: Inputs, targets: GFLTargets, normalisers: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of the reference in float64 and in float32."""
    return tuple(
        results(inputs.converted(dtype), move(targets, dtype), normalisers.to("cpu", dtype), of_reference=True)
        for dtype in (torch.float64, torch.float32)
    )


def magnitudes(inputs: Inputs, targets: GFLTargets, normalisers: Tensor, exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum of the absolute terms behind the gradients that cancel."""
    case, found = inputs.case, {}
    if not targets.labels.numel():
        return found
    double = inputs.converted(torch.float64)
    counts = [height * width for height, width in case.sizes]
    slopes = [exact[f"grad of logits {index}"] for index in range(len(counts))]
    if case.quality == "predictor":
        alone = double.of_predictor()
        with torch.no_grad():
            quality = alone.call(of_reference=True)
        given = double.arguments | {"quality_logits": quality.requires_grad_(), "predictor": None}
        cells = replace(double, arguments=given)
        losses = cells.losses(move(targets, torch.float64), normalisers.double().cpu(), of_reference=True)
        alone.cotangent = torch.autograd.grad(losses[0] * UPSTREAM[0], quality)[0]
        found = dgqp_cases.magnitudes(alone)
        found.pop("output")
    if case.scales:
        scales = double.arguments["scales"].detach()
        raw = box_rows(double.box_logits).detach().split(counts, 1)
        rows = box_rows(slopes).split(counts, 1)
        sums = [(z * g).abs().sum() / s.abs() for z, g, s in zip(raw, rows, scales, strict=True)]
        found["grad of scales"] = torch.stack(sums) + found.get("grad of scales", 0.0)
    if case.beta != 2:
        # A power is the exponential of a product, whose rounding counts as often as the exponent is large.
        names = [name for name in exact if name == "qfl" or "class" in name or name == "grad of quality"]
        found |= {name: 4 * exact[name].abs().max() for name in names if exact[name].numel()}
    of_distance = _distance_terms(double, move(targets, torch.float64), float(normalisers[1]))
    for index, slope in enumerate(slopes):
        if slope.numel():
            name = f"grad of logits {index}"
            found[name] = slope.abs().max() + of_distance + found.get(name, 0.0)
    return found


def _distance_terms(double: Inputs, targets: GFLTargets, total_weight: float) -> float:
    """The largest of the terms P·u·projection_b and P·u·d, of which the gradient of the GIoU loss is the difference."""
    shapes = level_shapes_of(double.box_logits)
    kind = {"dtype": torch.float64}
    stride = strides_of_points(shapes, double.arguments["strides"], **kind)[:, None]
    cells = cells_of_levels(shapes, offset=double.case.offset, **kind)
    scales, projection = double.arguments.get("scales"), double.arguments.get("projection")
    with torch.no_grad():
        distances = project(box_rows(double.box_logits, scales).softmax(-1), projection)
    predicted = distances_to_boxes(cells, distances.requires_grad_())
    loss = (targets.weights * (1 - giou_rows(predicted, targets.boxes / stride))).sum()
    slope = torch.autograd.grad(loss, distances)[0].abs().max() * abs(UPSTREAM[1]) * 2 / total_weight
    largest = double.case.bins if projection is None else projection.abs().max()
    return float(slope * largest * (1 if scales is None else scales.abs().max()))
