"""The settings of a detector and of its training, as typed dataclasses read from one YAML file per named model.

A configuration has five parts: ``model``, ``data``, ``train``, ``test`` and ``authors`` (what the authors published for
it). ``load_config`` takes a name of `configs/`, a path or a mapping, and applies overrides written as dotted keys:
``load_config("gflv2_r50_fpn_1x", {"train.epochs": 3, "model.head.reg_topk": 8})``. Unknown keys are errors that list
the valid ones.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class DeformConfig:
    """Deformable convolution in the 3×3 convolutions of whole backbone stages."""

    stages: list[int] = field(default_factory=list)  # 3, 4, 5 = the stages that give C3, C4, C5; empty: none
    version: int = 1  # 1: offsets only (18 channels); 2: offsets and a mask (27 channels)


@dataclass
class BackboneConfig:
    name: str = "resnet50"  # any timm model with `features_only`
    # timm tag, or "package:NAME" for weights that a Python package carries; None: none known
    pretrained: str | None = None
    out_indices: list[int] = field(default_factory=lambda: [2, 3, 4])  # feature indices with strides 8, 16, 32
    frozen_stages: int = 1  # 0: nothing, 1: stem and first stage, ... (parameters do not train)
    norm_eval: bool = True  # BatchNorm uses its running statistics in training too
    deform: DeformConfig = field(default_factory=DeformConfig)


@dataclass
class NeckConfig:
    channels: int = 256
    levels: int = 5  # 3 from the backbone, the rest by stride-2 convolutions on the last output
    depthwise: bool = False  # light models: depthwise-separable 3×3 convolutions


@dataclass
class HeadConfig:
    kind: str = "gfl"  # "gfl": GFLV2 and GFLV1; "atss": the ablation without distributions
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
    # Start of reg_conf: "normal" as the authors, N(0, 0.01); "kaiming" for Adam, whose equal steps drive the ReLUs
    # that start so near 0 below it, from where they do not return: the quality becomes a constant.
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
class TrainConfig:
    epochs: int = 12
    batch_size: int = 16  # total over all devices
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
    ema_decay: float | None = None  # keep and evaluate an exponential moving average of the weights
    seed: int = 0
    group_by_aspect: bool = True
    evaluate_every: int = 1  # epochs


@dataclass
class TestConfig:
    pre_topk: int = 1000
    score_thr: float = 0.05
    iou_thr: float = 0.6
    max_detections: int = 100


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


def config_folder() -> Path:
    """Folder of the named configurations: inside an installed package, or `configs/` of the checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def config_names() -> list[str]:
    """Names that ``load_config`` accepts, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def load_config(source: str | Path | Mapping | Config | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration and apply ``overrides`` (dotted keys).

    Args:
        source: a name from ``config_names()``, the path of a YAML file, a nested mapping, a ``Config`` (copied), or
            None for the defaults. A YAML file may start from another one with a top-level ``base: NAME``.
        overrides: ``{"train.epochs": 3, ...}``.

    Raises:
        FileNotFoundError: no such name or file; the message lists the names and the nearest one.
        ValueError, TypeError: an unknown key, or a value that is not of the field's type.
    """
    if source is None:
        values: dict[str, Any] = {}
    elif isinstance(source, Config):
        values = source.to_dict()
    elif isinstance(source, Mapping):
        values = _with_base(copy.deepcopy(dict(source)))  # the overrides below must not reach the caller's mapping
    else:
        values = _read_yaml(source)
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    return _build(Config, values, "")


def _read_yaml(source: str | Path) -> dict[str, Any]:
    import yaml

    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = config_folder() / f"{source}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(str(source), config_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        names = ", ".join(config_names())
        raise FileNotFoundError(f"config: no file and no named configuration {str(source)!r}.{hint} Names: {names}")
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} must hold a mapping, got {type(values).__name__}")
    values.setdefault("name", path.stem)
    return _with_base(values)


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    base = values.pop("base", None)
    return values if base is None else _merge(_read_yaml(base), values)


def _merge(base: dict, top: dict) -> dict:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ValueError(f"override {key!r}: {parent!r} is a value, not a section")
        values = inner
    values[last] = value


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(f"config: unknown key {where + sorted(unknown)[0]!r}; expected one of {sorted(hints)}")
    fields = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise TypeError(f"config: {where + name!r} must be a section of keys, got {value!r}")
            fields[name] = _build(hint, value, f"{where}{name}.")
        else:
            fields[name] = _coerce(value, hint, where + name)
    return cls(**fields)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Check ``value`` against the field's type; an int is accepted for a float, and YAML's ``1e-4`` string too."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        origin = typing.get_origin(hint)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"config: {where!r} must be a list, got {value!r}")
        (inner,) = typing.get_args(hint)
        return [_coerce(item, inner, where) for item in value]
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    raise TypeError(f"config: {where!r} must be of type {hint.__name__}, got {value!r}")
