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
replace.

Conventions of the package, which stay as they are:

* R = ``reg_max`` = 16 bins, values 0 … 15 strides (here ``reg_max`` is the number of bins; GFL's is one less);
* a target distance is clamped to [0, R − 1 − 0.01];
* points lie at half cells: cell (i, j) is at (j + 0.5, i + 0.5) strides;
* box logits are side-major, channel = side·R + bin, sides left, top, right, bottom: (B, 4·R, A) in ``Detect``,
  (B, A, 4·R) in the loss;
* the loss of a point is the mean over its four sides, (P, 1), not yet weighted.

Mixed precision: distances and boxes have the dtype of the logits, as before; inside, and in the loss, everything is
float32. While a model is exported (TorchScript, ONNX, torch.export) the package's own code runs, so that the file does
not need gflv2. ``torch.compile`` sees one operator and no graph break. Checkpoints hold nothing of ours. When the
trainer starts further processes for several GPUs by itself, these begin without the replacement; started by torchrun,
every process runs your script, and with it ``accelerate()``.

Nothing of the package, which is under AGPL-3.0, is copied here; what you do with both together falls under its licence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gflv2.integrations.common import Patch, require
from gflv2.integrations.methods import Method, always, replace_methods
from gflv2.ops.dfl import dfl
from gflv2.ops.integral import integral

require("ultralytics", "ultralytics")

# How far a target distance stays below the last bin.
CLAMP = 0.01

_patch = Patch()


def accelerate() -> None:
    """Replace the three methods, in this process and for all models. A second call undoes the first.

    Raises:
        RuntimeError: a version of the package that is not known here; then nothing is replaced.
    """
    from ultralytics.nn.modules.block import DFL
    from ultralytics.utils.loss import DFLoss, v8DetectionLoss

    restore()
    replace_methods(_patch, {"decode": DFL, "loss": DFLoss, "boxes": v8DetectionLoss}, _METHODS, "ultralytics")


def restore() -> None:
    """Put the package's own methods back."""
    _patch.restore()


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
        """(A, 2) points and (B, A, 4·R) logits → (B, A, 4) boxes (x1, y1, x2, y2), all in strides."""
        if not self.use_dfl:
            return original(self, anchor_points, pred_dist)
        batch, points, channels = pred_dist.shape
        rows = pred_dist.reshape(batch * points, 4, channels // 4)
        centres = anchor_points.expand(batch, points, 2).reshape(-1, 2)
        boxes = integral(rows, self.proj, points=centres, strides=centres.new_ones(len(centres)))
        return boxes.view(batch, points, 4).to(pred_dist.dtype)

    return bbox_decode


_METHODS = {
    "decode": Method("forward", ("x",), always(_dfl_decode)),
    "loss": Method("__call__", ("pred_dist", "target"), always(_dfl_loss)),
    "boxes": Method("bbox_decode", ("anchor_points", "pred_dist"), _bbox_decode),
}
