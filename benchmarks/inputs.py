"""Random head tensors and boxes of a case, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.cases import STRIDES, Case
from benchmarks.harness.operation import leaf
from gflv2.ops import Predictor

TOPK, HIDDEN = 4, 64


@dataclass
class Head:
    """What the network leaves: all of it asks for gradients."""

    class_logits: list[Tensor]
    box_logits: list[Tensor]
    scales: Tensor
    predictor: Predictor

    @property
    def arguments(self) -> dict[str, object]:
        """The keyword arguments that targets, loss and decoder share."""
        return {"strides": STRIDES, "scales": self.scales, "predictor": self.predictor}

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.class_logits, *self.box_logits, self.scales, *self.predictor[:4]]


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def levels(case: Case, channels: int, draw: torch.Generator, *, mean: float = 0.0, std: float = 1.0) -> list[Tensor]:
    """L normal tensors (B, channels, H_l, W_l)."""
    found = []
    for height, width in case.level_shapes:
        level = torch.randn(case.batch, channels, height, width, generator=draw, device=draw.device)
        level = (level * std + mean).to(case.torch_dtype)
        if case.layout == "channels_last":
            level = level.contiguous(memory_format=torch.channels_last)
        found.append(level)
    return leaf(found)


def box_levels(case: Case, draw: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Box logits and the levels' factors. Distributions from flat to sharp."""
    scales = 1 + 0.1 * torch.randn(len(STRIDES), generator=draw, device=draw.device)
    return levels(case, 4 * case.bins, draw, std=2.0), leaf(scales)


def predictor(draw: torch.Generator) -> Predictor:
    """The two layers of the quality predictor, at the size of the paper."""
    features, kind = 4 * (TOPK + 1), {"generator": draw, "device": draw.device}
    weights = [torch.randn(HIDDEN, features, **kind) * 0.3, torch.randn(HIDDEN, **kind) * 0.1]
    weights += [torch.randn(1, HIDDEN, **kind) * 0.3, torch.randn(1, **kind) * 0.1]
    return Predictor(*leaf(weights), topk=TOPK)


def head(case: Case, device: torch.device, seed: int) -> Head:
    """Class scores as a trained detector's: one in some thousand (point, class) pairs exceeds the score threshold."""
    draw = generator(device, seed)
    class_logits = levels(case, case.classes, draw, mean=-math.log(99), std=0.8)
    box_logits, scales = box_levels(case, draw)
    return Head(class_logits, box_logits, scales, predictor(draw))


def boxes(case: Case, device: torch.device, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and labels of a batch: ``case.boxes`` in each image, sides from 16 pixels to the image's, log-uniform."""
    draw = generator(device, seed)
    height, width = case.size
    found, labels = [], []
    for _ in range(case.batch):
        place = torch.rand(case.boxes, 4, generator=draw, device=device)
        limit = torch.tensor([width, height], device=device)
        centre, size = place[:, :2] * limit, 16 * (limit / 16) ** place[:, 2:]
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
        found.append(corners.clamp(min=0).minimum(limit.repeat(2)))
        labels.append(torch.randint(0, case.classes, (case.boxes,), generator=draw, device=device))
    return found, labels
