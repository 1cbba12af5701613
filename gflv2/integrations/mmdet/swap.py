"""``accelerate()`` and ``restore()``: in mmdet's registries, in its modules, and in models that exist."""

from __future__ import annotations

import sys
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS
from torch import nn

from gflv2.integrations.common import Patch
from gflv2.integrations.mmdet import modules

_CLASSES = (
    # ours, mmdet's, the registry that knows it
    (modules.QualityFocalLoss, modules.MmdetQualityFocalLoss, MODELS),
    (modules.DistributionFocalLoss, modules.MmdetDistributionFocalLoss, MODELS),
    (modules.GIoULoss, modules.MmdetGIoULoss, MODELS),
    (modules.ATSSAssigner, modules.MmdetATSSAssigner, TASK_UTILS),
    (modules.Integral, modules.MmdetIntegral, None),
    (modules.GFLHead, modules.MmdetGFLHead, MODELS),
)
# Where configurations in Python find the classes, and where GFLHead finds its Integral. Not the losses' own module, in
# which they call super() by their name; nor heads that import one for isinstance(): ours are subclasses.
_PLACES = (
    "mmdet.models",
    "mmdet.models.losses",
    "mmdet.models.task_modules",
    "mmdet.models.task_modules.assigners",
    "mmdet.models.dense_heads",
    "mmdet.models.dense_heads.gfl_head",
)
_patch = Patch()


def accelerate(model: nn.Module | None = None) -> None:
    """Let mmdet use this project's losses, assigner and integral; a second call changes nothing.

    Args:
        model: change this model alone, whose modules and assigners were built before. None: change what configurations
            build from now on.
    """
    if model is not None:
        _exchange(model, {theirs: ours for ours, theirs, _ in _CLASSES})
        return
    for ours, theirs, registry in _CLASSES:
        if registry is not None:
            _patch.item(registry.module_dict, theirs.__name__, ours)
        for place in map(sys.modules.__getitem__, _PLACES):
            if vars(place).get(theirs.__name__) is theirs:
                _patch.attribute(place, theirs.__name__, ours)


def restore(model: nn.Module | None = None) -> None:
    """Undo ``accelerate()``, or ``accelerate(model)``; without it nothing happens."""
    if model is None:
        _patch.restore()
    else:
        _exchange(model, {ours: theirs for ours, theirs, _ in _CLASSES})


def _exchange(model: nn.Module, classes: dict[type, type]) -> None:
    """Give modules, and the assigners that they hold, another class; both kinds have the same attributes."""
    for module in model.modules():
        for item in (module, *(value for value in vars(module).values() if _is_assigner(value))):
            item.__class__ = classes.get(type(item), type(item))


def _is_assigner(value: Any) -> bool:
    return isinstance(value, modules.MmdetATSSAssigner)
