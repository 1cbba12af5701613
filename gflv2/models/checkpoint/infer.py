"""What a detector's keys and shapes say about its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gflv2.config import Config, config_names, load_config
from gflv2.models.checkpoint.errors import CheckpointError
from gflv2.models.checkpoint.reading import Checkpoint, interpret

COCO_CLASSES = 80


@dataclass
class Inference:
    """``values``: dotted configuration keys that follow from the file; ``notes``: choices that it leaves open."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def infer_config(source: Checkpoint | Mapping[str, Tensor], base: Any = None) -> Config:
    """The configuration of the detector that these weights belong to.

    From the keys: backbone family and depth, deformable stages and their version, widths and levels of neck and head,
    classes and the unused background channel, ``reg_max``, the predictor's inputs and hidden width. What keys cannot
    tell (image size, norm groups, which of "cls" and "reg" a predictor reads, …) stays as in ``base``.

    Args:
        source: what ``read`` returned, or a ``state_dict``.
        base: a configuration (anything that ``load_config`` takes); None: the defaults.

    Raises:
        CheckpointError: no detector of this family, or a backbone whose name the keys do not tell and ``base`` is None.
    """
    checkpoint = source if isinstance(source, Checkpoint) else interpret(source)
    start = load_config(base)
    inference = infer(checkpoint, start)
    if "model.backbone.name" not in inference.values and base is None:
        raise CheckpointError(
            f"weights: the keys of {checkpoint.path} do not tell its backbone; give the configuration, "
            f"for example GFLV2(CONFIG, weights=...)"
        )
    config = load_config(start, inference.values)
    if base is None:
        config.name = next(iter(fitting_configs(inference)), "custom")
    return config


def infer(checkpoint: Checkpoint, base: Config | None = None) -> Inference:
    """As ``infer_config``, but what is certain by itself, without a base filled in."""
    state = checkpoint.state
    if not any(key in state for key in ("bbox_head.gfl_cls.weight", "bbox_head.atss_cls.weight")):
        what = "a backbone alone" if not checkpoint.is_detector else "another kind of detector (no bbox_head.gfl_cls)"
        raise CheckpointError(f"weights: {checkpoint.path} holds {what}, from which no GFLV2 configuration follows")
    result = Inference()
    name = backbone_name(state)
    if name is not None:
        result.values["model.backbone.name"] = name
    _infer_deform(state, result)
    _infer_neck(state, result, base or Config())
    _infer_head(checkpoint, result, base or Config())
    return result


# ---- backbone ------------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"^backbone\.layer(\d)\.(\d+)\.")
_BASIC = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
# (channels of layer1's 3×3 convolution, its channels in one group) → timm name
_WIDTHS = {
    (64, 64): "resnet{0}",
    (128, 4): "resnext{0}_32x4d",
    (256, 4): "resnext{0}_64x4d",
    (256, 8): "resnext{0}_32x8d",
    (128, 128): "wide_resnet{0}_2",
}


def backbone_name(state: Mapping[str, Tensor]) -> str | None:
    """timm's name of a ResNet, ResNeXt or Res2Net, by the keys under ``backbone.``; None for anything else."""
    blocks: dict[int, int] = {}
    for key in state:
        if match := _BLOCK.match(key):
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
    counts = tuple(blocks.get(stage, 0) for stage in (1, 2, 3, 4))
    deep_stem = "backbone.stem.0.weight" in state or "backbone.conv1.0.weight" in state
    first = "backbone.layer1.0"
    depth = _DEPTHS.get(counts)
    if f"{first}.convs.0.weight" in state:
        width = state[f"{first}.convs.0.weight"].shape[0]
        splits = 1 + sum(f"{first}.convs.{i}.weight" in state for i in range(8))
        if depth is None or (width, splits) != (26, 4):
            return None
        return f"res2net{depth}d" if deep_stem else f"res2net{depth}_26w_4s"
    if f"{first}.conv2.weight" not in state or deep_stem:
        return None
    if f"{first}.conv3.weight" not in state:
        return _BASIC.get(counts)
    pattern = _WIDTHS.get(tuple(state[f"{first}.conv2.weight"].shape[:2]))
    return None if depth is None or pattern is None else pattern.format(depth)


_OFFSET = re.compile(r"^backbone\.layer(\d)\.\d+\.(?:conv\d+|convs\.\d+)\.conv_offset\.weight$")


def _infer_deform(state: Mapping[str, Tensor], result: Inference) -> None:
    stages, versions = set(), set()
    for key, value in state.items():
        if match := _OFFSET.match(key):
            stages.add(int(match[1]) + 1)
            versions.add({18: 1, 27: 2}.get(value.shape[0], value.shape[0]))
    if versions - {1, 2} or len(versions) > 1:
        raise CheckpointError(
            f"weights: deformable convolutions need 18 (version 1) or 27 (version 2) offset channels, the same in "
            f"every stage; the file has {sorted(9 * (v + 1) if v < 3 else v for v in versions)}"
        )
    result.values["model.backbone.deform.stages"] = sorted(stages)
    if versions:
        result.values["model.backbone.deform.version"] = versions.pop()


# ---- neck and head -------------------------------------------------------------------------------------------------


def _count(state: Iterable[str], prefix: str) -> int:
    found = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(found)


def _infer_neck(state: Mapping[str, Tensor], result: Inference, base: Config) -> None:
    levels = _count(state, "neck.fpn_convs.")
    if not levels:
        return
    result.values["model.neck.levels"] = levels
    result.values["model.neck.depthwise"] = "neck.fpn_convs.0.depthwise.weight" in state
    if "neck.fpn_convs.0.conv.weight" in state:
        result.values["model.neck.channels"] = state["neck.fpn_convs.0.conv.weight"].shape[0]
    scales = _count(state, "bbox_head.scales.")
    if scales and len(base.model.head.strides) != scales:
        result.values["model.head.strides"] = [8 * 2**level for level in range(scales)]


def _infer_head(checkpoint: Checkpoint, result: Inference, base: Config) -> None:
    state, values = checkpoint.state, result.values
    kind = "gfl" if "bbox_head.gfl_cls.weight" in state else "atss"
    values["model.head.kind"] = kind
    values["model.head.stacked_convs"] = _count(state, "bbox_head.cls_convs.")
    classes = state[f"bbox_head.{kind}_cls.weight"]
    width = classes.shape[1]
    if "bbox_head.cls_convs.0.conv.weight" in state:
        width = state["bbox_head.cls_convs.0.conv.weight"].shape[0]
        values["model.head.channels"] = width
        values["model.head.depthwise"] = "bbox_head.cls_convs.0.depthwise.weight" in state
    values["model.num_classes"], values["model.head.legacy_background"] = split_class_channels(checkpoint)
    if kind == "atss":
        return
    if "bbox_head.gfl_reg.weight" in state:
        values["model.head.reg_max"] = state["bbox_head.gfl_reg.weight"].shape[0] // 4 - 1
    composed = classes.shape[1] - width
    values["model.head.composition"] = "composed" if composed else "product"
    if composed:
        values["model.head.quality"] = "statistics"
        _infer_statistics(composed, result, base)
    elif not checkpoint.has_quality:
        values["model.head.quality"] = None
    else:
        first = state["bbox_head.reg_conf.0.weight"]
        values["model.head.reg_channels"] = first.shape[0]
        _infer_predictor(first.shape[1], width, result, base)


def _infer_predictor(inputs: int, width: int, result: Inference, base: Config) -> None:
    head, values = base.model.head, result.values
    if head.quality == "statistics" and inputs == _statistics(head):
        values["model.head.quality"] = "statistics"
        _infer_statistics(inputs, result, base)
    elif inputs == 2 * width:
        values["model.head.quality"] = "both"
    elif inputs == width:
        if head.quality not in ("cls", "reg"):
            values["model.head.quality"] = "reg"
            result.notes.append("the quality predictor reads one tower; taken to be the box tower (model.head.quality)")
    else:
        values["model.head.quality"] = "statistics"
        _infer_statistics(inputs, result, base)


def _statistics(head: Any) -> int:
    return 4 * (head.reg_topk * head.add_topk + head.add_mean + head.add_variance)


def _infer_statistics(inputs: int, result: Inference, base: Config) -> None:
    head, values = base.model.head, result.values
    each = inputs // 4
    if 4 * each != inputs:
        raise CheckpointError(f"weights: the quality predictor has {inputs} inputs, expected a multiple of 4 (sides)")
    if inputs == _statistics(head):
        # More than one choice of statistics has this width; the base decides.
        for name in ("reg_topk", "add_topk", "add_mean", "add_variance"):
            values[f"model.head.{name}"] = getattr(head, name)
        return
    others = head.add_mean + head.add_variance if each > 1 else 0
    topk = each - others
    values["model.head.reg_topk"] = topk
    values["model.head.add_topk"] = True
    values["model.head.add_mean"] = bool(others and head.add_mean)
    values["model.head.add_variance"] = bool(others and head.add_variance)
    extra = " and the mean" if values["model.head.add_mean"] else ""
    result.notes.append(f"{each} statistics a side: taken to be the {topk} largest{extra} (model.head.reg_topk)")


def split_class_channels(checkpoint: Checkpoint) -> tuple[int, bool]:
    """(classes, whether the last channel is the authors' unused background) of a detector's file."""
    state = checkpoint.state
    key = next(k for k in ("bbox_head.gfl_cls.weight", "bbox_head.atss_cls.weight") if k in state)
    channels = state[key].shape[0]
    head = (checkpoint.config or {}).get("model", {})
    if "num_classes" in head:
        return head["num_classes"], channels == head["num_classes"] + 1
    if checkpoint.class_names is not None and channels - len(checkpoint.class_names) in (0, 1):
        return len(checkpoint.class_names), channels > len(checkpoint.class_names)
    # The authors' GFLV2 always has the extra channel; GFLV1 and ATSS never.
    theirs = checkpoint.layout in ("mmcv", "mmengine") or channels == COCO_CLASSES + 1
    background = checkpoint.has_quality and theirs and channels > 1 and channels != COCO_CLASSES
    return channels - background, background


def fitting_configs(inference: Inference) -> list[str]:
    """Named configurations of this structure; the class count and the background channel may differ."""
    skip = ("model.num_classes", "model.head.legacy_background")
    values = {key: value for key, value in inference.values.items() if key not in skip}
    if "model.backbone.name" not in values:
        return []
    return [name for name in config_names() if not differences(load_config(name), values)]


def differences(config: Config, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (in ``values``, in ``config``)} where the two disagree."""
    found = {}
    for key, value in values.items():
        have: Any = config
        for part in key.split("."):
            have = getattr(have, part)
        if have != value:
            found[key] = (value, have)
    return found
