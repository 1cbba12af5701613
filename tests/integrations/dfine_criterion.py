"""What stands in for the criterion of D-FINE and DEIM, whose repositories are no packages: its interface.

Of the methods only those that ours replace, with the authors' arguments, attributes and keys of the outputs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bin_values(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """W(n): 0 in the middle, from there ±((1 + a)^(2·i / (n − 2)) − 1) with a = up·reg_scale, ±2·a at the ends."""
    bound, steps = (up * reg_scale).abs(), torch.arange(1, reg_max // 2)
    side = (1 + bound) ** (2 * steps / (reg_max - 2)) - 1
    return torch.cat([-2 * bound, -side.flip(0), torch.zeros(1), side, 2 * bound])


def corners_of(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of aligned pairs of corners."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - inner
    return inner / union, inner / union - (outer - union) / outer


class Criterion(nn.Module):
    def __init__(self, reg_max: int = 32) -> None:
        super().__init__()
        self.reg_max = reg_max
        self.start()

    def start(self) -> None:
        """As at the start of the authors' ``forward``."""
        self.fgl_targets = self.fgl_targets_dn = self.num_pos = self.num_neg = None

    def _get_src_permutation_idx(self, indices: list) -> tuple[Tensor, Tensor]:
        images = torch.cat([torch.full_like(queries, image) for image, (queries, _) in enumerate(indices)])
        return images, torch.cat([queries for queries, _ in indices])

    def loss_boxes(
        self, outputs: dict, targets: list, indices: list, num_boxes: float, boxes_weight: Tensor | None = None
    ) -> dict:
        found = outputs["pred_boxes"][self._get_src_permutation_idx(indices)]
        wanted = torch.cat([t["boxes"][i] for t, (_, i) in zip(targets, indices, strict=True)])
        loss = 1 - iou_and_giou(corners_of(found), corners_of(wanted))[1]
        loss = loss if boxes_weight is None else loss * boxes_weight
        return {"loss_bbox": F.l1_loss(found, wanted, reduction="sum") / num_boxes, "loss_giou": loss.sum() / num_boxes}

    def loss_local(self, outputs: dict, targets: list, indices: list, num_boxes: float, T: float = 5) -> dict:  # noqa: N803
        if "pred_corners" not in outputs:
            return {}
        index = self._get_src_permutation_idx(indices)
        wanted = corners_of(torch.cat([t["boxes"][i] for t, (_, i) in zip(targets, indices, strict=True)]))
        kept = "fgl_targets_dn" if "is_dn" in outputs else "fgl_targets"
        if getattr(self, kept) is None:
            setattr(self, kept, self._targets(outputs, outputs["ref_points"][index], wanted))
        left, share = getattr(self, kept)
        log_p = outputs["pred_corners"][index].reshape(-1, self.reg_max + 1).log_softmax(-1)
        quality = iou_and_giou(corners_of(outputs["pred_boxes"][index]), wanted)[0].detach()
        below, above = (log_p.gather(1, (left + step)[:, None])[:, 0] for step in (0, 1))
        rows = -((1 - share) * below + share * above) * quality.repeat_interleave(4)
        losses = {"loss_fgl": rows.sum() / num_boxes}
        if "teacher_corners" in outputs:
            losses["loss_ddf"] = self._distillation(outputs, index, quality, T)
        return losses

    def _targets(self, outputs: dict, reference: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        scale = outputs["reg_scale"].abs()
        values = bin_values(self.reg_max, outputs["up"], outputs["reg_scale"])
        unit = reference[:, 2:] / scale
        low = (reference[:, :2] - wanted[:, :2]) / unit - scale / 2
        high = (wanted[:, 2:] - reference[:, :2]) / unit - scale / 2
        distances = torch.cat([low, high], 1).flatten().clamp(values[0], values[-1])
        left = ((values <= distances[:, None]).sum(1) - 1).clamp(max=self.reg_max - 1)
        return left, (distances - values[left]) / (values[left + 1] - values[left])

    def _distillation(self, outputs: dict, index: tuple[Tensor, Tensor], quality: Tensor, temperature: float) -> Tensor:
        student, teacher = outputs["pred_corners"], outputs["teacher_corners"].detach()
        if torch.equal(student, teacher):
            return student.sum() * 0
        weight = outputs["teacher_logits"].detach().sigmoid().max(-1)[0]
        weight[index] = quality
        matched = torch.zeros(weight.shape, dtype=torch.bool)
        matched[index] = True
        p, log_q = ((z.unflatten(-1, (4, -1)) / temperature).log_softmax(-1) for z in (teacher, student))
        rows = (p.exp() * (p - log_q)).sum(-1) * temperature**2 * weight[..., None]
        if "is_dn" not in outputs:
            scale = 8 / len(student) * 4
            self.num_pos, self.num_neg = (matched.sum() * scale) ** 0.5, ((~matched).sum() * scale) ** 0.5
        parts = [rows[mask].mean() if mask.any() else torch.zeros(()) for mask in (matched, ~matched)]
        return (parts[0] * self.num_pos + parts[1] * self.num_neg) / (self.num_pos + self.num_neg)


def criterion_module() -> ModuleType:
    """A Python module as D-FINE's ``dfine_criterion``."""
    module = ModuleType("dfine_criterion")

    class DFINECriterion(Criterion):
        loss_local, loss_boxes = Criterion.loss_local, Criterion.loss_boxes

    DFINECriterion.__module__ = module.__name__
    module.DFINECriterion = DFINECriterion
    return module


def layers(queries: int = 12, count: int = 3, *, dtype: torch.dtype = torch.float32, **more: Any) -> list[dict]:
    """Outputs of the layers of a decoder, for two images; the last is the teacher. Leaves want a gradient."""
    draw = torch.Generator().manual_seed(len(more))
    found = []
    for _ in range(count):
        centre, size = (torch.rand(2, queries, 2, generator=draw) for _ in range(2))
        boxes = torch.cat([0.3 + 0.4 * centre, 0.2 + 0.3 * size], -1)
        corners = (2 * torch.randn(2, queries, 132, generator=draw)).to(dtype)
        found.append({"pred_boxes": boxes.requires_grad_(), "pred_corners": corners.requires_grad_()})
    scores = torch.randn(2, queries, 5, generator=draw)
    reference = torch.cat([0.3 + 0.4 * centre, 0.2 + 0.3 * size.flip(1)], -1)
    for layer in found:
        layer |= {"ref_points": reference, "up": torch.tensor([0.5]), "reg_scale": torch.tensor([4.0]), **more}
        layer |= {"teacher_corners": found[-1]["pred_corners"], "teacher_logits": scores}
    return found
