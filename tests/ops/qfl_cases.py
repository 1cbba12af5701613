"""Inputs for the tests of ``qfl``: rows and levels, every memory layout, form, target, dtype and reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference import qfl as reference
from tests.ops.layouts import SIZES, level_tensor
from tests.ops.row_losses import Call, Reduced, cotangent

FORMS = ("class_logits", "logits", "probabilities")
ROW_LAYOUTS = ("rows", "rows sliced", "rows classes apart", "rows steps", "rows expanded")
LABELS = ("some", "none", "wild")


@dataclass(frozen=True)
class Case:
    """One call of ``qfl``; the tensors follow from it and the seed."""

    layout: str = "nchw"
    dtype: torch.dtype = torch.float32
    form: str = "class_logits"
    quality_dtype: torch.dtype | None = None  # None: that of the arithmetic
    classes: int = 20
    labels: str = "some"
    dense: bool = False  # the target, with rows
    beta: float = 2.0
    reduced: Reduced = Reduced()
    batch: int = 2
    sizes: tuple[tuple[int, int], ...] = SIZES
    rows: int = 300
    spread: float = 3.0  # standard deviation of the logits
    centre: float = -2.0  # their mean: most elements are small negatives
    seed: int = 0

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)

    @property
    def by_rows(self) -> bool:
        return self.layout.startswith("rows")

    @property
    def bins(self) -> int:  # of `layouts.Shapes`
        return self.classes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one number a row: (N,) or (B, A)."""
        return (self.rows,) if self.by_rows else (self.batch, sum(height * width for height, width in self.sizes))

    def call(self) -> Call:
        draw = torch.Generator().manual_seed(self.seed)
        kind = compute_dtype(self.dtype)

        def values(*shape: int) -> Tensor:
            logits = self.centre + self.spread * torch.randn(shape, generator=draw)
            if self.form == "probabilities":
                # Slopes of up to 1/(1e-12): not in float16.
                logits = logits.sigmoid().clamp(*((1e-3, 1 - 1e-3) if self.dtype == torch.float16 else (0, 1)))
            return logits.to(self.dtype)

        if self.by_rows:
            tensors = {self.form: self._row_tensor(values)}
        else:
            tensors = {
                f"{self.form} {index}": level_tensor(self, height, width, values, self.classes)
                for index, (height, width) in enumerate(self.sizes)
            }
        leaves = tuple(tensors)
        if self.form == "class_logits":
            quality = self.spread * torch.randn(self.shape, generator=draw)
            tensors["quality_logits"] = quality.to(self.quality_dtype or kind)
            leaves += ("quality_logits",)
        if self.dense:
            tensors["target"] = _scores((self.rows, self.classes), draw) * (
                torch.rand(self.rows, self.classes, generator=draw) < 0.2
            )
            tensors["target"] = tensors["target"].to(kind)
            if self.form == "probabilities" and self.classes:  # J = y, exactly
                tensors["target"][::3, 0] = tensors[self.form][::3, 0].to(kind)
        else:
            tensors["labels"] = self._labels(draw)
            tensors["scores"] = _scores(self.shape, draw).to(kind)
        rows = torch.Size(self.shape).numel()
        keywords: dict[str, Any] = self.reduced.keywords(rows, kind, draw)
        if self.reduced.weighted:
            keywords["weight"] = keywords["weight"].reshape(self.shape)
        keywords |= {"form": self.form, "levels": 0 if self.by_rows else len(self.sizes), "beta": self.beta}
        return Call(tensors, keywords, leaves)

    def _row_tensor(self, values: Callable[..., Tensor]) -> Tensor:
        rows, classes = self.rows, self.classes
        if self.layout == "rows sliced":  # the class part of a longer prediction row
            return values(rows, classes + 5)[:, 5:]
        if self.layout == "rows classes apart":
            return values(classes, rows).T
        if self.layout == "rows steps":
            return values(rows, 2, classes, 2)[:, 1, :, 1]
        if self.layout == "rows expanded":
            return values(1, classes).expand(rows, classes)
        return values(rows, classes)

    def _labels(self, draw: torch.Generator) -> Tensor:
        background = torch.full(self.shape, self.classes)
        if self.labels == "none":
            return background
        labels = torch.randint(0, max(self.classes, 1), self.shape, generator=draw)
        if self.labels == "wild":  # what no kernel may follow into memory
            odd = torch.tensor([-1, -2, self.classes, self.classes + 1, 2**31, 2**32, -(2**32), 2**62, -(2**63)])
            background = odd[torch.randint(0, len(odd), self.shape, generator=draw)]
        return torch.where(torch.rand(self.shape, generator=draw) < 0.3, labels, background)


def _scores(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Numbers in [0, 1], both ends among them."""
    return (1.2 * torch.rand(shape, generator=draw) - 0.1).clamp(0, 1)


def adapted(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``qfl`` of the tensors of a `Call`."""

    def function(*tensors: Tensor, form: str, levels: int, **keywords: Any) -> Tensor:
        values = list(tensors[:levels]) if levels else tensors[0]
        rest = list(tensors[max(levels, 1) :])
        quality = rest.pop(0) if form == "class_logits" else None
        target = rest[0] if len(rest) == 1 else (rest[0], rest[1])
        return op(target, **{form: values}, quality_logits=quality, **keywords)

    return function


def magnitudes(call: Call) -> dict[str, Tensor]:
    """The sum of the absolute terms behind the quality's gradient, in which labels and other classes cancel.

    Nothing else cancels: the terms of a loss are positive, and so are both terms of a slope, or neither.
    """
    quality = call.tensors.get("quality_logits")
    if quality is None:
        return {}
    every = replace(call.converted(torch.float64), keywords={**call.keywords, "weight": None, "avg_factor": None})
    tensors = list(every.tensors.values())
    levels = call.keywords["levels"]
    values = torch.cat([level.flatten(2).mT for level in tensors[:levels]], 1) if levels else tensors[0]
    classes = values.shape[-1]
    if not values.numel():
        return {}
    # Each element as a row of its own.
    r = tensors[max(levels, 1)].flatten().repeat_interleave(classes).requires_grad_()
    rest = tensors[max(levels, 1) + 1 :]
    if len(rest) == 1:
        target: Any = rest[0].reshape(-1, 1)
    else:
        hit = rest[0].reshape(-1, 1) == torch.arange(classes)
        target = (torch.where(hit, 0, -1).flatten(), rest[1].flatten().repeat_interleave(classes))
    beta = call.keywords["beta"]
    losses = reference.qfl(target, class_logits=values.reshape(-1, 1), quality_logits=r, beta=beta, reduction="none")
    terms = torch.autograd.grad(losses.sum(), r)[0].abs().reshape(-1, classes).sum(1).reshape(quality.shape)
    return {"grad of quality_logits": (terms * _upstream(call, quality.shape)).clamp(min=1e-12)}


def _upstream(call: Call, shape: torch.Size) -> Tensor:
    """|∂<output, cotangent>/∂(loss of a row)|."""
    weight, factor = call.keywords["weight"], call.keywords["avg_factor"]
    reduction = call.keywords["reduction"]
    upstream = cotangent(torch.empty(shape if reduction == "none" else (), dtype=torch.float64)).abs()
    if reduction == "mean":
        upstream = upstream / (shape.numel() if factor is None else float(factor))
    return upstream * (torch.ones(shape) if weight is None else weight.cpu().double())
