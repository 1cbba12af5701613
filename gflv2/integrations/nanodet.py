"""NanoDet and NanoDet-Plus (github.com/RangiLyu/nanodet), which no package index has: installed from a clone.

    from gflv2.integrations import nanodet
    nanodet.accelerate()

replaces methods of these classes, in every model that exists or will be built:

* ``nanodet.model.head.gfl_head.Integral``: distances, in training and decoding, by `gflv2.ops.integral`;
* ``nanodet.model.loss.gfocal_loss.QualityFocalLoss`` and ``DistributionFocalLoss`` by `gflv2.ops.qfl` and ``dfl``;
* ``nanodet.model.loss.iou_loss.GIoULoss`` by `gflv2.ops.giou`;
* ``nanodet.model.head.assigner.dsl_assigner.DynamicSoftLabelAssigner``, which NanoDet-Plus assigns with, by
  `gflv2.ops.dynamic_soft_label`.

Where the package is not importable as ``nanodet``, or was changed, the classes can be named:
``nanodet.accelerate(integral=MyHead.Integral, quality_focal_loss=…)``.

Not replaced: the older heads' ATSS, which takes one image's priors as a list of boxes, the IoU that their scores learn,
and ``_forward_onnx``, which has no integral. An assigner with ``ignore_iof_thr`` > 0 runs the package's own code.

Conventions of the package, which stay as they are:

* R = ``reg_max`` + 1 = 8 bins, values 0 … ``reg_max`` strides;
* target distances are clamped to [0, ``reg_max`` − 0.1];
* NanoDet-Plus's points lie at the corner of their cells (no offset), those of the older heads at half cells (0.5);
* the class and box logits of a point are channels of one tensor, (B, A, C + 4·R), box logits side-major after the
  classes; its views are read where they lie, without a copy;
* the quality focal loss has logits (N, C), the label C for background and weights (N,).

Distances have the dtype of the logits, losses are float32. While a model is traced or exported the package's own code
runs. Gradients do not flow into weights, average factors and target scores (the package gives it none).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gflv2.integrations import dynamic, gfocal
from gflv2.integrations.methods import Method, Replacements, always, expected_distances, find_classes, not_named
from gflv2.integrations.report import Report, Stayed, answer

REPOSITORY = "github.com/RangiLyu/nanodet"
CLASSES = {
    "integral": "nanodet.model.head.gfl_head.Integral",
    "quality_focal_loss": "nanodet.model.loss.gfocal_loss.QualityFocalLoss",
    "distribution_focal_loss": "nanodet.model.loss.gfocal_loss.DistributionFocalLoss",
    "giou_loss": "nanodet.model.loss.iou_loss.GIoULoss",
    "assigner": "nanodet.model.head.assigner.dsl_assigner.DynamicSoftLabelAssigner",
}

_STAYED = (
    Stayed("ATSSAssigner", "that of the older heads takes one image's priors as a list of boxes"),
    Stayed("bbox_overlaps", "the IoU that the older heads' scores learn"),
    Stayed("_forward_onnx", "has no integral"),
)
_IGNORING = Stayed("DynamicSoftLabelAssigner with ignore_iof_thr > 0", "the operation knows no boxes to be ignored")
_ours = Replacements("nanodet")


def accelerate(
    *,
    integral: type | None = None,
    quality_focal_loss: type | None = None,
    distribution_focal_loss: type | None = None,
    giou_loss: type | None = None,
    assigner: type | None = None,
) -> Report:
    """Replace the classes' ``forward`` and ``assign``. A second call adds to the first, and says what is new.

    Args:
        integral, quality_focal_loss, distribution_focal_loss, giou_loss, assigner: the classes; where one is named,
            only those named are replaced (what an earlier call has replaced stays so). None at all: the package's own.

    Returns:
        What was replaced, and what stayed with the package and why; it is logged, too.

    Raises:
        ModuleNotFoundError: no class was named and the package is not installed.
        TypeError: an argument that is not a class.
        RuntimeError: a method with parameters that are not known here.
            Where a call raises it changes nothing: what was replaced before stays so.
    """
    named = {
        "integral": integral,
        "quality_focal_loss": quality_focal_loss,
        "distribution_focal_loss": distribution_focal_loss,
        "giou_loss": giou_loss,
        "assigner": assigner,
    }
    earlier = _ours.replaced()
    _ours.add(find_classes(named, CLASSES, REPOSITORY), _METHODS)
    keys = _ours.keys()
    stayed = (*not_named(CLASSES, keys), *((_IGNORING,) if "assigner" in keys else ()), *_STAYED)
    return answer("nanodet", _ours.replaced(), earlier, stayed)


def restore() -> None:
    """Put the package's own methods back."""
    _ours.restore()


def _integral(self: Any, x: Tensor) -> Tensor:
    """(…, 4·R) logits → (…, 4) distances in strides."""
    return expected_distances(x.unflatten(-1, (4, self.reg_max + 1)), self.project)


def _settings(assigner: Any) -> dict[str, Any] | None:
    if assigner.ignore_iof_thr > 0:
        return None
    return {"cost": "nanodet", "topk": assigner.topk, "iou_weight": float(assigner.iou_factor)}


_METHODS = {
    "integral": Method("forward", ("x",), always(_integral)),
    "assigner": dynamic.assigner(_settings),
    **gfocal.METHODS,
}
