"""``accelerate()`` and ``restore()``: in mmdet's registries, in its modules, and in models that exist."""

from __future__ import annotations

import functools
import sys
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS
from torch import nn

from gflv2.integrations.common import Patch
from gflv2.integrations.mmdet import fused, modules
from gflv2.ops.checks import bad_type

_CLASSES = (
    # ours, mmdet's, the registry that knows it
    (modules.QualityFocalLoss, modules.MmdetQualityFocalLoss, MODELS),
    (modules.DistributionFocalLoss, modules.MmdetDistributionFocalLoss, MODELS),
    (modules.GIoULoss, modules.MmdetGIoULoss, MODELS),
    (modules.ATSSAssigner, modules.MmdetATSSAssigner, TASK_UTILS),
    (modules.Integral, modules.MmdetIntegral, None),
    (fused.GFLHead, fused.MmdetGFLHead, MODELS),
)
# Where configurations in Python find the classes. Not the modules that define them: pickle looks a model's classes up
# there, and the losses call super() by their name. Nor heads that import one for isinstance(): ours are subclasses.
_PLACES = (
    "mmdet.models",
    "mmdet.models.losses",
    "mmdet.models.task_modules",
    "mmdet.models.task_modules.assigners",
    "mmdet.models.dense_heads",
)
_patch = Patch()
_own_init = fused.MmdetGFLHead.__init__


@functools.wraps(_own_init)
def _init_with_integral(self: Any, *args: Any, **kwargs: Any) -> None:
    """GFLHead and its kind name their Integral in code, not in the configuration."""
    _own_init(self, *args, **kwargs)
    if type(self.integral) is modules.MmdetIntegral:
        self.integral.__class__ = modules.Integral


def accelerate(model: nn.Module | None = None) -> None:
    """Let mmdet use this project's losses, assigner and integral; a second call changes nothing.

    Args:
        model: change this model alone, whose modules and assigners were built before. None: change what configurations
            build from now on. A class that somebody else has registered under one of the names stays.

    Raises:
        TypeError: ``model`` is no module.
    """
    if model is not None:
        _exchange(model, {theirs: ours for ours, theirs, _ in _CLASSES})
        return
    for ours, theirs, registry in _CLASSES:
        if registry is not None and registry.module_dict.get(theirs.__name__) is theirs:
            _patch.item(registry.module_dict, theirs.__name__, ours)
        for place in map(sys.modules.__getitem__, _PLACES):
            if vars(place).get(theirs.__name__) is theirs:
                _patch.attribute(place, theirs.__name__, ours)
    _patch.attribute(fused.MmdetGFLHead, "__init__", _init_with_integral)


def restore(model: nn.Module | None = None) -> None:
    """Undo ``accelerate()``, or ``accelerate(model)``; without it nothing happens."""
    if model is None:
        _patch.restore()
    else:
        _exchange(model, {ours: theirs for ours, theirs, _ in _CLASSES})


def _exchange(model: nn.Module, classes: dict[type, type]) -> None:
    """Give modules, and the assigners that they hold, another class; both kinds have the same attributes."""
    if not isinstance(model, nn.Module):
        bad_type("model", "a torch.nn.Module, or None", model)
    for module in model.modules():
        for item in (module, *(value for value in vars(module).values() if _is_assigner(value))):
            item.__class__ = classes.get(type(item), type(item))


def _is_assigner(value: Any) -> bool:
    return isinstance(value, modules.MmdetATSSAssigner)
