"""The settings of a detector and of its training, as typed dataclasses read from one YAML file per named model.

A configuration has five parts: ``model``, ``data``, ``train``, ``test`` and ``authors`` (what the authors published for
it). ``load_config`` takes a name of `configs/`, a path or a mapping, and applies overrides written as dotted keys:
``load_config("gflv2_r50_fpn_1x", {"train.epochs": 3, "model.head.reg_topk": 8})``. jsonargparse checks and converts the
values, those of YAML files and those of the command line alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from gflv2.extras import missing_package
from gflv2.ranges import check_range
from gflv2.shown import shown
from gflv2.yaml_files import read_named

FOLDER = Path(__file__).parent / "configs"  # in a checkout a link to the top-level folder


@dataclass(frozen=True)
class Grid:
    """Where a head's points lie: that of cell (i, j) at ((j + offset)·stride + shift, (i + offset)·stride + shift)."""

    offset: float = 0.0  # in cells
    shift: float = 0.0  # in pixels
    anchor_scale: float = 8.0  # strides a side of the square anchors that the assignment compares boxes with


# By ``model.head.kind``. NanoDet counts pixels by their centres: i·stride + (stride − 1)/2.
GRIDS = {"gfl": Grid(), "atss": Grid(), "nanodet": Grid(offset=0.5, shift=-0.5, anchor_scale=5.0)}


@dataclass
class DeformConfig:
    """Deformable convolution in the 3×3 convolutions of whole backbone stages."""

    stages: list[int] = field(default_factory=list)  # 3, 4, 5 = the stages that give C3, C4, C5; empty: none
    version: int = 1  # 1: offsets only (18 channels); 2: offsets and a mask (27 channels)


@dataclass
class BackboneConfig:
    name: str = "resnet50"  # any timm model with `features_only`, or "shufflenet_v2_x1_0" (NanoDet's)
    # timm tag, or "package:NAME" for weights that a Python package carries; None: none known
    pretrained: str | None = None
    out_indices: list[int] = field(default_factory=lambda: [2, 3, 4])  # feature indices with strides 8, 16, 32
    frozen_stages: int = 1  # 0: nothing, 1: stem and first stage, ... (parameters do not train)
    norm_eval: bool = True  # BatchNorm uses its running statistics in training too
    deform: DeformConfig = field(default_factory=DeformConfig)


@dataclass
class NeckConfig:
    kind: str = "fpn"  # "fpn"; "pan": NanoDet's path aggregation, as many levels as the backbone gives
    channels: int = 256
    levels: int = 5  # 3 from the backbone, the rest by stride-2 convolutions on the last output
    depthwise: bool = False  # light models: depthwise-separable 3×3 convolutions


@dataclass
class HeadConfig:
    # "gfl": GFLV2 and GFLV1; "atss": the ablation without distributions; "nanodet": GFLV1 with light towers
    kind: str = "gfl"
    channels: int = 256
    stacked_convs: int = 4
    reg_max: int = 16
    strides: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    gn_groups: int = 32
    depthwise: bool = False
    # "statistics" (GFLV2), "cls", "reg", "both" (convolutional features), None (GFLV1)
    quality: str | None = "statistics"
    composition: str = "product"  # "product": J = σ(c)·σ(r); "composed": one convolution on [tower, statistics]
    reg_topk: int = 4
    add_topk: bool = True
    add_mean: bool = True
    add_variance: bool = False
    reg_channels: int = 64
    # Start of reg_conf. "normal": N(0, 0.01), as the authors, for SGD. "hinge": for Adam, whose first steps have the
    # same size for every weight and push ReLUs that start near 0 below it for good; these start with their bends among
    # the inputs (docs/runs.md). "kaiming": in between.
    quality_init: str = "normal"
    legacy_background: bool = False  # keep the authors' unused (C+1)-th class channel
    atss_topk: int = 9
    ignore_iof_thr: float = 0.0  # > 0: points inside ignore boxes are left out of the loss
    beta: float = 2.0
    loss_weights: list[float] = field(default_factory=lambda: [1.0, 2.0, 0.25])  # QFL, GIoU, DFL
    weight_floor: float = 1e-12  # lower bound of the box losses' normaliser Σw; mmdet 3 uses 1


@dataclass
class ModelConfig:
    num_classes: int = 80
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass
class DataConfig:
    train: str | None = None  # training set: COCO JSON, YOLO YAML or a folder (docs/data.md)
    train_images: str | None = None  # folder of its images; None: found beside it
    val: str | None = None
    val_images: str | None = None
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])  # RGB, on the 0–255 scale
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])
    long_side: int = 1333
    # training: uniform integer between both, inclusive
    short_side: list[int] = field(default_factory=lambda: [800, 800])
    test_short_side: int = 800
    flip: float = 0.5  # probability of a horizontal flip
    vertical_flip: float = 0.0
    random_crop: float = 0.0  # probability of an IoU-constrained crop (off in the official recipes)
    photometric: float = 0.0  # probability of a brightness/contrast/saturation/hue change (off in the official recipes)
    pad_divisor: int = 32
    keep_empty: bool = False  # keep training images without boxes as pure background
    min_image_side: int = 32  # smaller training images are dropped
    skip_bad: bool = False  # leave out images that are missing, damaged or of another size than their annotations say
    keep_root_category: bool = False  # keep a category without boxes that only groups the others (Roboflow's id 0)
    workers: int = 2
    # decode a JPEG at half, quarter or eighth size where that is still no smaller than the network's input: faster for
    # large photographs, but the pixels differ a little
    reduced_decode: bool = False
    cache_images: bool = False  # keep all decoded images in memory, once per process that trains


@dataclass
class DistillConfig:
    """Localisation distillation (LD): the box distributions learn those of a trained detector with as many bins."""

    teacher: str | None = None  # its weights: a file or the name of published ones; None: no distillation
    loss_weight: float = 0.5
    temperature: float = 10.0  # T of both softmaxes
    # what a point of the valuable localisation region counts beside a positive one; 0: positive points only
    region_weight: float = 0.25
    region_low: float = 0.25  # the region: DIoU with a box from this share of its ATSS threshold up to the threshold


@dataclass
class TrainConfig:
    epochs: int = 12
    batch_size: int = 16  # of an iteration, total over all devices
    # gradient accumulation: a device computes its share of the batch in so many parts, one after the other. The same
    # iterations, rates and gradients, in less memory and with one more forward pass.
    accumulate: int = 1
    lr: float = 0.01  # at `base_batch_size`; scaled linearly with the total batch, and said so
    base_batch_size: int = 16
    scale_lr: bool = True
    optimizer: str = "sgd"  # "sgd" or "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"  # "step": ×0.1 after each milestone; "cosine"
    milestones: list[int] = field(default_factory=lambda: [8, 11])
    warmup_iterations: int = 500
    warmup_factor: float = 0.001
    clip_grad_norm: float | None = None
    precision: str = "32"  # "32", "bf16" or "16" (Lightning's mixed precision)
    # memory layout of images and weights while training; faster on CPUs and in mixed precision
    channels_last: bool = False
    # on a CPU: faster paths for 1×1 and wide depthwise convolutions in channels_last, equal up to rounding
    # (docs/benchmarks.md has their speed, and the AP with them); the light recipe takes them
    fast_convolutions: bool = False
    ema_decay: float | None = None  # keep and evaluate an exponential moving average of the weights
    seed: int = 0
    group_by_aspect: bool = True
    evaluate_every: int = 1  # epochs
    early_stopping: int | None = None  # stop after so many evaluations in a row without a better AP; None: never
    save_every_steps: int | None = None  # iterations; None: at the ends of epochs and before each evaluation
    start_timeout: int = 300  # seconds that the processes of a run wait for each other to start
    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass
class TTAConfig:
    """Test-time augmentation, of `val` and `predict`: the views of an image, whose detections share one NMS."""

    scales: list[float] = field(default_factory=lambda: [1.0])  # factors of the image size in `data`
    flip: bool = False  # each of them mirrored left to right, too

    @property
    def active(self) -> bool:
        """Whether there is another view than the plain one."""
        return self.flip or self.scales != [1.0]


@dataclass
class TestConfig:
    """From a head's logits to detections. These are the defaults of every part that detects."""

    pre_topk: int = 1000  # points kept on each level
    score_thr: float = 0.05  # scores must exceed it
    iou_thr: float = 0.6  # of the class-wise NMS
    max_detections: int = 100  # kept in each image
    tta: TTAConfig = field(default_factory=TTAConfig)

    def options(self, **given: float | None) -> dict[str, Any]:
        """The settings of decoding and NMS as keyword arguments; one that is given and not None stands in place of the
        configured one.
        """
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "tta"}
        return {**settings, **{name: value for name, value in given.items() if value is not None}}


@dataclass
class AuthorsConfig:
    """What the authors published for this configuration; never measured by this project."""

    name: str | None = None
    ap_minival: float | None = None
    ap_test_dev: float | None = None
    fps_2080ti: float | None = None


@dataclass
class Config:
    name: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)
    authors: AuthorsConfig = field(default_factory=AuthorsConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``load_config`` and ``GFLV2`` accept, sorted; ``pattern`` as in a shell, for example ``"*dcn*"``."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if fnmatch(path.stem, pattern))


def load_config(source: str | Path | Mapping | Config | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration and apply ``overrides`` (dotted keys).

    Args:
        source: a name from ``list_models()``, the path of a YAML file, a nested mapping, a ``Config`` (copied), or
            None for the defaults. A YAML file may start from another one with a top-level ``base: NAME``.
        overrides: ``{"train.epochs": 3, ...}``.

    Raises:
        FileNotFoundError: no such name or file; the message lists the names and the nearest one.
        ValueError, TypeError: an unknown key, a value that is not of the field's type, a number out of its range.
    """
    if source is None:
        values: dict[str, Any] = {}
    elif isinstance(source, Config):
        values = _flatten(source.to_dict())
    elif isinstance(source, Mapping):
        values = _with_base(source)
    else:
        values = _read_yaml(source)
    try:
        parsed = {key: parse_setting(key, value) for key, value in values.items()}
    except (TypeError, ValueError) as error:
        if not isinstance(source, (str, Path)):
            raise
        raise type(error)(f"{source}: {error}") from error
    parsed |= {key: parse_setting(key, value) for key, value in _flatten(overrides or {}).items()}
    return _build(Config, parsed)


def _read_yaml(source: str | Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Dotted keys of a file and its bases. ``below``: the files whose base it is."""
    path, values = read_named(source, "config", "A configuration file", "named configuration", FOLDER, list_models)
    values = values or {}
    if path in below:
        raise ValueError(f"config: {path} is its own base, by way of {len(below)} files")
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} must hold a mapping, got {type(values).__name__}")
    if odd := [name for name in values if not isinstance(name, str)]:
        raise TypeError(f"config: {path}: expected a text as a setting's name, got {shown(odd[0])}")
    try:
        return _with_base({"name": path.stem, **values}, (*below, path))
    except RecursionError:
        raise ValueError(
            f"config: {path} cannot be read: a section that holds itself, or is nested too deeply"
        ) from None
    except (TypeError, ValueError, FileNotFoundError) as error:
        text = str(error).removeprefix("config: ")
        raise type(error)(f"config: {path}: {text}" if str(path) not in text else f"config: {text}") from error


def _with_base(values: Mapping[str, Any], below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Nested sections → dotted keys, over those of the file that ``base`` names."""
    values = dict(values)
    base = values.pop("base", None)
    if not isinstance(base, (str, Path, type(None))):
        raise TypeError(f"base: expected the name or the path of a configuration, got {shown(base)}")
    return {**({} if base is None else _read_yaml(base, below)), **_flatten(values)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError(f"unknown setting {prefix}{shown(name)}: expected a text as its name")
        key = prefix + name
        # An empty mapping in place of a number or a text is no section without changes, but a mistake.
        is_section = isinstance(value, Mapping) and (value or any(other.startswith(f"{key}.") for other in settings()))
        flat |= _flatten(value, f"{key}.") if is_section else {key: value}
    return flat


def _build(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        key = prefix + name
        if dataclasses.is_dataclass(hint):
            fields[name] = _build(hint, values, key + ".")
        elif key in values:
            fields[name] = values[key]
    return cls(**fields)


# ---- one setting ---------------------------------------------------------------------------------------------------


@cache
def settings() -> dict[str, tuple[Any, Any]]:
    """Dotted key → (type, general default) of every setting."""
    return _settings(Config, "")


def _settings(cls: Any, prefix: str) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    default = cls()
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= _settings(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = hint, getattr(default, name)
    return found


def parse_setting(key: str, value: Any, prefix: str = "") -> Any:
    """A value, or its text, as the type of its field: ``("train.lr", "1e-3")`` → 0.001, ``"[480,640]"`` → a list.

    Args:
        key: dotted.
        prefix: what stands before the key in messages: "--" on a command line.

    Raises:
        ValueError: no such setting, where the message names the nearest; a number out of its range
            (`gflv2/ranges.py`). TypeError: a value of another type.
    """
    if key not in settings():
        _refuse_unknown(key, prefix)
    hint, _ = settings()[key]
    if isinstance(value, str) and hint is str:
        return value  # also one that YAML would read as a number or as null
    if not isinstance(value, str) and _is_of(value, hint):  # the text "null" is nothing, where that is allowed
        # Without the parser, which takes 1 ms a setting: a detector's configuration is read three times as it loads.
        return check_range(key, list(value) if isinstance(value, list) else value, prefix)
    try:
        parsed = _parser().parse_object({key: value}, defaults=False)[key]
    except (argparse.ArgumentError, OverflowError) as error:
        raise TypeError(f"{prefix}{key}: expected {_expected(hint)}, got {shown(value)}") from error
    if parsed is None and type(None) not in typing.get_args(hint):  # to the parser, null is "not given"
        raise TypeError(f"{prefix}{key}: expected {_expected(hint)}, got {shown(value)}")
    return check_range(key, parsed, prefix)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value has a field's type already: exactly, so that true is no integer and 1 no float."""
    if typing.get_origin(hint) is list:
        return type(value) is list and all(_is_of(item, typing.get_args(hint)[0]) for item in value)
    if kinds := typing.get_args(hint):
        return any(_is_of(value, kind) for kind in kinds)
    return type(value) is hint


def _refuse_unknown(key: str, prefix: str) -> NoReturn:
    near = difflib.get_close_matches(key, settings(), n=1)
    section = [other for other in settings() if other.startswith(key + ".")]
    hint = f"; did you mean {prefix}{near[0]}?" if near else ""
    hint = f": it is a section, of {', '.join(section)}" if section else hint
    raise ValueError(f"unknown setting {prefix}{key}{hint} (gflv2 configs NAME prints all)")


@cache
def _parser() -> Any:
    try:
        import jsonargparse
    except ModuleNotFoundError as error:
        raise missing_package(error, "A configuration") from error
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(Config)
    return parser


def _expected(hint: Any) -> str:
    """A field's type in words: ``list[int] | None`` → "a list of integers, for example [480,640] or null"."""
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    names = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a text", "None": "null"}
    plural = {"int": "integers, for example [480,640]", "float": "numbers, for example [1,2,0.25]"}
    shown = []
    for part in text.split(" | "):
        inner = re.fullmatch(r"list\[(\w+)\]", part)
        shown.append(f"a list of {plural[inner[1]]}" if inner else names[part])
    return " or ".join(shown)
