"""A one-stage detector as a module: backbone, pyramid and head, and the three things it does: forward, loss, detect."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gflv2.config import GRIDS, Config, HeadConfig, NeckConfig
from gflv2.models.atss_head import ATSSHead
from gflv2.models.backbones import build_backbone, keep_norms_in_eval
from gflv2.models.coco_names import COCO_IDS, COCO_NAMES
from gflv2.models.cpu_convolutions import faster_on
from gflv2.models.dense_head import DenseHead, HeadOutput
from gflv2.models.fpn import FPN
from gflv2.models.gfl_head import GFLHead
from gflv2.models.nanodet_head import NanoDetHead
from gflv2.models.pan import PAN
from gflv2.ops import Detections
from gflv2.ops.checks import bad_value, check_choice, check_tensor

_Detector = TypeVar("_Detector", bound="SingleStageDetector")


class SingleStageDetector(nn.Module):
    """Backbone, feature pyramid and dense head, built from a configuration; it reads no weights but a backbone's.

    Args:
        config: the settings; kept, not copied.
        class_names: one for each class; None, or of another number: COCO's for 80 classes, else "class 0", ….
        category_ids: of each class in the annotations that it was trained on; None, or of another number: COCO's for
            COCO's names, else 1, 2, ….
        pretrained: start from the backbone weights that the configuration names.

    Attributes:
        config: a ``Config``. class_names: a list of ``config.model.num_classes`` names. category_ids: as many
            integers or texts, which files of detections have.
        backbone, neck, bbox_head: the three parts; the keys of ``state_dict`` are those of the official checkpoints.

    Raises:
        ValueError: settings that do not fit together.
    """

    def __init__(
        self,
        config: Config,
        *,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[Any] | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        model = config.model
        self.config, self.class_names = config, _names(model.num_classes, class_names)
        self.category_ids = _category_ids(self.class_names, category_ids)
        self.backbone = build_backbone(model.backbone, pretrained=pretrained)
        _check_strides(self.backbone, model.head.strides, model.neck.levels)
        channels = self.backbone.feature_info.channels()
        self.neck = build_neck(channels, model.neck)
        self.bbox_head = build_head(model.num_classes, model.neck.channels, model.head)

    def train(self: _Detector, mode: bool = True) -> _Detector:
        """Training mode; the backbone's BatchNorm layers stay in eval mode as the configuration says."""
        super().train(mode)
        keep_norms_in_eval(self.backbone, self.config.model.backbone)
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images → the levels of the pyramid, (B, channels, H_l, W_l)."""
        check_tensor(images, "images", shape=(None, 3, None, None))
        levels = self.backbone(images)
        if str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC"):  # timm's hierarchical transformers
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return self.neck(levels)

    def forward(self, images: Tensor) -> HeadOutput:
        """(B, 3, H, W) images, normalised with ``config.data`` and padded right and below → logits of all levels."""
        with faster_on(images, self.training and self.config.train.fast_convolutions):
            return self.bbox_head(self.features(images))

    def loss(
        self,
        images: Tensor,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        padded_sizes: Sequence[tuple[int, int]] | None = None,
        ignore_boxes: Sequence[Tensor] | Tensor | None = None,
        counts: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted losses of a batch; minimise their sum. Arguments as ``DenseHead.loss``."""
        return self.bbox_head.loss(self(images), boxes, labels, padded_sizes, ignore_boxes, counts)

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        scale_factors: Tensor | Sequence[tuple[float, float]] | None = None,
        *,
        pre_topk: int | None = None,
        score_thr: float | None = None,
        iou_thr: float | None = None,
        max_detections: int | None = None,
        return_distributions: bool = False,
    ) -> list[Detections]:
        """Detections of each image, best first. Settings that are None come from ``config.test``.

        Switch to ``eval()`` first: dropout and the like would be active otherwise. Arguments as ``GFLHead.decode``,
        and those of the NMS as ``DenseHead.detect``.
        """
        options = self.config.test.options(
            pre_topk=pre_topk, score_thr=score_thr, iou_thr=iou_thr, max_detections=max_detections
        )
        return self.bbox_head.detect(
            self(images), image_sizes, scale_factors, return_distributions=return_distributions, **options
        )


def build_neck(in_channels: Sequence[int], config: NeckConfig) -> FPN | PAN:
    """The pyramid that ``config.kind`` names, over the backbone's levels."""
    check_choice(config.kind, "neck.kind", ("fpn", "pan"))
    if config.kind == "fpn":
        return FPN(in_channels, config.channels, config.levels, depthwise=config.depthwise)
    if config.depthwise:
        bad_value("neck.depthwise", "False for neck.kind 'pan', which has no 3×3 convolutions", True)
    return PAN(in_channels, config.channels, config.levels)


def build_head(num_classes: int, in_channels: int, config: HeadConfig) -> GFLHead | ATSSHead:
    """The head that ``config.kind`` names. A head's arguments have the names of the settings, but for ``channels``."""
    check_choice(config.kind, "head.kind", tuple(GRIDS))
    options = dataclasses.asdict(config)
    kind, options["feat_channels"] = options.pop("kind"), options.pop("channels")
    if kind == "gfl":
        return GFLHead(num_classes, in_channels, **options)
    if config.legacy_background:
        bad_value("head.legacy_background", f"False for head.kind {kind!r}", True)
    common = {name: options[name] for name in inspect.signature(DenseHead).parameters if name in options}
    if kind == "atss":
        return ATSSHead(num_classes, in_channels, **common)
    if config.quality is not None:
        bad_value("head.quality", "None for head.kind 'nanodet'", config.quality)
    return NanoDetHead(num_classes, in_channels, reg_max=config.reg_max, beta=config.beta, **common)


def _check_strides(backbone: nn.Module, strides: Sequence[int], levels: int) -> None:
    have = list(backbone.feature_info.reduction())
    have += [have[-1] * 2 ** (extra + 1) for extra in range(levels - len(have))]
    if list(strides) != have:
        bad_value("head.strides", f"{have}, the strides of the {len(have)} levels that backbone and neck give", strides)


def _names(num_classes: int, given: Sequence[str] | None) -> list[str]:
    """The given names where they fit; COCO's for 80 classes; else "class 0", "class 1", …."""
    for names in (given, COCO_NAMES):
        if names is not None and len(names) == num_classes:
            return list(names)
    return [f"class {label}" for label in range(num_classes)]


def _category_ids(names: Sequence[str], given: Sequence[Any] | None) -> list[Any]:
    """The given ids where they fit; COCO's for its names; else 1, 2, …."""
    if given is not None and len(given) == len(names):
        return list(given)
    return list(COCO_IDS) if tuple(names) == COCO_NAMES else list(range(1, len(names) + 1))
