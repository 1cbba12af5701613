"""Small random heads for the tests of the operations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gflv2.ops import Assignment, Predictor, atss

STRIDES = [8, 16]
SHAPES = [(4, 6), (2, 3)]


@dataclass
class RandomHead:
    """Two images, two levels, three classes; ``leaves`` are the differentiable tensors in a fixed order."""

    dtype: torch.dtype = torch.float32
    bins: int = 6
    classes: int = 3
    topk: int = 3
    seed: int = 0
    boxes: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype).requires_grad_()

        self.class_logits = [normal(2, self.classes, *shape) for shape in SHAPES]
        self.box_logits = [normal(2, 4 * self.bins, *shape) for shape in SHAPES]
        self.scales = normal(len(SHAPES))
        features = 4 * (self.topk + 1)
        self.layers = [normal(5, features), normal(5), normal(1, 5), normal(1)]
        self.projection = torch.arange(self.bins, dtype=self.dtype).requires_grad_()
        if not self.boxes:
            self.boxes = [torch.tensor([[2.0, 3.0, 30.0, 20.0], [20.0, 4.0, 44.0, 30.0]]), torch.zeros(0, 4)]
            self.labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)]

    @property
    def predictor(self) -> Predictor:
        return Predictor(*self.layers, topk=self.topk, mean=True)

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.class_logits, *self.box_logits, self.scales, self.projection, *self.layers]

    def rebuild(self, *leaves: Tensor) -> tuple[list[Tensor], list[Tensor], dict]:
        """Arguments of gfl_targets, gfl_loss and decode from other leaves in the same order."""
        count = len(SHAPES)
        options = {"strides": STRIDES, "scales": leaves[2 * count], "projection": leaves[2 * count + 1]}
        options["predictor"] = Predictor(*leaves[2 * count + 2 :], topk=self.topk, mean=True)
        return list(leaves[:count]), list(leaves[count : 2 * count]), options

    def arguments(self) -> tuple[list[Tensor], list[Tensor], dict]:
        return self.rebuild(*self.leaves)

    def assign(self, **options) -> Assignment:
        return atss(self.boxes, self.labels, SHAPES, STRIDES, anchor_scale=3.0, **options)
