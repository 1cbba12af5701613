"""Small modules with the interface that NanoDet, DAMO-YOLO and D-FINE document, in plain PyTorch.

The packages themselves have to be cloned, so that the tests of every day run on these. What they compute is written
from the formulas; the parameters of constructors and methods are those of the packages.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


class Loss(nn.Module):
    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0, **settings) -> None:
        super().__init__()
        self.reduction, self.loss_weight = reduction, loss_weight
        vars(self).update(settings)

    def reduced(self, rows: Tensor, weight: Tensor | None, avg_factor: float | None, override: str | None) -> Tensor:
        rows = rows if weight is None else rows * weight
        how = override or self.reduction
        total = {
            "none": rows,
            "sum": rows.sum(),
            "mean": rows.sum() / (rows.numel() if avg_factor is None else avg_factor),
        }[how]
        return self.loss_weight * total


class QualityFocalLoss(Loss):
    def __init__(self, use_sigmoid: bool = True, beta: float = 2.0, **settings) -> None:
        super().__init__(use_sigmoid=use_sigmoid, beta=beta, **settings)

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        labels, scores = target
        y = F.one_hot(labels, pred.shape[1] + 1)[:, : pred.shape[1]] * scores[:, None]  # label C: background
        entropy = F.binary_cross_entropy_with_logits if self.use_sigmoid else F.binary_cross_entropy
        p = pred.sigmoid() if self.use_sigmoid else pred
        rows = (entropy(pred, y, reduction="none") * (y - p).abs().pow(self.beta)).sum(1)
        return self.reduced(rows, weight, avg_factor, reduction_override)


class DistributionFocalLoss(Loss):
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        bins = torch.arange(pred.shape[1])
        shares = (1 - (target[:, None] - bins).abs()).clamp(min=0)  # the two bins beside the target, by nearness
        return self.reduced(-(shares * pred.log_softmax(1)).sum(1), weight, avg_factor, reduction_override)


class GIoULoss(Loss):
    def __init__(self, eps: float = 1e-6, **settings) -> None:
        super().__init__(eps=eps, **settings)

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, **kwargs):
        def area(low, high):
            return (high - low).clamp(min=0).prod(1)

        (a, b), (c, d) = (boxes.split(2, dim=1) for boxes in (pred, target))
        common = area(torch.maximum(a, c), torch.minimum(b, d))
        union = (area(a, b) + area(c, d) - common).clamp(min=self.eps)
        around = area(torch.minimum(a, c), torch.maximum(b, d)).clamp(min=self.eps)
        weight = weight.mean(1) if weight is not None and weight.dim() == 2 else weight
        return self.reduced(1 - common / union + (around - union) / around, weight, avg_factor, reduction_override)


LOSSES = {
    "quality_focal_loss": QualityFocalLoss,
    "distribution_focal_loss": DistributionFocalLoss,
    "giou_loss": GIoULoss,
}


class NanoDetIntegral(nn.Module):
    """(…, 4·(reg_max + 1)) logits → (…, 4)."""

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.register_buffer("project", torch.arange(reg_max + 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x.unflatten(-1, (4, self.reg_max + 1)).softmax(-1) * self.project).sum(-1)


class DamoIntegral(nn.Module):
    """(B, A, 4, reg_max + 1) probabilities → (B, A, 4)."""

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.register_buffer("project", torch.arange(reg_max + 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.project).sum(-1)


class ZeroHead(nn.Module):
    """One level of DAMO-YOLO's head, and what follows in training: distances of all points."""

    def __init__(self, reg_max: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.reg_max, self.integral = reg_max, DamoIntegral(reg_max)
        self.cls_convs, self.reg_convs = nn.ModuleList([nn.Conv2d(8, 8, 1)]), nn.ModuleList([nn.Conv2d(8, 8, 1)])
        self.gfl_cls, self.gfl_reg = nn.Conv2d(8, classes, 3, padding=1), nn.Conv2d(8, 4 * (reg_max + 1), 3, padding=1)
        self.scale = nn.Identity()

    def forward_single(self, x, cls_convs, reg_convs, gfl_cls, gfl_reg, scale):
        scores, logits = gfl_cls(cls_convs[0](x)).sigmoid(), scale(gfl_reg(reg_convs[0](x)))
        if not self.training:
            return scores, logits
        rows = logits.unflatten(1, (4, self.reg_max + 1)).flatten(3).permute(0, 3, 1, 2)
        return scores.flatten(2).transpose(1, 2), rows.softmax(-1), rows

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """In training: scores (B, A, C), distances (B, A, 4), box logits (B, A, 4, R); else scores and distances."""
        layers = (self.cls_convs, self.reg_convs, self.gfl_cls, self.gfl_reg, self.scale)
        found = [self.forward_single(level, *layers) for level in features]
        if self.training:
            scores, boxes, logits = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
            return scores, self.integral(boxes), logits
        scores = torch.cat([part[0].flatten(2).transpose(1, 2) for part in found], dim=1)
        rows = [part[1].unflatten(1, (4, self.reg_max + 1)).flatten(3).permute(0, 3, 1, 2) for part in found]
        return scores, self.integral(torch.cat(rows, dim=1).softmax(-1))


class AssignResult:
    """Of one image: box of each point (0: none, k: box k − 1), its overlap and its label."""

    def __init__(self, num_gts: int, gt_inds: Tensor, max_overlaps: Tensor, labels: Tensor | None = None) -> None:
        self.num_gts, self.gt_inds, self.max_overlaps, self.labels = num_gts, gt_inds, max_overlaps, labels


class DynamicAssigner:
    """What both packages' assigners do, box by box and point by point, with a cost of their own."""

    topk = 13

    def candidates(self, points: Tensor, strides: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(A,) points that take part, (A, G) what the place of a point costs beside a box."""
        inside = torch.cat([points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]], 2).amin(2) > 0
        return inside.any(1), torch.zeros(inside.shape)

    def class_cost(self, scores: Tensor, target: Tensor) -> Tensor:
        p = scores.sigmoid()
        return (F.binary_cross_entropy_with_logits(scores, target, reduction="none") * (target - p) ** 2).sum(-1)

    def assign(self, pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, gt_bboxes_ignore=None):
        total, boxes = len(priors), len(gt_bboxes)
        index, overlaps = torch.zeros(total, dtype=torch.long), torch.zeros(total)
        usable, place = self.candidates(priors[:, :2], priors[:, 2], gt_bboxes)
        if not boxes or not usable.any():
            return AssignResult(boxes, index, overlaps, labels=torch.full((total,), -1))
        iou = torchvision.ops.box_iou(decoded_bboxes, gt_bboxes)
        cost = place + self.iou_weight * -torch.log(iou + 1e-7)
        for box, label in enumerate(gt_labels.tolist()):
            target = torch.zeros_like(pred_scores)
            target[:, label] = iou[:, box]
            cost[:, box] += self.class_cost(pred_scores, target)
        cost[~usable] = torch.inf
        chosen = torch.zeros(total, boxes, dtype=torch.bool)
        for box in range(boxes):
            k = max(1, int(iou[usable, box].sort(descending=True).values[: self.topk].sum()))
            chosen[cost[:, box].argsort()[:k], box] = True
        best = torch.where(chosen.sum(1) > 1, cost.argmin(1), chosen.int().argmax(1))
        positive = chosen.any(1)
        index[positive] = best[positive] + 1
        overlaps = torch.where(positive, iou.gather(1, best[:, None])[:, 0], -1e8)
        return AssignResult(boxes, index, overlaps, labels=torch.where(positive, gt_labels[best], -1))


class NanoDetAssigner(DynamicAssigner):
    def __init__(self, topk: int = 13, iou_factor: float = 3.0, ignore_iof_thr: float = -1) -> None:
        self.topk, self.iou_factor, self.ignore_iof_thr = topk, iou_factor, ignore_iof_thr

    @property
    def iou_weight(self) -> float:
        return self.iou_factor


class DamoAssigner(DynamicAssigner):
    def __init__(self, center_radius=2.5, candidate_topk=10, iou_weight=3.0, cls_weight=1.0) -> None:
        self.center_radius, self.candidate_topk = center_radius, candidate_topk
        self.iou_weight, self.cls_weight = iou_weight, cls_weight
        self.topk = candidate_topk

    def candidates(self, points: Tensor, strides: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.cat([points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]], 2).amin(2) > 0
        offset = (points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs()
        near = (offset < self.center_radius * strides[:, None, None]).all(2)
        return (inside | near).any(1), torch.where(inside & near, 0.0, 1e8)

    def class_cost(self, scores: Tensor, target: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy(scores, target, reduction="none")
        return self.cls_weight * (entropy * (target - scores) ** 2).sum(-1)

    def assign(self, pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, gt_bboxes_ignore=None, eps=1e-7):
        return super().assign(pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, gt_bboxes_ignore)


class Predictor(nn.Module):
    """D-FINE's MLP."""

    def __init__(self, sizes: list[int], act: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


def dfine_module() -> ModuleType:
    """A Python module as D-FINE's and DEIM's ``dfine_decoder``: classes Integral and LQE, and the function."""
    module = ModuleType("dfine_decoder")
    module.count = 0

    class Integral(nn.Module):
        def __init__(self, reg_max: int = 32) -> None:
            super().__init__()
            self.reg_max = reg_max

        def forward(self, x: Tensor, project: Tensor) -> Tensor:
            return (x.unflatten(-1, (4, self.reg_max + 1)).softmax(-1) * project).sum(-1)

    class LQE(nn.Module):
        def __init__(self, k: int, hidden_dim: int, num_layers: int, reg_max: int, act: nn.Module) -> None:
            super().__init__()
            self.k, self.reg_max = k, reg_max
            self.reg_conf = Predictor([4 * (k + 1)] + [hidden_dim] * (num_layers - 1) + [1], act)

        def forward(self, scores: Tensor, pred_corners: Tensor) -> Tensor:
            top = pred_corners.unflatten(-1, (4, self.reg_max + 1)).softmax(-1).topk(self.k).values
            return scores + self.reg_conf(torch.cat([top, top.mean(-1, keepdim=True)], dim=-1).flatten(2))

    def weighting_function(reg_max: int, up: Tensor, reg_scale: Tensor, deploy: bool = False) -> Tensor:
        """W(n): 0 in the middle, from there ±((1 + a)^(2·i / (n − 2)) − 1) with a = up·reg_scale, ±2·a at the ends."""
        module.count += 1
        bound, steps = (up * reg_scale).abs(), torch.arange(1, reg_max // 2)
        side = (1 + bound) ** (2 * steps / (reg_max - 2)) - 1
        return torch.cat([-2 * bound, -side.flip(0), torch.zeros(1), side, 2 * bound])

    for value in (Integral, LQE):
        value.__module__ = module.__name__
        setattr(module, value.__name__, value)
    module.weighting_function = weighting_function
    return module
