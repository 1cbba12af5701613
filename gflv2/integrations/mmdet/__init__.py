"""mmdet 3.3: a GFLV2 head for its configurations, and its losses and assigners on this project's operations.

Importing this module registers ``GFLV2Head`` (also under the authors' name ``GFocalHead``):

    custom_imports = dict(imports=["gflv2.integrations.mmdet"])
    model = dict(type="GFL", ..., bbox_head=dict(type="GFLV2Head", num_classes=80, in_channels=256, ...))

Beside mmcv-lite, which lacks mmcv's compiled operators, mmdet cannot be imported; ``standin()``, called before mmdet is
imported, puts torchvision's in their place (`gflv2.integrations.mmdet.operators`) and then registers the head. From a
shell: ``python -m gflv2.integrations.mmdet tools/train.py CONFIG``.

``accelerate()`` puts this project's QualityFocalLoss, DistributionFocalLoss, FocalLoss, VarifocalLoss, GIoULoss,
CIoULoss, KnowledgeDistillationKLDivLoss (LD), Integral, ATSSAssigner, DynamicSoftLabelAssigner, SimOTAAssigner and
TaskAlignedAssigner in the place of mmdet's, the fused training losses into GFLHead and LDHead, and one assignment for
the whole batch into RTMDetHead and RTMDetSepBNHead, for every model that is built afterwards (or in a model that
exists: ``accelerate(model)``), and returns and logs what was replaced where, and what was not and why; ``restore()``
takes them out again. A class that somebody else has registered under one of these names stays. In a configuration, any
with these types in it, one line does it:

    custom_imports = dict(imports=["gflv2.integrations.mmdet.accelerated"])

mmdet's conventions, which stay as they are:

* ``reg_max`` = n: n + 1 bins of values 0 … n, in units of the stride; channels are side-major (left, top, right,
  bottom);
* the point of cell (i, j) is (j·stride, i·stride), offset 0; anchors are squares of side 8·stride centred there;
* target distances are clamped to [0, n − 0.1] by mmdet's box coder before they reach DistributionFocalLoss;
* labels are 0 … C − 1, and C is the background; IoU and GIoU take max(area, 1e-6), nothing is added;
* a loss divides by its average factor + 1.2e-7; the box losses of GFLHead are divided by max(Σw, 1), those of LDHead
  by Σw + 1e-6, and its divergence by 4 alone;
* CIoU adds eps to the union, the squared diagonal and both heights, and has no shape term where the IoU is at most 1/2.

Where results differ from mmdet's, beyond rounding:

* ATSS: of candidates at equal distance the lower index is taken (mmdet: what topk gives); an overlap within rounding of
  the threshold may fall on either side. Priors that are not squares of one size a level (other ratios, several scales),
  another IoU calculator, DDOD's ``alpha``, and boxes that are no plain tensors go to mmdet's own code.
* The dynamic assigners take the lower point of equal costs (mmdet: what topk gives); a point or box that is not finite
  takes no part. Masks (RTMDet-Ins), boxes that are no plain tensors and another IoU calculator go to mmdet's own code.
  TaskAlignedAssigner takes the lower of equal metrics.
* GFLHead, LDHead and RTMDet's heads give each loss as one number for all levels (mmdet: one a level). Settings that
  these do not cover, and heads derived from them, keep mmdet's code around the single losses and assigners; so does a
  head with a loss, assigner, sampler or integral derived from mmdet's. For more than 65 bins Integral,
  DistributionFocalLoss and KnowledgeDistillationKLDivLoss are mmdet's own code too, for more than 8 levels
  ATSSAssigner.
* GFLHead and LDHead: the points of a box whose label is no class are background, but learn its sides (mmdet: nothing).
* FocalLoss and VarifocalLoss of single elements (reduction "none", as in PAA's choice of anchors, probabilities,
  one-hot targets of FocalLoss) are mmdet's own code. VarifocalLoss takes a negative score for background.
* The mean over no rows is 0; mmdet's losses of classes and bins give NaN.
* GIoULoss and CIoULoss for weights that are all 0 and reduction "none": N zeros instead of a single one. CIoULoss of
  equal boxes is 0 (mmdet: 0/0 where the IoU rounds to 1).
* Losses are float32 also for half-precision inputs, and send no gradient into weights and average factors.
* GFLV2Head divides its box losses by max(Σw, 1e-12), as the authors do (``weight_floor=1.0``: as GFLHead), and keeps
  the ``nms_pre`` best points of a level, not (point, class) pairs. NMS of type "nms" is torchvision's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch import nn

from gflv2.integrations.common import require
from gflv2.integrations.mmdet import operators
from gflv2.integrations.report import Report

require("mmdet", operators.PIP)

if TYPE_CHECKING:
    from gflv2.integrations.mmdet.head import GFLV2Head

__all__ = ["GFLV2Head", "accelerate", "restore", "standin"]


def accelerate(model: nn.Module | None = None) -> Report:
    """Let mmdet use this project's losses, assigner and integral; a second call changes nothing, and says so.

    Args:
        model: change this model alone, whose modules and assigners were built before. None: change what configurations
            build from now on. A class that somebody else has registered under one of the names stays.

    Returns:
        What was replaced, by modules and registries or by parts of the model; what stayed with mmdet, and why. It is
        logged, too.

    Raises:
        TypeError: ``model`` is no module.
        ModuleNotFoundError: mmcv has no operators, so that mmdet cannot be imported: `standin` comes first.
    """
    return _part("swap").accelerate(model)


def restore(model: nn.Module | None = None) -> None:
    """Undo ``accelerate()``, or ``accelerate(model)``; without it nothing happens."""
    _part("swap").restore(model)


def standin() -> tuple[str, ...]:
    """Let mmcv-lite's operators run on torchvision's (`gflv2.integrations.mmdet.operators`), and import mmdet's models.

    Call it before anything imports ``mmcv.ops`` or ``mmdet.models``. A second call changes nothing. Where mmcv has its
    operators already (compiled, or stood in for by somebody else), they stay, and a line of the log says so.

    Returns:
        The names of the operators stood in for; none where mmcv has its own.

    Raises:
        ModuleNotFoundError: mmcv, or torchvision, is not installed.
    """
    names = operators.stand_in()
    _part("head")  # which registers GFLV2Head
    return names


def _part(name: str) -> Any:
    """A module of this package that needs mmdet."""
    if not operators.there():
        raise ModuleNotFoundError(
            "mmdet cannot be imported: mmcv-lite has no compiled operators; call gflv2.integrations.mmdet.standin() "
            "first, which puts torchvision's in their place",
            name="mmcv._ext",
        )
    return importlib.import_module(f"{__name__}.{name}")


def __getattr__(name: str) -> Any:
    """The head, which is a class of mmdet's."""
    if name != "GFLV2Head":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _part("head").GFLV2Head


if operators.there():
    _part("head")
