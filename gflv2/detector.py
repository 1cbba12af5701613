"""The detector as users have it: built from a name or from a file of weights; it predicts, saves and captures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gflv2 import checkpoint as files
from gflv2.config import Config, load_config
from gflv2.models.detector import SingleStageDetector
from gflv2.ops.checks import bad_value

if TYPE_CHECKING:
    from gflv2.engine.cuda_graph import CapturedInference, CapturedTrainingStep
    from gflv2.engine.export import ExportReport
    from gflv2.engine.results import Result


class GFLV2(SingleStageDetector):
    """A one-stage detector with distribution-guided localisation quality (arXiv 2011.12885).

    Args:
        config: the name of a model (``list_models()``), the path of a YAML file, a mapping or a ``Config``. None: what
            the file ``weights`` was saved with, or what its keys tell. A checkpoint's path: the same as ``weights``.
        weights: a checkpoint: this project's, the authors', mmengine's, or a backbone's; a path, or what
            ``gflv2.checkpoint.read`` returned. ``"coco"``: the published weights of the named configuration; or a
            configuration's name: that one's (`gflv2 models` lists them). They are downloaded once.
        num_classes: instead of the configuration's. None: that of the weights where the configuration leaves it open.
        class_names: one for each class; None: those of the weights, else COCO's for 80 classes, else "class 0", ….
        pretrained: start from the backbone weights that the configuration names. Not together with ``weights``.
        legacy: keep the authors' unused background channel (C + 1 class channels), for their exact numbers.
        overrides: single settings, dots written as two underscores: ``model__head__reg_topk=8``.

    Attributes: as ``SingleStageDetector``, which is what all of gflv2 but this class and its callers works with.

    Raises:
        FileNotFoundError: no such configuration or file. ValueError, TypeError: settings that do not fit together.
    """

    def __init__(
        self,
        config: str | Path | Mapping | Config | None = None,
        *,
        weights: str | Path | files.NamedWeights | files.Checkpoint | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        pretrained: bool = False,
        legacy: bool = False,
        **overrides: Any,
    ) -> None:
        if weights is None and str(config).endswith((".pth", ".pt", ".ckpt", ".safetensors", ".onnx")):
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
        checkpoint, category_ids, described = None, None, False
        if weights is not None:
            named = files.find_weights(weights, config)
            if named is not None and config is None:
                config = named.name
            checkpoint = files.read(named or weights)
            described = config is None
            config, names, found = files.resolve(checkpoint, config, settings.get("model.num_classes"))
            if class_names is None:
                class_names, category_ids = names, checkpoint.category_ids
            settings = {**found, **settings}
        elif config is None:
            bad_value("config", "the name of a model, a path, a mapping or a Config, unless weights are given", None)
        config = load_config(config, settings)
        try:
            super().__init__(config, class_names=class_names, category_ids=category_ids, pretrained=pretrained)
        except (ValueError, TypeError) as error:
            if checkpoint is None or not described:
                raise
            raise files.CheckpointError(f"weights: {checkpoint.path} describes no detector: {error}") from error
        if checkpoint is not None:
            files.load_weights(self, checkpoint)

    def predict(self, source: Any, **options: Any) -> Result | list[Result]:
        """Detections of a photograph (path, PIL image, array, tensor) or of a list; see ``gflv2.engine.predict``."""
        from gflv2.engine.predict import predict

        return predict(self, source, **options)

    def capture_training_step(
        self, optimizer: torch.optim.Optimizer, shape: Sequence[int], *, max_boxes: int, **options: Any
    ) -> CapturedTrainingStep:
        """The whole training step for images of one shape (B, 3, H, W), on a GPU as one CUDA graph.

        ``step(images, boxes, labels)`` → losses. Options: see `gflv2.engine.cuda_graph.CapturedTrainingStep`.
        """
        from gflv2.engine.cuda_graph import CapturedTrainingStep

        return CapturedTrainingStep(self, optimizer, shape, max_boxes=max_boxes, **options)

    def capture_inference(self, shape: Sequence[int], **options: Any) -> CapturedInference:
        """``detect`` for images of one shape (B, 3, H, W), on a GPU as one CUDA graph and the NMS after it.

        Options: see `gflv2.engine.cuda_graph.CapturedInference`.
        """
        from gflv2.engine.cuda_graph import CapturedInference

        return CapturedInference(self, shape, **options)

    def export(self, path: str | Path, **options: Any) -> ExportReport:
        """Write an ONNX (``.onnx``) or torch.export (``.pt2``) file; options: see `gflv2.engine.export.export`."""
        from gflv2.engine.export import export

        return export(self, path, **options)

    def save(self, path: str | Path) -> Path:
        """Write weights, configuration and class names to one file that ``GFLV2(weights=path)`` reads."""
        return files.save(self, path)
