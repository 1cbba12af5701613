"""mmdet 3.3: a GFLV2 head for its configurations, and its losses and assigner on this project's operations.

Importing this module registers ``GFLV2Head`` (also under the authors' name ``GFocalHead``):

    custom_imports = dict(imports=["gflv2.integrations.mmdet"])
    model = dict(type="GFL", ..., bbox_head=dict(type="GFLV2Head", num_classes=80, in_channels=256, ...))

Beside mmcv-lite, which lacks mmcv's compiled operators, mmdet cannot be imported; ``standin()``, called before mmdet is
imported, puts torchvision's in their place (`gflv2.integrations.mmdet.operators`). From a shell:
``python -m gflv2.integrations.mmdet tools/train.py CONFIG``.

``accelerate()`` puts this project's QualityFocalLoss, DistributionFocalLoss, GIoULoss, ATSSAssigner and Integral in the
place of mmdet's, and the fused training losses into GFLHead, for every model that is built afterwards (or in a model
that exists: ``accelerate(model)``); ``restore()`` takes them out again. A class that somebody else has registered under
one of these names stays. It returns and logs what was replaced where, and what was not and why. In a configuration, any
with these types in it, one line does it:

    custom_imports = dict(imports=["gflv2.integrations.mmdet.accelerated"])

mmdet's conventions, which stay as they are:

* ``reg_max`` = n: n + 1 bins of values 0 … n, in units of the stride; channels are side-major (left, top, right,
  bottom);
* the point of cell (i, j) is (j·stride, i·stride), offset 0; anchors are squares of side 8·stride centred there;
* target distances are clamped to [0, n − 0.1] by mmdet's box coder before they reach DistributionFocalLoss;
* labels are 0 … C − 1, and C is the background; IoU and GIoU take max(area, 1e-6), nothing is added;
* a loss divides by its average factor + 1.2e-7; the box losses of GFLHead are divided by max(Σw, 1).

Where results differ from mmdet's, beyond rounding:

* ATSS: of candidates at equal distance the lower index is taken (mmdet: what topk gives); an overlap within rounding of
  the threshold may fall on either side. Priors that are not squares of one size a level (other ratios, several scales),
  another IoU calculator, DDOD's ``alpha``, and boxes that are no plain tensors go to mmdet's own code.
* GFLHead gives each loss as one number for all levels (mmdet: one a level). Settings that the fused losses do not
  cover, and heads derived from GFLHead, keep mmdet's code around the single losses; so does a GFLHead with a loss,
  assigner, sampler or integral derived from mmdet's. For more than 65 bins Integral and DistributionFocalLoss are
  mmdet's own code too, for more than 8 levels ATSSAssigner.
* The mean over no rows is 0; mmdet's QualityFocalLoss and DistributionFocalLoss give NaN.
* GIoULoss for weights that are all 0 and reduction "none": N zeros instead of a single one.
* Losses are float32 also for half-precision inputs, and send no gradient into weights and average factors.
* GFLV2Head divides its box losses by max(Σw, 1e-12), as the authors do (``weight_floor=1.0``: as GFLHead), and keeps
  the ``nms_pre`` best points of a level, not (point, class) pairs. NMS of type "nms" is torchvision's.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gflv2.integrations.common import require
from gflv2.integrations.mmdet import operators

require("mmdet", operators.PIP)

if TYPE_CHECKING:
    from gflv2.integrations.mmdet.head import GFLV2Head
    from gflv2.integrations.mmdet.swap import accelerate, restore

__all__ = ["GFLV2Head", "accelerate", "restore", "standin"]
_MODULES = {"GFLV2Head": "head", "accelerate": "swap", "restore": "swap"}


def standin() -> tuple[str, ...]:
    names = operators.standin()
    _load()
    return names


def _load() -> None:
    """Import what needs mmdet; this also registers the head."""
    for name, module in _MODULES.items():
        globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __getattr__(name: str) -> Any:
    """Called for the names that are not there yet: mmdet could not be imported, and perhaps can be now."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not operators.there():
        raise ModuleNotFoundError(
            "mmdet cannot be imported: mmcv-lite has no compiled operators; call gflv2.integrations.mmdet.standin() "
            "first, which puts torchvision's in their place",
            name="mmcv._ext",
        )
    _load()
    return globals()[name]


standin.__doc__ = operators.standin.__doc__
if operators.there():
    _load()
