"""``accelerate()`` and ``restore()``: in mmdet's registries, in its modules, and in models that exist."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.assigners import BaseAssigner
from mmdet.registry import MODELS, TASK_UTILS
from torch import nn

from gflv2.integrations.common import Patch
from gflv2.integrations.mmdet import assigners, class_losses, distillation, fused, modules, rtmdet
from gflv2.integrations.report import Replaced, Report, Stayed, answer, full_name
from gflv2.ops.checks import bad_type

_CLASSES = (
    # ours, mmdet's, the registry that knows it
    (modules.QualityFocalLoss, modules.MmdetQualityFocalLoss, MODELS),
    (modules.DistributionFocalLoss, modules.MmdetDistributionFocalLoss, MODELS),
    (class_losses.FocalLoss, class_losses.MmdetFocalLoss, MODELS),
    (class_losses.VarifocalLoss, class_losses.MmdetVarifocalLoss, MODELS),
    (modules.GIoULoss, modules.MmdetGIoULoss, MODELS),
    (modules.CIoULoss, modules.MmdetCIoULoss, MODELS),
    (
        distillation.KnowledgeDistillationKLDivLoss,
        distillation.MmdetKnowledgeDistillationKLDivLoss,
        MODELS,
    ),
    (modules.ATSSAssigner, modules.MmdetATSSAssigner, TASK_UTILS),
    (modules.Integral, modules.MmdetIntegral, None),
    (fused.GFLHead, fused.MmdetGFLHead, MODELS),
    (distillation.LDHead, distillation.MmdetLDHead, MODELS),
    (assigners.DynamicSoftLabelAssigner, assigners.MmdetDynamicSoftLabelAssigner, TASK_UTILS),
    (assigners.SimOTAAssigner, assigners.MmdetSimOTAAssigner, TASK_UTILS),
    (assigners.TaskAlignedAssigner, assigners.MmdetTaskAlignedAssigner, TASK_UTILS),
    (rtmdet.RTMDetHead, rtmdet.MmdetRTMDetHead, MODELS),
    (rtmdet.RTMDetSepBNHead, rtmdet.MmdetRTMDetSepBNHead, MODELS),
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
# What detectors of mmdet have beside them. `accelerate(model)` says it of a model's own parts.
_STAYED = (
    Stayed("other losses (CrossEntropyLoss, …)", "no operation of gflv2 computes them"),
    Stayed("FocalLoss and VarifocalLoss of single elements", "reduction 'none' (PAA), probabilities, one-hot targets"),
    Stayed("other assigners (MaxIoUAssigner, HungarianAssigner, …)", "no operation of gflv2 computes them"),
    Stayed("heads but GFLHead, LDHead and RTMDetHead", "their own loop goes on, around single losses and assigners"),
    Stayed("classes derived from those replaced", "they may compute something else"),
)
# Of heads whose loop is replaced: what raises where they have parts that the operations do not compute.
_CHECKS: dict[type, Callable[[Any], None]] = {
    fused.GFLHead: fused.check_parts,
    distillation.LDHead: distillation.check_parts,
    **dict.fromkeys(rtmdet.HEADS, rtmdet.check_parts),
}
_patch = Patch()
_own_init = fused.MmdetGFLHead.__init__


def _init_with_integral(self: Any, *args: Any, **kwargs: Any) -> None:
    """GFLHead and its kind name their Integral in code, not in the configuration."""
    _own_init(self, *args, **kwargs)
    if type(self.integral) is modules.MmdetIntegral:
        self.integral.__class__ = modules.Integral


_init_with_integral.__wrapped__ = _own_init  # type: ignore[attr-defined]


def accelerate(model: nn.Module | None = None) -> Report:
    """`gflv2.integrations.mmdet.accelerate`."""
    if model is not None:
        return _accelerate_model(model)
    found, earlier, stayed = [], [], list(_STAYED)
    for ours, theirs, registry in _CLASSES:
        new, old, name = [], [], theirs.__name__
        if registry is not None:
            registered = registry.module_dict.get(name)
            if registered is theirs:
                _patch.item(registry.module_dict, name, ours)
                new.append(f"registry {registry.name}")
            elif registered is ours:
                old.append(f"registry {registry.name}")
            else:
                stayed.append(
                    Stayed(f"{name} in registry {registry.name}", f"somebody else's: {full_name(registered)}")
                )
        for place in map(sys.modules.__getitem__, _PLACES):
            if vars(place).get(name) is theirs:
                _patch.attribute(place, name, ours)
                new.append(place.__name__)
            elif vars(place).get(name) is ours:
                old.append(place.__name__)
        if ours is modules.Integral:
            (old if fused.MmdetGFLHead.__init__ is _init_with_integral else new).append("GFLHead.__init__")
        if new or old:
            one = Replaced(full_name(theirs), full_name(ours), tuple(new or old))
            found.append(one)
            earlier += [] if new else [one]
    _patch.attribute(fused.MmdetGFLHead, "__init__", _init_with_integral)
    return answer("mmdet", found, earlier, stayed)


def restore(model: nn.Module | None = None) -> None:
    """`gflv2.integrations.mmdet.restore`."""
    if model is None:
        _patch.restore()
        return
    classes = {ours: theirs for ours, theirs, _ in _CLASSES}
    for _, item in _parts(model):
        item.__class__ = classes.get(type(item), type(item))


def _accelerate_model(model: nn.Module) -> Report:
    """Give modules and assigners another class; both kinds have the same attributes."""
    classes = {theirs: ours for ours, theirs, _ in _CLASSES}
    new: dict[type, list[str]] = {}
    old: dict[type, list[str]] = {}
    parts = list(_parts(model))
    for place, item in parts:
        ours = classes.get(type(item))
        if ours is not None:
            item.__class__ = ours
            new.setdefault(ours, []).append(place)
        elif type(item) in classes.values():
            old.setdefault(type(item), []).append(place)
    found, earlier = [], []
    for ours, theirs, _ in _CLASSES:
        for places, into in ((new, (found,)), (old, (found, earlier))):
            if ours in places:
                one = Replaced(full_name(theirs), full_name(ours), tuple(places[ours]))
                for entries in into:
                    entries.append(one)
    stayed = [Stayed(f"{place} ({type(item).__name__})", why) for place, item in parts if (why := _why(item))]
    return answer(f"mmdet's {type(model).__name__}", found, earlier, stayed)


def _parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules of a model, and the assigners that they hold, by name; what is shared comes once.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", "a torch.nn.Module, or None", model)
    for name, module in list(model.named_modules()):
        yield name or "the model", module
        for attribute, value in list(vars(module).items()):
            if isinstance(value, BaseAssigner):
                yield f"{name}.{attribute}".lstrip("."), value


def _why(item: Any) -> str | None:
    """Why a loss, an assigner or a head runs code of mmdet, after ``accelerate(model)``; None: it does not."""
    kind = type(item)
    if kind in _CHECKS:
        try:
            _CHECKS[kind](item)
        except (TypeError, ValueError) as error:
            return f"its losses one by one, in mmdet's loop: {error}"
        return None
    if kind is modules.ATSSAssigner:
        plain = item.alpha is None and modules.plain_overlaps(item.iou_calculator)
        return None if plain else "mmdet's own code assigns: alpha, or another IoU than that of BboxOverlaps2D"
    if kind in (assigners.DynamicSoftLabelAssigner, assigners.SimOTAAssigner, assigners.TaskAlignedAssigner):
        reason = assigners.uncovered(item)
        return None if reason is None else f"mmdet's own code assigns: {reason}"
    if kind in (class_losses.FocalLoss, class_losses.VarifocalLoss):
        return class_losses.why_not(item)
    if kind.__module__.startswith("gflv2."):
        return None
    # Heads that derive from others here come after them: the nearest is named.
    base = next((theirs.__name__ for _, theirs, _ in reversed(_CLASSES) if isinstance(item, theirs)), None)
    if base is not None:
        return f"derived from {base}: it may compute something else"
    if isinstance(item, BaseAssigner):
        return "no operation of gflv2 computes it"
    if isinstance(item, BaseDenseHead):
        return "its own loop goes on, around single losses and assigners"
    if kind.__module__.startswith("mmdet.models.losses."):
        return "no operation of gflv2 computes it"
    return None
