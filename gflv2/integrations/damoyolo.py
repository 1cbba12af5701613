"""DAMO-YOLO (github.com/tinyvision/DAMO-YOLO), which no package index has: run from a clone.

    from gflv2.integrations import damoyolo
    damoyolo.accelerate()

replaces methods of these classes, in every model that exists or will be built:

* ``damo.base_models.losses.gfocal_loss.QualityFocalLoss``, ``DistributionFocalLoss`` and ``GIoULoss`` by
  `gflv2.ops.qfl`, ``dfl`` and ``giou``;
* ``damo.base_models.core.ota_assigner.AlignOTAAssigner`` by `gflv2.ops.dynamic_soft_label`;
* in training, ``damo.base_models.heads.zero_head.ZeroHead.forward_single`` together with ``Integral``. The package
  takes the softmax over the bins in the first and the expectation in the second; in training ours leaves the logits as
  they are in the first, and `gflv2.ops.integral` does both in the second, so that the probabilities of all points and
  their gradient are never stored.

Where the package is not importable as ``damo``, or was changed, the classes can be named:
``damoyolo.accelerate(quality_focal_loss=…)``; ``head`` and ``integral`` only together.

Not replaced: the decoding in inference, where the head takes the softmax in the middle of ``forward_eval``; the losses
of distillation, which compare features.

Conventions of the package, which stay as they are:

* R = ``reg_max`` + 1 bins (17, in the smallest models 8), values 0 … ``reg_max`` strides;
* target distances are clamped to [0, ``reg_max`` − 0.1];
* points lie at the corner of their cells (no offset);
* box logits are channels-first and side-major, channel = side·R + bin, seen as (B, A, 4, R) and read where they lie;
* the quality focal loss has probabilities, not logits (``use_sigmoid=False``), their logarithms floored at −100. In
  ``legacy`` models there is one class more than there are labels; it learns 0.

In training mode ``head.integral`` takes logits and no probabilities, which only matters to code that calls it itself.
The head's box logits are float32; losses are float32. While a model is traced or exported the package's own code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gflv2.integrations import dynamic, gfocal
from gflv2.integrations.methods import Method, Replacements, expected_distances, find_classes, not_named
from gflv2.integrations.report import Report, Stayed, answer

REPOSITORY = "github.com/tinyvision/DAMO-YOLO"
CLASSES = {
    "head": "damo.base_models.heads.zero_head.ZeroHead",
    "integral": "damo.base_models.heads.zero_head.Integral",
    "quality_focal_loss": "damo.base_models.losses.gfocal_loss.QualityFocalLoss",
    "distribution_focal_loss": "damo.base_models.losses.gfocal_loss.DistributionFocalLoss",
    "giou_loss": "damo.base_models.losses.gfocal_loss.GIoULoss",
    "assigner": "damo.base_models.core.ota_assigner.AlignOTAAssigner",
}

_STAYED = (
    Stayed("ZeroHead.forward_eval", "takes its softmax in the middle of the method"),
    Stayed("losses of distillation", "they compare features"),
)
_EPS = 1e-7  # beside an IoU under the logarithm
_ours = Replacements("DAMO-YOLO")


def accelerate(
    *,
    head: type | None = None,
    integral: type | None = None,
    quality_focal_loss: type | None = None,
    distribution_focal_loss: type | None = None,
    giou_loss: type | None = None,
    assigner: type | None = None,
) -> Report:
    """Replace the classes' methods. A second call adds to the first, and says what is new.

    Args:
        head, integral, quality_focal_loss, distribution_focal_loss, giou_loss, assigner: the classes; where one is
            named, only those named are replaced (what an earlier call has replaced stays so). None at all: the
            package's own.

    Returns:
        What was replaced, and what stayed with the package and why; it is logged, too.

    Raises:
        ModuleNotFoundError: no class was named and the package is not installed.
        ValueError: ``head`` without ``integral``, or the reverse.
        TypeError: an argument that is not a class.
        RuntimeError: a method with parameters that are not known here.
            Where a call raises it changes nothing: what was replaced before stays so.
    """
    named = {
        "head": head,
        "integral": integral,
        "quality_focal_loss": quality_focal_loss,
        "distribution_focal_loss": distribution_focal_loss,
        "giou_loss": giou_loss,
        "assigner": assigner,
    }
    if (head is None) != (integral is None):
        missing = "head" if head is None else "integral"
        raise ValueError(f"{missing}: expected the class that goes with the other of head and integral, got None")
    earlier = _ours.replaced()
    _ours.add(find_classes(named, CLASSES, REPOSITORY), _METHODS)
    return answer("DAMO-YOLO", _ours.replaced(), earlier, (*not_named(CLASSES, _ours.keys()), *_STAYED))


def restore() -> None:
    """Put the package's own methods back."""
    _ours.restore()


def _forward_single(original: Callable) -> Callable:
    def forward_single(
        self: Any, x: Tensor, cls_convs: Any, reg_convs: Any, gfl_cls: Any, gfl_reg: Any, scale: Any
    ) -> tuple[Tensor, ...]:
        """In training: class probabilities (B, A, C), and twice the box logits (B, A, 4, R)."""
        if not self.training:
            return original(self, x, cls_convs, reg_convs, gfl_cls, gfl_reg, scale)
        for_classes = for_boxes = x
        for class_conv, box_conv in zip(cls_convs, reg_convs, strict=False):
            for_classes, for_boxes = class_conv(for_classes), box_conv(for_boxes)
        scores = gfl_cls(for_classes).sigmoid().flatten(2).transpose(1, 2)
        logits = scale(gfl_reg(for_boxes)).float().unflatten(1, (4, self.reg_max + 1)).flatten(3).permute(0, 3, 1, 2)
        return scores, logits, logits

    return forward_single


def _integral(original: Callable) -> Callable:
    def forward(self: Any, x: Tensor) -> Tensor:
        """(B, A, 4, R) logits in training, else probabilities → (B, A, 4) distances in strides."""
        return expected_distances(x, self.project) if self.training else original(self, x)

    return forward


def _settings(assigner: Any, eps: float = _EPS) -> dict[str, Any] | None:
    if eps != _EPS:
        return None
    return {
        "cost": "align_ota",
        "topk": assigner.candidate_topk,
        "iou_weight": float(assigner.iou_weight),
        "class_weight": float(assigner.cls_weight),
        "center_radius": float(assigner.center_radius),
    }


_SINGLE = ("x", "cls_convs", "reg_convs", "gfl_cls", "gfl_reg", "scale")
_METHODS = {
    "assigner": dynamic.assigner(_settings),
    "head": Method("forward_single", _SINGLE, _forward_single),
    "integral": Method("forward", ("x",), _integral),
    **gfocal.METHODS,
}
