"""Ultralytics YOLOv8, YOLO11 and every other model of theirs whose boxes are distributions.

    from gflv2.integrations import ultralytics
    ultralytics.accelerate()

replaces, at run time and in every model that exists or will be built:

* ``DFLoss.__call__``, the distribution focal loss, by `gflv2.ops.dfl`;
* ``v8DetectionLoss.bbox_decode``, the boxes of all points in training, by `gflv2.ops.integral`;
* ``DFL.forward``, the decoding in ``Detect`` and its relatives (segmentation, pose, oriented boxes), by
  `gflv2.ops.integral`.

Not replaced: the task-aligned assigner, CIoU, the class loss (plain BCE) and NMS, which are other algorithms; and
oriented boxes' own ``bbox_decode``. Models without distributions (``reg_max = 1``, as in YOLO26) have nothing to
replace. ``accelerate()`` returns and logs all this; ``report(model)`` says it of one model.

Conventions of the package, which stay as they are:

* R = ``reg_max`` = 16 bins, values 0 … 15 strides (here ``reg_max`` is the number of bins; GFL's is one less);
* a target distance is clamped to [0, R − 1 − 0.01];
* points lie at half cells: cell (i, j) is at (j + 0.5, i + 0.5) strides;
* box logits are side-major, channel = side·R + bin, sides left, top, right, bottom: (B, 4·R, A) in ``Detect``,
  (B, A, 4·R) in the loss;
* the loss of a point is the mean over its four sides, (P, 1), not yet weighted.

Mixed precision: the boxes in training, and the loss, are float32 also for half-precision logits (the package has boxes
in the dtype of the logits: in bfloat16, to half a stride beyond 64 strides); the distances that ``DFL`` decodes have
the dtype of the logits, as the package's. Inside everything is float32. While a model is exported (TorchScript, ONNX,
torch.export) the package's own code runs, so that the file does not need gflv2. ``torch.compile`` sees one operator and
no graph break. Checkpoints hold nothing of ours. When the trainer starts further processes for several GPUs by itself,
these begin without the replacement; started by torchrun, every process runs your script, and with it ``accelerate()``.

Nothing of the package, which is under AGPL-3.0, is copied here; what you do with both together falls under its licence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gflv2.integrations.common import Patch, require
from gflv2.integrations.methods import Method, always, replace_methods
from gflv2.integrations.report import Replaced, Report, Stayed, answer, full_name
from gflv2.ops.checks import bad_type
from gflv2.ops.dfl import dfl
from gflv2.ops.integral import integral

require("ultralytics", "ultralytics")

# How far a target distance stays below the last bin.
CLAMP = 0.01

_STAYED = (
    Stayed("TaskAlignedAssigner", "another assignment than ATSS"),
    Stayed("BboxLoss", "its CIoU is not GIoU"),
    Stayed("class loss", "plain binary cross entropy"),
    Stayed("RotatedBboxLoss, v8OBBLoss.bbox_decode", "boxes with an angle"),
    Stayed("non_max_suppression", "comes after what is decoded here, and takes the package's own layout"),
    Stayed("models with reg_max = 1 (YOLO26)", "their boxes are no distributions: nothing of theirs is replaced"),
)
_patch = Patch()
_replaced: list[Replaced] = []


def accelerate() -> Report:
    """Replace the three methods, in this process and for all models. A second call finds nothing left to replace.

    Returns:
        What was replaced, and what stayed with the package and why; it is logged, too.

    Raises:
        RuntimeError: a version of the package that is not known here; then nothing is replaced.
    """
    from ultralytics.nn.modules.block import DFL
    from ultralytics.utils.loss import DFLoss, v8DetectionLoss

    earlier = list(_replaced)
    restore()
    classes = {"decode": DFL, "loss": DFLoss, "boxes": v8DetectionLoss}
    _replaced.extend(replace_methods(_patch, classes, _METHODS, "ultralytics"))
    return answer("ultralytics", _replaced, earlier, _STAYED)


def restore() -> None:
    """Put the package's own methods back."""
    _patch.restore()
    _replaced.clear()


def report(model: nn.Module) -> Report:
    """What of a model runs on our operations now, by the names of its heads, and what does not.

    Args:
        model: a ``YOLO`` or the network in it.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", "a YOLO, or another torch.nn.Module", model)
    heads = {name: module for name, module in model.named_modules() if hasattr(module, "reg_max")}
    found, stayed = [], [*_STAYED[:-1]]
    if not heads:
        stayed.append(Stayed(full_name(model), "has no head with boxes"))
    for name, head in heads.items():
        where = f"{name} ({type(head).__name__})"
        if head.reg_max <= 1:
            stayed.append(Stayed(where, f"reg_max = {head.reg_max}: its boxes are no distributions"))
            continue
        rotated = any(kind.__name__ == "OBB" for kind in type(head).__mro__)  # their loss has a bbox_decode of its own
        methods = [one for one in _replaced if not (rotated and one.what.endswith(".bbox_decode"))]
        found += [one._replace(where=(where,)) for one in methods]
        if not methods:
            stayed.append(Stayed(where, "accelerate() was not called"))
    return Report(f"{full_name(model)}", tuple(found), (), tuple(stayed))


def _dfl_loss(self: Any, pred_dist: Tensor, target: Tensor) -> Tensor:
    """(P·4, R) logits and (P, 4) distances → (P, 1)."""
    distances = target.clamp(0, self.reg_max - 1 - CLAMP)
    return dfl(pred_dist, distances.flatten(), reduction="none").view(target.shape).mean(-1, keepdim=True)


def _dfl_decode(self: Any, x: Tensor) -> Tensor:
    """(B, 4·R, A) logits → (B, 4, A) distances. The bins' values are the weights of the module's convolution."""
    distances = integral([x.unsqueeze(2)], self.conv.weight.flatten())
    return distances.transpose(1, 2).to(x.dtype)


def _bbox_decode(original: Callable) -> Callable:
    def bbox_decode(self: Any, anchor_points: Tensor, pred_dist: Tensor) -> Tensor:
        """(A, 2) points and (B, A, 4·R) logits → (B, A, 4) boxes (x1, y1, x2, y2), float32; all in strides."""
        if not self.use_dfl:
            return original(self, anchor_points, pred_dist)
        batch, points, channels = pred_dist.shape
        rows = pred_dist.reshape(batch * points, 4, channels // 4)
        centres = anchor_points.expand(batch, points, 2).reshape(-1, 2)
        boxes = integral(rows, self.proj, points=centres, strides=centres.new_ones(len(centres)))
        return boxes.view(batch, points, 4)

    return bbox_decode


_METHODS = {
    "decode": Method("forward", ("x",), always(_dfl_decode)),
    "loss": Method("__call__", ("pred_dist", "target"), always(_dfl_loss)),
    "boxes": Method("bbox_decode", ("anchor_points", "pred_dist"), _bbox_decode),
}
