"""Inference with static shapes: network and `decode` as one CUDA graph, then the NMS as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.engine.cuda_graph.replay import Replay, Weights, check_autocast, check_shape, half_precision, to_device
from gflv2.models.detector import SingleStageDetector
from gflv2.ops import Decoded, Detections, batched_nms
from gflv2.ops.checks import bad_value, check_count, check_pairs, check_tensor


class CapturedInference:
    """``detect`` of a model for images of one shape.

    Up to `decode` every size is fixed, so that part is a graph; how many boxes survive the NMS is not, so the NMS runs
    as it is, and waits for the device.

    Args:
        model: in eval mode. Its weights may change in place later (``load_state_dict``), not move.
        shape: (B, 3, H, W) of the images.
        pre_topk, score_thr, iou_thr, max_detections: as ``model.detect``; None: ``model.config.test``. Fixed.
        return_distributions: as ``model.detect``. Fixed.
        autocast: None, ``torch.bfloat16`` or ``torch.float16``: what the network runs in.
        warmup: calls before the recording.
        graph: None: a CUDA graph on a GPU, on a CPU the same code without one. False: never one.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        model: SingleStageDetector,
        shape: Sequence[int],
        *,
        pre_topk: int | None = None,
        score_thr: float | None = None,
        iou_thr: float | None = None,
        max_detections: int | None = None,
        return_distributions: bool = False,
        autocast: torch.dtype | None = None,
        warmup: int = 3,
        graph: bool | None = None,
    ) -> None:
        if model.training:
            bad_value("model", "a model in eval mode: call model.eval()", "one in training mode")
        chosen = model.config.test.options(
            pre_topk=pre_topk, score_thr=score_thr, iou_thr=iou_thr, max_detections=max_detections
        )
        self._nms = {name: chosen.pop(name) for name in ("iou_thr", "max_detections")}
        self._decode = {**chosen, "return_distributions": return_distributions}
        self._model, self._autocast, self._weights = model, autocast, Weights(model)

        weight = next(model.parameters())
        batch, _, height, width = check_shape(shape)
        check_autocast(autocast, weight.device)
        check_count(warmup, "warmup")
        kind = {"device": weight.device, "dtype": torch.float32}
        with torch.inference_mode(False):  # a buffer made in it could be written in it alone
            self._images = torch.zeros(tuple(shape), dtype=weight.dtype, device=weight.device)
            self._sizes = to_device([[float(height), float(width)]] * batch, torch.float32, weight.device)
            self._whole = self._sizes.clone()
            self._factors, self._ones = torch.ones(batch, 2, **kind), torch.ones(batch, 2, **kind)
        self._replay = Replay(self._run, weight.device, graph=graph)
        self._replay.warm_up(warmup)
        self._replay.record()

    def __call__(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        scale_factors: Tensor | Sequence[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """Detections of each image, best first.

        Args:
            images: of the shape, dtype and device of the capture.
            image_sizes: (height, width) of each resized, unpadded image, to which boxes are clipped; None: (H, W).
            scale_factors: (B, 2) resized / original (width, height), by which boxes are divided; None: no change.
        """
        return batched_nms(self.decode(images, image_sizes, scale_factors), **self._nms)

    def decode(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        scale_factors: Tensor | Sequence[tuple[float, float]] | None = None,
    ) -> Decoded:
        """The candidates before NMS, without waiting for the device; of a graph, overwritten by the next call."""
        self.copy_in(images, image_sizes, scale_factors)
        return self.run()

    @torch.no_grad()
    def copy_in(self, images: Any, image_sizes: Any = None, scale_factors: Any = None) -> None:
        """Check the arguments of a call and copy them into the buffers."""
        self._weights.check()
        static = self._images
        check_tensor(images, "images", shape=tuple(static.shape), dtypes=(static.dtype,), device=static.device)
        sizes = self._pairs(image_sizes, "image_sizes", self._whole)
        factors = self._pairs(scale_factors, "scale_factors", self._ones)
        static.copy_(images)
        self._sizes.copy_(sizes)
        self._factors.copy_(factors)

    def run(self) -> Decoded:
        """Replay, or call, the network and `decode` on what the buffers hold."""
        return self._replay()

    @torch.no_grad()
    def _run(self) -> Decoded:
        with half_precision(self._autocast, self._images.device):
            output = self._model(self._images)
            return self._model.bbox_head.decode(output, self._sizes, self._factors, **self._decode)

    def _pairs(self, value: Any, name: str, default: Tensor) -> Tensor:
        """(B, 2) numbers, on the device."""
        if value is None:
            return default
        if isinstance(value, Tensor):
            dtypes = (torch.float32, torch.float64, torch.int32, torch.int64)
            return check_tensor(value, name, shape=tuple(default.shape), dtypes=dtypes, device=default.device)
        batch = len(default)
        check_pairs(value, name, f"{batch} pairs of numbers, or a tensor of shape ({batch}, 2)", batch)
        return to_device(value, torch.float32, default.device)
