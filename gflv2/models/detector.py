"""The detector: backbone, pyramid and head, and the three things it does: forward, loss, detect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gflv2.config import Config, HeadConfig, load_config
from gflv2.models.atss_head import ATSSHead
from gflv2.models.backbones import build_backbone, keep_norms_in_eval
from gflv2.models.checkpoint.names import COCO_NAMES
from gflv2.models.fpn import FPN
from gflv2.models.head import GFLHead
from gflv2.models.towers import Detections, HeadOutput
from gflv2.ops.checks import bad_value, check_choice, check_tensor

if TYPE_CHECKING:
    from gflv2.engine.capture_inference import CapturedInference
    from gflv2.engine.capture_training import CapturedTrainingStep
    from gflv2.models.checkpoint import Checkpoint


class GFLV2(nn.Module):
    """A one-stage detector with distribution-guided localisation quality (arXiv 2011.12885).

    Args:
        config: the name of a model (``list_models()``), the path of a YAML file, a mapping or a ``Config``. None: what
            the file ``weights`` was saved with, or what its keys tell. A checkpoint's path: the same as ``weights``.
        weights: a checkpoint: this project's, the authors', mmengine's, or a backbone's; a path, or what
            ``gflv2.models.checkpoint.read`` returned.
        num_classes: instead of the configuration's. None: that of the weights where the configuration leaves it open.
        class_names: one for each class; None: those of the weights, else COCO's for 80 classes, else "class 0", ….
        pretrained: start from the backbone weights that the configuration names. Not together with ``weights``.
        legacy: keep the authors' unused background channel (C + 1 class channels), for their exact numbers.
        overrides: single settings, dots written as two underscores: ``model__head__reg_topk=8``.

    Attributes:
        config: a ``Config``. class_names: a list of ``config.model.num_classes`` names.
        backbone, neck, bbox_head: the three parts; the keys of ``state_dict`` are those of the official checkpoints.

    Raises:
        FileNotFoundError: no such configuration or file. ValueError, TypeError: settings that do not fit together.
    """

    def __init__(
        self,
        config: str | Path | Mapping | Config | None = None,
        *,
        weights: str | Path | Checkpoint | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        pretrained: bool = False,
        legacy: bool = False,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if weights is None and str(config).endswith((".pth", ".pt", ".ckpt", ".safetensors")):
            config, weights = None, config
        if weights is not None and pretrained:
            bad_value("pretrained", "False, since weights are given", pretrained)
        settings = {key.replace("__", "."): value for key, value in overrides.items()}
        if class_names is not None:
            if num_classes not in (None, len(class_names)):
                bad_value("class_names", f"{num_classes} names, one for each class", list(class_names))
            num_classes = len(class_names)
        if num_classes is not None:
            settings["model.num_classes"] = num_classes
        if legacy:
            settings["model.head.legacy_background"] = True
        checkpoint, known_names = None, None
        if weights is not None:
            from gflv2.models import checkpoint as files

            checkpoint = weights if isinstance(weights, files.Checkpoint) else files.read(weights)
            config, known_names, found = files.resolve(checkpoint, config, settings.get("model.num_classes"))
            settings = {**found, **settings}
        elif config is None:
            bad_value("config", "the name of a model, a path, a mapping or a Config, unless weights are given", None)

        self.config = load_config(config, settings)
        model = self.config.model
        self.class_names = _names(model.num_classes, class_names, known_names)
        self.backbone = build_backbone(model.backbone, pretrained=pretrained)
        _check_strides(self.backbone, model.head.strides, model.neck.levels)
        channels = self.backbone.feature_info.channels()
        self.neck = FPN(channels, model.neck.channels, model.neck.levels, depthwise=model.neck.depthwise)
        self.bbox_head = build_head(model.num_classes, model.neck.channels, model.head)
        if checkpoint is not None:
            files.load_weights(self, checkpoint)

    def train(self, mode: bool = True) -> GFLV2:
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
        """The weighted losses of a batch; minimise their sum. Arguments as ``GFLHead.loss``."""
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

        Switch to ``eval()`` first: dropout and the like would be active otherwise. Arguments as ``GFLHead.detect``.
        """
        given = {"pre_topk": pre_topk, "score_thr": score_thr, "iou_thr": iou_thr, "max_detections": max_detections}
        settings = {name: getattr(self.config.test, name) if value is None else value for name, value in given.items()}
        output = self(images)
        return self.bbox_head.detect(
            output, image_sizes, scale_factors, return_distributions=return_distributions, **settings
        )

    def predict(self, source: Any, **options: Any) -> Any:
        """Detections of a photograph (path, PIL image, array, tensor) or of a list; see ``gflv2.engine.predict``."""
        from gflv2.engine.predict import predict

        return predict(self, source, **options)

    def capture_training_step(
        self, optimizer: torch.optim.Optimizer, shape: Sequence[int], *, max_boxes: int, **options: Any
    ) -> CapturedTrainingStep:
        """The whole training step for images of one shape (B, 3, H, W), on a GPU as one CUDA graph.

        ``step(images, boxes, labels)`` → losses. Options: see `gflv2.engine.capture_training.CapturedTrainingStep`.
        """
        from gflv2.engine.capture_training import CapturedTrainingStep

        return CapturedTrainingStep(self, optimizer, shape, max_boxes=max_boxes, **options)

    def capture_inference(self, shape: Sequence[int], **options: Any) -> CapturedInference:
        """``detect`` for images of one shape (B, 3, H, W), on a GPU as one CUDA graph and the NMS after it.

        Options: see `gflv2.engine.capture_inference.CapturedInference`.
        """
        from gflv2.engine.capture_inference import CapturedInference

        return CapturedInference(self, shape, **options)

    def save(self, path: str | Path) -> Path:
        """Write weights, configuration and class names to one file that ``GFLV2(weights=path)`` reads."""
        from gflv2.models import checkpoint as files

        return files.save(self, path)


def build_head(num_classes: int, in_channels: int, config: HeadConfig) -> GFLHead | ATSSHead:
    """The head that ``config.kind`` names."""
    check_choice(config.kind, "head.kind", ("gfl", "atss"))
    common = {
        "feat_channels": config.channels,
        "stacked_convs": config.stacked_convs,
        "strides": config.strides,
        "gn_groups": config.gn_groups,
        "depthwise": config.depthwise,
        "atss_topk": config.atss_topk,
        "ignore_iof_thr": config.ignore_iof_thr,
        "loss_weights": config.loss_weights,
        "weight_floor": config.weight_floor,
    }
    if config.kind == "atss":
        if config.legacy_background:
            bad_value("head.legacy_background", "False for head.kind 'atss'", True)
        return ATSSHead(num_classes, in_channels, **common)
    return GFLHead(
        num_classes,
        in_channels,
        reg_max=config.reg_max,
        reg_topk=config.reg_topk,
        add_topk=config.add_topk,
        add_mean=config.add_mean,
        add_variance=config.add_variance,
        reg_channels=config.reg_channels,
        quality_init=config.quality_init,
        legacy_background=config.legacy_background,
        quality=config.quality,
        composition=config.composition,
        beta=config.beta,
        **common,
    )


def _check_strides(backbone: nn.Module, strides: Sequence[int], levels: int) -> None:
    have = list(backbone.feature_info.reduction())
    have += [have[-1] * 2 ** (extra + 1) for extra in range(levels - len(have))]
    if list(strides) != have:
        bad_value("head.strides", f"{have}, the strides of the {len(have)} levels that backbone and neck give", strides)


def _names(num_classes: int, *candidates: Sequence[str] | None) -> list[str]:
    """The first list of names that fits; COCO's for 80 classes; else "class 0", "class 1", …."""
    for names in (*candidates, COCO_NAMES):
        if names is not None and len(names) == num_classes:
            return list(names)
    return [f"class {label}" for label in range(num_classes)]
