"""An exported ONNX file as a detector, for ``evaluate`` and ``predict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.config import TTAConfig, load_config
from gflv2.data.image import say_once
from gflv2.engine.export import metadata, onnx_file
from gflv2.models.dense_head import to_original
from gflv2.ops import Decoded, Detections, batched_nms
from gflv2.ops.checks import bad_value


class OnnxDetector(nn.Module):
    """What ``gflv2 export`` wrote, run by onnxruntime: ``detect`` as a ``GFLV2`` has it, without distributions.

    Args:
        path: an ONNX file with decoded outputs or with the NMS inside.
        device: "cpu", or "cuda" where onnxruntime can use it.
        overrides: settings of ``data`` and ``test`` (dotted keys); the network's are fixed.

    Attributes:
        config, class_names, category_ids: as of the model that was exported.
        metadata: all that the file says about itself.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed. FileNotFoundError. ValueError: another kind of file.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", overrides: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{str(self.path)!r}: no such file")
        try:
            self.session = onnx_file.session(str(self.path), device)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        self.metadata = metadata.from_texts(self.session.get_modelmeta().custom_metadata_map, self.path)
        if self.metadata["outputs"] == "raw":
            raise ValueError(f"{self.path} gives raw logits, which are not decoded here: export it without --raw")
        for key in overrides or {}:
            if not key.startswith(("data.", "test.")):
                raise ValueError(f"{key}: the network of {self.path} is fixed; only data.* and test.* can be set")
            if key.startswith("test.tta"):
                raise ValueError(f"{key}: an exported file sees each image once; views need the weights themselves")
        exported = {
            f"test.{name}": self.metadata[name] for name in ("pre_topk", "score_thr", "iou_thr", "max_detections")
        }
        config = load_config(self.metadata["config"], exported)
        if config.test.tta.active:
            text = "%s sees each image once: test.tta of the model that it was exported from is not used"
            say_once(f"views of {self.path}", text % self.path)
            config.test.tta = TTAConfig()
        self.config = load_config(config, overrides)
        self.class_names = list(self.metadata["names"])
        self.category_ids = list(self.metadata["category_ids"])
        shape = self.session.get_inputs()[0].shape
        self._shape = [n if isinstance(n, int) else None for n in shape]
        self.eval()

    def detect(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        scale_factors: Tensor | Sequence[tuple[float, float]] | None = None,
        **options: Any,
    ) -> list[Detections]:
        """Detections of each image, best first; arguments as ``SingleStageDetector.detect``.

        A file of one batch size gets the images in parts of it, one of a fixed size gets smaller images padded.

        Raises:
            ValueError: images that a file of fixed size cannot take, or options that are constants of the file.
        """
        if options.pop("return_distributions", False):
            bad_value("return_distributions", "False, since an exported file gives none", True)
        limits = self.config.test.options(**options)
        self._check(limits)
        count, with_nms = len(images), self.metadata["outputs"] == "nms"
        if with_nms and image_sizes is None:
            bad_value("image_sizes", f"a size for each image, since {self.path} clips boxes before its NMS", None)
        clip = image_sizes is not None
        sizes = torch.as_tensor(image_sizes, dtype=torch.float32) if clip else torch.zeros(count, 2)
        images = self._padded(images)
        parts = [self._run(images[i : i + n], sizes[i : i + n], with_nms) for i, n in self._parts(count)]
        outputs = [torch.cat(values)[:count] for values in zip(*parts, strict=True)]
        boxes, scores = outputs[:2]
        boxes = to_original(boxes, sizes if clip and not with_nms else None, scale_factors)
        if with_nms:
            return [self._cut(*image, limits) for image in zip(boxes, *outputs[1:], strict=True)]
        scores = torch.where(scores > limits["score_thr"], scores, 0.0)
        rows = torch.arange(boxes.shape[1]).expand(boxes.shape[:2])
        decoded = Decoded(boxes, scores, rows, (scores > 0).any(-1).sum(1))
        return batched_nms(decoded, iou_thr=limits["iou_thr"], max_detections=limits["max_detections"])

    def _check(self, limits: dict[str, Any]) -> None:
        """Refuse what the file has as a constant."""
        fixed = self.metadata
        if limits["pre_topk"] != fixed["pre_topk"]:
            bad_value("pre_topk", f"{fixed['pre_topk']}, a constant of {self.path}", limits["pre_topk"])
        if fixed["outputs"] != "nms":
            return
        if limits["iou_thr"] != fixed["iou_thr"]:
            bad_value("iou_thr", f"{fixed['iou_thr']}, a constant of {self.path}", limits["iou_thr"])
        if limits["score_thr"] < fixed["score_thr"]:
            bad_value("score_thr", f"at least {fixed['score_thr']}, a constant of {self.path}", limits["score_thr"])
        if limits["max_detections"] > fixed["max_detections"]:
            most = fixed["max_detections"]
            bad_value("max_detections", f"at most {most}, a constant of {self.path}", limits["max_detections"])

    def _padded(self, images: Tensor) -> Tensor:
        _, _, want_height, want_width = self._shape
        height, width = images.shape[2:]
        if want_height is None:
            step = self.metadata["size_multiple"]
            want_height, want_width = (-(-side // step) * step for side in (height, width))
        if height > want_height or width > want_width:
            raise ValueError(
                f"{self.path} takes images of {want_height}×{want_width} (H×W), but the resized and padded image has "
                f"{height}×{width}: export it with --dynamic-size, or set data.long_side and data.test_short_side"
            )
        if want_height > height or want_width > width:
            text = (
                "%s takes %d×%d, so images of %d×%d are padded; normalisation layers see that, which may cost accuracy"
            )
            say_once(f"padded for {self.path}", text % (self.path, want_height, want_width, height, width))
        return nn.functional.pad(images, (0, want_width - width, 0, want_height - height))

    def _parts(self, count: int) -> list[tuple[int, int]]:
        size = self._shape[0] or count
        return [(start, size) for start in range(0, count, size)]

    def _run(self, images: Tensor, sizes: Tensor, with_nms: bool) -> list[Tensor]:
        missing = (self._shape[0] or len(images)) - len(images)
        if missing:  # the last part of a batch; its further results are cut off by the caller
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
            sizes = torch.cat([sizes, sizes.new_ones(missing, 2)])
        more = {"image_sizes": sizes} if with_nms else {}
        return onnx_file.run(self.session, images=images, **more)

    def _cut(self, boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor, limits: dict[str, Any]) -> Detections:
        """The detections of one image among the rows that the file always gives."""
        count = min(int(count), limits["max_detections"], int((scores > limits["score_thr"]).sum()))
        rows = torch.arange(count)
        return Detections(boxes[:count], scores[:count], labels[:count], rows, rows)
