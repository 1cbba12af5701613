"""The box losses of D-FINE's criterion, in the authors' repository, in DEIM's and in transformers.

``loss_local`` is the fine-grained localisation loss (`gflv2.ops.fgl`) and, for layers that have a teacher, the
decoupled distillation focal loss (`gflv2.ops.ddf`); ``loss_boxes`` is L1 and GIoU. Theirs form the IoU of every matched
prediction with every matched box, (M, M), and take the diagonal; here it is one IoU a pair. Nothing waits for the
device.

Where results differ from the package's, beyond rounding:

* losses are float32 also for half-precision outputs;
* a pair of boxes without an area has the IoU 0; theirs makes the whole loss no number, which the authors turn into 0;
* of a layer that is its own teacher ``loss_ddf`` is 0; DEIM leaves the entry out;
* boxes of negative width or height count as empty; transformers raises an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gflv2.integrations.methods import Method, always, average_factor
from gflv2.ops.ddf import ddf
from gflv2.ops.dfl import dfl
from gflv2.ops.fgl import bin_positions
from gflv2.ops.giou import giou, iou

# The smallest area, in units of the image's: far below that of a pixel.
SMALLEST_AREA = 1e-12


def bin_values(last: int, up: Tensor, reg_scale: Tensor | float) -> Tensor:
    """W(n), (last + 1,): 0 in the middle, growing by a power to both sides, and ±2·|up·reg_scale| at the ends.

    Args:
        last: number of the last bin, even.
        up: (1,), and ``reg_scale``: the range of the bins between the ends is ±|up·reg_scale|.
    """
    top = (up.detach()[0] * reg_scale).abs().float().reshape(1)
    step = (top + 1) ** (2 / (last - 2))
    inner = step ** torch.arange(1, last // 2, device=top.device) - 1
    return torch.cat([-2 * top, -inner.flip(0), torch.zeros_like(top), inner, 2 * top])


def distances_to_sides(reference: Tensor, boxes: Tensor, reg_scale: Tensor | float) -> Tensor:
    """(M, 4) reference boxes (x, y, w, h) and (M, 4) corners → (M, 4) distances beyond the reference's own sides.

    Left, top, right and bottom, in units of the width or height by ``reg_scale``.
    """
    scale = abs(reg_scale)
    unit = reference[:, 2:] / scale + 1e-16  # as the package keeps from dividing by 0
    centre = reference[:, :2]
    return torch.cat([(centre - boxes[:, :2]) / unit, (boxes[:, 2:] - centre) / unit], dim=-1) - 0.5 * scale


def _loss_local(self: Any, outputs: dict, targets: list, indices: list, num_boxes: Any, T: float = 5) -> dict:  # noqa: N803
    """``loss_fgl``, and ``loss_ddf`` where there is a teacher; nothing for outputs without distributions."""
    if "pred_corners" not in outputs:
        return {}
    index, box_logits = _index(self, indices), outputs["pred_corners"]
    wanted = corners(_matched_boxes(targets, indices))
    quality = iou(corners(outputs["pred_boxes"][index].detach()), wanted, eps=SMALLEST_AREA)
    rows = box_logits[index].unflatten(-1, (4, -1)).flatten(0, 1)
    positions = _positions(self, outputs, index, wanted)
    weight = quality.repeat_interleave(4)
    losses = {"loss_fgl": dfl(rows, positions, weight=weight, avg_factor=average_factor(num_boxes, rows))}
    teacher = outputs.get("teacher_corners")
    if teacher is not None:
        losses["loss_ddf"] = _distillation(self, outputs, index, quality, box_logits, teacher, T)
    return losses


def _positions(self: Any, outputs: dict, index: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
    """Where the matched boxes lie among the bins, (4·M,).

    The authors' criterion forms them once, of its first layer and of the first denoising layer, for all.
    """
    kept = None
    if "up" in outputs:
        kept = "fgl_targets_dn" if "is_dn" in outputs else "fgl_targets"
        if getattr(self, kept) is not None:
            return getattr(self, kept)
    up, reg_scale = (outputs["up"], outputs["reg_scale"]) if kept else (self.up, self.reg_scale)
    with torch.no_grad():
        bins = bin_values(outputs["pred_corners"].shape[-1] // 4 - 1, up, reg_scale)
        reference = outputs["ref_points"][index].float()
        positions = bin_positions(distances_to_sides(reference, wanted, reg_scale).flatten(), bins)
    if kept:
        setattr(self, kept, positions)
    return positions


def _distillation(
    self: Any,
    outputs: dict,
    index: tuple[Tensor, Tensor],
    quality: Tensor,
    box_logits: Tensor,
    teacher: Tensor,
    temperature: float,
) -> Tensor:
    if box_logits.data_ptr() == teacher.data_ptr() and box_logits.stride() == teacher.stride():
        return torch.zeros((), device=box_logits.device)  # the last layer, which is the teacher
    matched = torch.zeros(box_logits.shape[:2], dtype=torch.bool, device=box_logits.device)
    matched.index_put_(index, torch.ones_like(quality, dtype=torch.bool))
    weight = outputs["teacher_logits"].detach().amax(-1).float().sigmoid()
    weight.index_put_(index, quality.detach().to(weight.dtype))
    # Of the denoising queries the authors take the balance of the last layer before them.
    if "is_dn" not in outputs or self.num_pos is None:
        count = matched.sum()
        self.num_pos, self.num_neg = count.sqrt(), (matched.numel() - count).sqrt()
    bins = box_logits.shape[-1] // 4
    return ddf(
        box_logits.reshape(-1, bins),
        teacher.detach().reshape(-1, bins),
        matched.flatten().repeat_interleave(4),
        weight=weight.flatten().repeat_interleave(4),
        temperature=temperature,
        balance=(self.num_pos, self.num_neg),
    )


def _loss_boxes(
    self: Any, outputs: dict, targets: list, indices: list, num_boxes: Any, boxes_weight: Tensor | None = None
) -> dict:
    """``loss_bbox``: L1 of centre and size; ``loss_giou``."""
    found, wanted = outputs["pred_boxes"][_index(self, indices)].float(), _matched_boxes(targets, indices)
    factor = average_factor(num_boxes, found)
    loss = giou(corners(found), corners(wanted), weight=boxes_weight, avg_factor=factor, eps=SMALLEST_AREA)
    return {"loss_bbox": (found - wanted).abs().sum() / factor, "loss_giou": loss}


def _index(self: Any, indices: list) -> tuple[Tensor, Tensor]:
    """Image and query of every match; the authors and transformers call it by two names."""
    name = "_get_src_permutation_idx" if hasattr(self, "_get_src_permutation_idx") else "_get_source_permutation_idx"
    return getattr(self, name)(indices)


def _matched_boxes(targets: list, indices: list) -> Tensor:
    """(M, 4) centre and size, float32."""
    pairs = zip(targets, indices, strict=True)
    return torch.cat([target["boxes"][places] for target, (_, places) in pairs]).float()


def corners(boxes: Tensor) -> Tensor:
    """(M, 4) centre and size → corners, float32."""
    centre, half = boxes[:, :2].float(), 0.5 * boxes[:, 2:].float().clamp(min=0)
    return torch.cat([centre - half, centre + half], dim=-1)


_PARAMETERS = ("outputs", "targets", "indices", "num_boxes")
METHODS = {
    "loss_local": Method("loss_local", _PARAMETERS, always(_loss_local)),
    "loss_boxes": Method("loss_boxes", _PARAMETERS, always(_loss_boxes)),
}
