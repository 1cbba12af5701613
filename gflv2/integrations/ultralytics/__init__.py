"""Ultralytics YOLOv8, YOLO11 and every other model of theirs whose boxes are distributions.

    from gflv2.integrations import ultralytics
    ultralytics.accelerate()

replaces, at run time and in every model that exists or will be built:

* ``TaskAlignedAssigner.forward`` by `gflv2.ops.task_aligned`; classes derived from it, whose overlaps are of angles,
  masks or keypoints, keep their own;
* ``v8DetectionLoss.get_assigned_targets_and_loss``, what detection, segmentation and pose do with the assignment: the
  class loss by `gflv2.ops.qfl` at β = 0, which is binary cross entropy, from one label and score a point; the boxes for
  the assigner without a gradient; box and distribution loss of the positive points alone;
* ``DFLoss.__call__``, the distribution focal loss, by `gflv2.ops.dfl`;
* ``v8DetectionLoss.bbox_decode``, the boxes of all points in training, by `gflv2.ops.integral`;
* ``DFL.forward``, the decoding in ``Detect`` and its relatives (segmentation, pose, oriented boxes), by
  `gflv2.ops.integral`.

Not replaced: CIoU of the positive points, NMS, and oriented boxes' own loss. Where a criterion has class weights, or
parts that somebody has replaced, the package's own loop goes on around the assigner. Of models without distributions
(``reg_max = 1``, as in YOLO26) the assigner alone is replaced. ``accelerate()`` returns and logs all this;
``report(model)`` says it of one model.

Conventions of the package, which stay as they are:

* R = ``reg_max`` = 16 bins, values 0 … 15 strides (here ``reg_max`` is the number of bins; GFL's is one less);
* a target distance is clamped to [0, R − 1 − 0.01];
* points lie at half cells: cell (i, j) is at (j + 0.5, i + 0.5) strides;
* the assigner takes the 10 points of highest score^0.5 · CIoU^6 inside a box whose sides are at least the second stride
  (16 px); of equal metrics, among them those of points without any overlap, the lower point, where the package has what
  ``topk`` gives;
* box logits are side-major, channel = side·R + bin, sides left, top, right, bottom: (B, 4·R, A) in ``Detect``,
  (B, A, 4·R) in the loss;
* the loss of a point is the mean over its four sides, (P, 1), not yet weighted.

Mixed precision: the boxes and points in training, the metric and all losses are float32 also for half-precision logits
(the package has boxes in the dtype of the logits: in bfloat16, to half a stride beyond 64 strides); the distances that
``DFL`` decodes have the dtype of the logits, as the package's. Inside everything is float32. While a model is exported
(TorchScript, ONNX, torch.export) the package's own code runs, so that the file does not need gflv2. ``torch.compile``
sees one operator and no graph break. Checkpoints hold nothing of ours. When the trainer starts further processes for
several GPUs by itself, these begin without the replacement; started by torchrun, every process runs your script, and
with it ``accelerate()``.

Nothing of the package, which is under AGPL-3.0, is copied here; what you do with both together falls under its licence.
"""

from __future__ import annotations

from torch import nn

from gflv2.integrations.common import require
from gflv2.integrations.methods import Method, Replacements, always
from gflv2.integrations.report import Report, Stayed, answer, full_name
from gflv2.integrations.ultralytics import assigner, criterion, distributions
from gflv2.ops.checks import bad_type

require("ultralytics", "ultralytics")

_STAYED = (
    Stayed("assigners derived from TaskAlignedAssigner", "their overlaps are of angles, masks or keypoints"),
    Stayed("an assigner with eps = 0", "the operation would divide by 0"),
    Stayed("CIoU of the box loss", "of the positive points alone: too few to matter"),
    Stayed("a criterion with class weights", "the package's own loop goes on, around the assigner"),
    Stayed("RotatedBboxLoss, v8OBBLoss", "boxes with an angle"),
    Stayed("non_max_suppression", "comes after what is decoded here, and takes the package's own layout"),
    Stayed(
        "models with reg_max = 1 (YOLO26)", "their boxes are no distributions: of theirs the assigner alone is replaced"
    ),
)
_ours = Replacements("ultralytics")


def accelerate() -> Report:
    """Replace the methods, in this process and for all models. A second call finds nothing left to replace.

    Returns:
        What was replaced, and what stayed with the package and why; it is logged, too.

    Raises:
        RuntimeError: a version of the package that is not known here; then nothing is changed.
    """
    from ultralytics.nn.modules.block import DFL
    from ultralytics.utils.loss import DFLoss, v8DetectionLoss
    from ultralytics.utils.tal import TaskAlignedAssigner

    earlier = _ours.replaced()
    classes = {
        "decode": DFL,
        "loss": DFLoss,
        "boxes": v8DetectionLoss,
        "assigner": TaskAlignedAssigner,
        "criterion": v8DetectionLoss,
    }
    _ours.add(classes, _METHODS)
    return answer("ultralytics", _ours.replaced(), earlier, _STAYED)


def restore() -> None:
    """Put the package's own methods back."""
    _ours.restore()


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
    replaced, found, stayed = _ours.replaced(), [], [*_STAYED[:-1]]
    if not heads:
        stayed.append(Stayed(full_name(model), "has no head with boxes"))
    for name, head in heads.items():
        where = f"{name} ({type(head).__name__})"
        if head.reg_max <= 1:
            stayed.append(Stayed(where, f"reg_max = {head.reg_max}: its boxes are no distributions"))
        methods = [one for one in replaced if _runs(one.what, head)]
        found += [one._replace(where=(where,)) for one in methods]
        if not replaced:
            stayed.append(Stayed(where, "accelerate() was not called"))
    return Report(f"{full_name(model)}", tuple(found), (), tuple(stayed))


def _runs(what: str, head: nn.Module) -> bool:
    """Whether a replaced method runs in a model with this head."""
    kinds = {kind.__name__ for kind in type(head).__mro__}
    assigns = not kinds & {"OBB", "Segment26", "Pose26"}  # these have assigners of their own
    if "TaskAlignedAssigner" in what:
        return assigns
    # Oriented boxes have a loss and a decoding in training of their own.
    of_loss = {"get_assigned_targets_and_loss": assigns, "bbox_decode": "OBB" not in kinds}
    return head.reg_max > 1 and of_loss.get(what.rpartition(".")[2], True)


_ASSIGNED = ("pd_scores", "pd_bboxes", "anc_points", "gt_labels", "gt_bboxes", "mask_gt")
_METHODS = {
    "decode": Method("forward", ("x",), always(distributions.dfl_decode)),
    "loss": Method("__call__", ("pred_dist", "target"), always(distributions.dfl_loss)),
    "boxes": Method("bbox_decode", ("anchor_points", "pred_dist"), distributions.bbox_decode),
    "assigner": Method("forward", _ASSIGNED, assigner.forward),
    "criterion": Method("get_assigned_targets_and_loss", ("preds", "batch"), criterion.get_assigned_targets_and_loss),
}
