"""int8 by onnxruntime's static quantisation: the convolutions, but not those that the distributions come from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gflv2.data import CocoDetection
from gflv2.data.batch import collate
from gflv2.engine.export.graph import Sizes
from gflv2.engine.export.onnx_file import need
from gflv2.models.detector import SingleStageDetector

# A bin's logit in 256 steps moves a whole side, a class logit in 256 steps the order of the detections.
LEFT_IN_FLOAT = ("bbox_head.gfl_reg", "bbox_head.gfl_cls", "bbox_head.reg_conf", "bbox_head.atss_")


def quantise(
    proto: Any,
    model: SingleStageDetector,
    data: Any,
    image_dir: Any,
    *,
    images: int,
    sizes: Sizes,
    progress: bool,
) -> tuple[Any, int]:
    """A copy of an ``onnx.ModelProto`` with its convolutions in int8, and how many they are.

    Weights have one scale a channel, activations one a tensor, from their least and greatest values on ``images``
    images of the data set, spread evenly over it. ONNX's QuantizeLinear and DequantizeLinear stand around each
    convolution, which TensorRT and OpenVINO read too.

    Raises:
        ValueError: an image is larger than a file of fixed size takes.
    """
    onnx, _ = need("onnx", "onnxruntime", what="Quantising")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    mine = onnx.ModelProto()
    mine.CopyFrom(proto)  # onnxruntime moves the weights of what it is given into a temporary file
    convolutions = [node for node in mine.graph.node if node.op_type == "Conv"]
    for number, node in enumerate(convolutions):
        node.name = node.name or f"conv_{number}"
    left_out = [node.name for node in convolutions if any(part in node.input[1] for part in LEFT_IN_FLOAT)]
    log = logging.getLogger()
    level, handlers = log.level, log.handlers[:]
    log.setLevel(logging.ERROR)  # it advises a preprocessing that the exporter has done
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                mine,
                str(path),
                _Calibration(model, data, image_dir, images, sizes, progress),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=left_out,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
            return onnx.load(str(path)), len(convolutions) - len(left_out)
    finally:
        log.setLevel(level)
        log.handlers[:] = handlers  # it logs in a way that adds one, which would show all later lines twice


class _Calibration:
    """Images of a data set, one batch a call, as onnxruntime asks for them."""

    def __init__(
        self, model: SingleStageDetector, data: Any, image_dir: Any, images: int, sizes: Sizes, progress: bool
    ) -> None:
        if not isinstance(data, CocoDetection):
            data = CocoDetection(data, image_dir, config=model.config.data, train=False, class_names=model.class_names)
        self._data, self._sizes = data, sizes
        chosen = np.linspace(0, len(data) - 1, min(images, len(data))).astype(int)
        self._batches: Iterator[dict[str, np.ndarray]] = self._read(chosen.tolist(), progress)

    def _read(self, chosen: list[int], progress: bool) -> Iterator[dict[str, np.ndarray]]:
        from tqdm import tqdm

        for index in tqdm(chosen, desc="calibrate", unit="image", disable=not progress):
            images = collate([self._data[index]], self._sizes.step).images
            height, width = self._sizes.height or images.shape[2], self._sizes.width or images.shape[3]
            if images.shape[2] > height or images.shape[3] > width:
                raise ValueError(
                    f"data: {self._data.path(index)} is {images.shape[2]}×{images.shape[3]} after resizing and padding "
                    f"(H×W), more than the file's {height}×{width}; calibrate with images that fit, or dynamic_size"
                )
            images = torch.nn.functional.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
            yield {"images": images.expand(self._sizes.batch or 1, -1, -1, -1).numpy()}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)
