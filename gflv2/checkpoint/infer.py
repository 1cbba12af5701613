"""What a detector's keys and shapes say about its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from gflv2.checkpoint.errors import CheckpointError
from gflv2.checkpoint.reading import Checkpoint, interpret
from gflv2.config import Config, list_models, load_config
from gflv2.models.coco_names import COCO_NAMES

# One convolution for all levels, or (NanoDet) one for each, of which this is the first.
_CLASS_LAYERS = ("bbox_head.gfl_cls", "bbox_head.atss_cls", "bbox_head.gfl_cls.0")


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
    values = infer(checkpoint, start)
    if "model.backbone.name" not in values and base is None:
        raise CheckpointError(
            f"weights: the keys of {checkpoint.path} do not tell its backbone; give the configuration, "
            f"for example GFLV2(CONFIG, weights=...)"
        )
    config = load_config(start, values)
    if base is None:
        config.name = next(iter(fitting_configs(values)), "custom")
    return config


def infer(checkpoint: Checkpoint, base: Config | None = None) -> dict[str, Any]:
    """As ``infer_config``, but only the dotted keys that follow from the file, without a base filled in."""
    state = checkpoint.state
    if class_layer(state) is None:
        what = "a backbone alone" if not checkpoint.is_detector else "another kind of detector (no bbox_head.gfl_cls)"
        raise CheckpointError(f"weights: {checkpoint.path} holds {what}, from which no GFLV2 configuration follows")
    values: dict[str, Any] = {}
    name = backbone_name(state)
    if name is not None:
        values["model.backbone.name"] = name
    try:
        _infer_deform(state, values)
        _infer_neck(state, values, base or Config())
        _infer_head(checkpoint, values, base or Config())
    except CheckpointError as error:
        raise CheckpointError(f"weights: {checkpoint.path}: {str(error).removeprefix('weights: ')}") from error
    return values


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
        width = side(state, f"{first}.convs.0.weight", 0)
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


def _infer_deform(state: Mapping[str, Tensor], values: dict[str, Any]) -> None:
    stages, versions = set(), set()
    for key in state:
        if match := _OFFSET.match(key):
            stages.add(int(match[1]) + 1)
            channels = side(state, key, 0)
            versions.add({18: 1, 27: 2}.get(channels, channels))
    if versions - {1, 2} or len(versions) > 1:
        raise CheckpointError(
            f"weights: deformable convolutions need 18 (version 1) or 27 (version 2) offset channels, the same in "
            f"every stage; the file has {sorted(9 * (v + 1) if v < 3 else v for v in versions)}"
        )
    values["model.backbone.deform.stages"] = sorted(stages)
    if versions:
        values["model.backbone.deform.version"] = versions.pop()


# ---- neck and head -------------------------------------------------------------------------------------------------


def _count(state: Iterable[str], prefix: str) -> int:
    found = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(found)


def _infer_neck(state: Mapping[str, Tensor], values: dict[str, Any], base: Config) -> None:
    levels = _count(state, "neck.fpn_convs.")
    if not levels:
        return
    values["model.neck.levels"] = levels
    values["model.neck.depthwise"] = "neck.fpn_convs.0.depthwise.weight" in state
    if "neck.fpn_convs.0.conv.weight" in state:
        values["model.neck.channels"] = side(state, "neck.fpn_convs.0.conv.weight", 0)
    scales = _count(state, "bbox_head.scales.")
    if scales and len(base.model.head.strides) != scales:
        values["model.head.strides"] = [8 * 2**level for level in range(scales)]


def _infer_head(checkpoint: Checkpoint, values: dict[str, Any], base: Config) -> None:
    state = checkpoint.state
    if class_layer(state) == "bbox_head.gfl_cls.0":
        _infer_nanodet(checkpoint, values)
        return
    kind = "atss" if class_layer(state) == "bbox_head.atss_cls" else "gfl"
    values["model.head.kind"] = kind
    values["model.head.stacked_convs"] = _count(state, "bbox_head.cls_convs.")
    inputs = width = side(state, f"bbox_head.{kind}_cls.weight", 1)
    if "bbox_head.cls_convs.0.conv.weight" in state:
        width = side(state, "bbox_head.cls_convs.0.conv.weight", 0)
        values["model.head.channels"] = width
        values["model.head.depthwise"] = "bbox_head.cls_convs.0.depthwise.weight" in state
    values["model.num_classes"], values["model.head.legacy_background"] = split_class_channels(checkpoint)
    if kind == "atss":
        return
    if "bbox_head.gfl_reg.weight" in state:
        values["model.head.reg_max"] = side(state, "bbox_head.gfl_reg.weight", 0) // 4 - 1
    composed = inputs - width
    values["model.head.composition"] = "composed" if composed else "product"
    if composed:
        values["model.head.quality"] = "statistics"
        _infer_statistics(composed, values, base)
    elif not checkpoint.has_quality:
        values["model.head.quality"] = None
    else:
        first = "bbox_head.reg_conf.0.weight"
        values["model.head.reg_channels"] = side(state, first, 0)
        _infer_predictor(side(state, first, 1), width, values, base)


def _infer_nanodet(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    state, head = checkpoint.state, "model.head."
    values |= {f"{head}kind": "nanodet", f"{head}quality": None, "model.neck.kind": "pan"}
    values[f"{head}stacked_convs"] = _count(state, "bbox_head.cls_convs.0.")
    values[f"{head}channels"] = side(state, "bbox_head.gfl_cls.0.weight", 1)
    values[f"{head}reg_max"] = side(state, "bbox_head.gfl_reg.0.weight", 0) // 4 - 1
    values["model.neck.channels"] = side(state, "neck.lateral_convs.0.conv.weight", 0)
    values["model.num_classes"], values[f"{head}legacy_background"] = split_class_channels(checkpoint)


def _infer_predictor(inputs: int, width: int, values: dict[str, Any], base: Config) -> None:
    head = base.model.head
    if head.quality == "statistics" and inputs == _statistics(head):
        values["model.head.quality"] = "statistics"
        _infer_statistics(inputs, values, base)
    elif inputs == 2 * width:
        values["model.head.quality"] = "both"
    elif inputs == width:
        if head.quality not in ("cls", "reg"):
            values["model.head.quality"] = "reg"  # the keys do not tell which tower; most often that of the boxes
    else:
        values["model.head.quality"] = "statistics"
        _infer_statistics(inputs, values, base)


def _statistics(head: Any) -> int:
    return 4 * (head.reg_topk * head.add_topk + head.add_mean + head.add_variance)


def _infer_statistics(inputs: int, values: dict[str, Any], base: Config) -> None:
    head = base.model.head
    each = inputs // 4
    if 4 * each != inputs:
        raise CheckpointError(f"weights: the quality predictor has {inputs} inputs, expected a multiple of 4 (sides)")
    if inputs == _statistics(head):
        # More than one choice of statistics has this width; the base decides.
        for name in ("reg_topk", "add_topk", "add_mean", "add_variance"):
            values[f"model.head.{name}"] = getattr(head, name)
        return
    others = head.add_mean + head.add_variance if each > 1 else 0
    values["model.head.reg_topk"] = each - others
    values["model.head.add_topk"] = True
    values["model.head.add_mean"] = bool(others and head.add_mean)
    values["model.head.add_variance"] = bool(others and head.add_variance)


def side(state: Mapping[str, Tensor], key: str, axis: int) -> int:
    """Size of a convolution's weights along an axis.

    Raises:
        CheckpointError: they are not there, or not the weights of a convolution.
    """
    if key not in state or state[key].dim() <= axis:
        shape = f"has the shape {tuple(state[key].shape)}" if key in state else "is missing"
        raise CheckpointError(f"weights: {key} {shape}; expected the weights of a convolution")
    return state[key].shape[axis]


def class_layer(state: Mapping[str, Any]) -> str | None:
    """The name of a detector's class convolution, of several the first; None where there is none."""
    return next((layer for layer in _CLASS_LAYERS if f"{layer}.weight" in state), None)


def class_layers(state: Mapping[str, Any]) -> list[str]:
    """The names of all its class convolutions: one, or one for each level."""
    first = class_layer(state)
    if first is None or not first.endswith(".0"):
        return [] if first is None else [first]
    name = first.removesuffix(".0")
    return [f"{name}.{level}" for level in range(_count(state, f"{name}."))]


def split_class_channels(checkpoint: Checkpoint) -> tuple[int, bool]:
    """(classes, whether the last channel is the authors' unused background) of a detector's file."""
    state = checkpoint.state
    try:
        channels = side(state, f"{class_layer(state)}.weight", 0)
    except CheckpointError as error:
        raise CheckpointError(f"weights: {checkpoint.path}: {str(error).removeprefix('weights: ')}") from error
    head = (checkpoint.config or {}).get("model", {})
    if "num_classes" in head:
        return head["num_classes"], channels == head["num_classes"] + 1
    if checkpoint.class_names is not None and channels - len(checkpoint.class_names) in (0, 1):
        return len(checkpoint.class_names), channels > len(checkpoint.class_names)
    # The authors' GFLV2 always has the extra channel; GFLV1 and ATSS never.
    theirs = checkpoint.layout in ("mmcv", "mmengine") or channels == len(COCO_NAMES) + 1
    background = checkpoint.has_quality and theirs and channels > 1 and channels != len(COCO_NAMES)
    return channels - background, background


def structure(values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``infer`` found, without the class count and the background channel."""
    return {k: v for k, v in values.items() if k not in ("model.num_classes", "model.head.legacy_background")}


def fitting_configs(values: Mapping[str, Any]) -> list[str]:
    """Named configurations of the structure that ``infer`` found."""
    if "model.backbone.name" not in values:
        return []
    return [name for name in list_models() if not differences(load_config(name), structure(values))]


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
