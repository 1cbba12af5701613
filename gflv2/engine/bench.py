"""How fast a detector is on this machine: from images to detections, decoding and NMS included."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gflv2.models.detector import SingleStageDetector
from gflv2.ops.checks import bad_value, check_choice

_PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
_WARM_UP = 3  # calls that are not counted
_LEAST = 5  # calls that are


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        config: name of the configuration.
        device: the GPU's name, or "cpu" and the number of threads.
        precision: "32", "bf16" or "16".
        batch_size, image_size: images of a call, and their (height, width) as the network sees them.
        parameters, trained: number of parameters, and of those among them that training changes.
        latency: median seconds of a call, from normalised images on the device to detections.
        latency_95: 95 % of the calls took no longer.
        network: median seconds of the network alone, without decoding and NMS.
        images_per_second: batch_size / latency.
        calls: how many were counted.
        detections: in the images of one call.
    """

    config: str
    device: str
    precision: str
    batch_size: int
    image_size: tuple[int, int]
    parameters: int
    trained: int
    latency: float
    latency_95: float
    network: float
    images_per_second: float
    calls: int
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    def __str__(self) -> str:
        height, width = self.image_size
        images = "1 image" if self.batch_size == 1 else f"{self.batch_size} images"
        tail = f"(95 % within {1e3 * self.latency_95:.2f}; {self.calls} calls)"
        lines = [
            f"{self.config} on {self.device}, precision {self.precision}",
            f"parameters      {self.parameters / 1e6:.2f} million, of which {self.trained / 1e6:.2f} train",
            f"input           {images} of {height} × {width}",
            f"latency         {1e3 * self.latency:.2f} ms {tail}",
            f"  network       {1e3 * self.network:.2f} ms",
            f"  decode, NMS   {1e3 * max(self.latency - self.network, 0):.2f} ms, {self.detections} detections",
            f"images/second   {self.images_per_second:.2f}",
        ]
        return "\n".join(lines)


def bench(
    model: SingleStageDetector,
    *,
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    precision: str = "32",
    channels_last: bool = False,
    seconds: float = 5.0,
) -> BenchResult:
    """Measure a detector on images of noise.

    Args:
        model: a ``GFLV2``; it is put into evaluation mode. With random weights it finds next to nothing, so that NMS
            costs next to nothing.
        batch_size: images of a call.
        image_size: (height, width), rounded up to the configuration's padding; None: its test size, in landscape.
        device: where to run, and where the model stays; None: where it is.
        precision: "32", or "bf16" or "16" with autocast.
        channels_last: memory layout of images and weights.
        seconds: how long to measure, at least; and five calls at least.

    Raises:
        ValueError: a size, precision or time that makes no sense.
    """
    check_choice(precision, "precision", tuple(_PRECISIONS))
    if batch_size < 1:
        bad_value("batch_size", "at least 1", batch_size)
    if image_size is not None and min(image_size) < 1:
        bad_value("image_size", "positive (height, width)", image_size)
    if seconds < 0:
        bad_value("seconds", "a number ≥ 0", seconds)
    device = next(model.parameters()).device if device is None else torch.device(device)
    model = model.to(device).eval()
    data = model.config.data
    height, width = (_padded(side, data.pad_divisor) for side in image_size or (data.test_short_side, data.long_side))
    images = torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    if channels_last:
        model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))

    dtype = _PRECISIONS[precision]
    sizes = [(height, width)] * batch_size
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        whole = _times(lambda: model.detect(images, sizes), seconds, images)
        network = _times(lambda: model(images), seconds / 2, images)
        found = sum(len(image.scores) for image in model.detect(images, sizes))
    latency = statistics.median(whole)
    return BenchResult(
        config=model.config.name,
        device=_name(device),
        precision=precision,
        batch_size=batch_size,
        image_size=(height, width),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        latency=latency,
        latency_95=sorted(whole)[math.ceil(0.95 * len(whole)) - 1],
        network=statistics.median(network),
        images_per_second=batch_size / latency,
        calls=len(whole),
        detections=found,
    )


def _padded(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _times(call: Callable[[], Any], seconds: float, images: Tensor) -> list[float]:
    """Seconds of single calls, each to its end on the device."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start

    for _ in range(_WARM_UP):
        once()
    times = []
    while len(times) < _LEAST or sum(times) < seconds:
        times.append(once())
    return times
