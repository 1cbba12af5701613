"""The transforms of the recipes, on torchvision's v2 transforms: resize, flip, normalise (padding: ``batch.collate``).

Each takes and returns a mapping with ``image`` (a ``tv_tensors.Image``, uint8, RGB), ``boxes``
(``tv_tensors.BoundingBoxes``, x1 y1 x2 y2) and ``labels``. All randomness is drawn from torch's CPU generator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from gflv2.config import DataConfig
from gflv2.data.batch import Sample, Size


def resized_size(height: int, width: int, long_side: int, short_side: int) -> Size:
    """(height, width) of an image scaled to fit: longer side ≤ ``long_side``, shorter side ≤ ``short_side``.

    The factor is k = min(long_side / max(h, w), short_side / min(h, w)), each side int(side · k + 0.5), as the authors
    round it. torchvision's ``Resize(short_side, max_size=long_side)`` gives another size for most images.
    """
    k = min(long_side / max(height, width), short_side / min(height, width))
    return max(int(height * k + 0.5), 1), max(int(width * k + 0.5), 1)


class KeepRatioResize(v2.Transform):
    """Resize to ``resized_size``; boxes are scaled per axis and clipped to the new image.

    Args:
        long_side: limit of the longer side.
        short_side: (least, greatest) limit of the shorter side; a uniform integer between both, inclusive, per image.
    """

    def __init__(self, long_side: int, short_side: tuple[int, int]) -> None:
        super().__init__()
        least, greatest = short_side
        if not 1 <= least <= greatest <= long_side:
            raise ValueError(
                "short_side: expected 1 ≤ least ≤ greatest ≤ long_side, "
                f"got short_side {tuple(short_side)} and long_side {long_side}"
            )
        self.long_side = long_side
        self.short_side = (least, greatest)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(next(item for item in flat_inputs if isinstance(item, tv_tensors.Image)))
        least, greatest = self.short_side
        short_side = int(torch.randint(least, greatest + 1, ()))
        return {"size": resized_size(height, width, self.long_side, short_side)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        # Without antialiasing, on uint8: what the detectors of the paper were trained on.
        resized = self._call_kernel(
            F.resize, inpt, list(params["size"]), interpolation=InterpolationMode.BILINEAR, antialias=False
        )
        if isinstance(resized, tv_tensors.BoundingBoxes):
            resized = F.clamp_bounding_boxes(resized)
        return resized


def training_transforms(config: DataConfig) -> v2.Compose:
    """Resize, flips, normalisation; before them photometric change and IoU crop, off in the official recipes."""
    if len(config.short_side) != 2:
        raise ValueError(f"short_side: expected two integers, the least and the greatest, got {config.short_side!r}")
    steps: list[v2.Transform] = []
    if config.photometric > 0:
        steps.append(v2.RandomApply([v2.RandomPhotometricDistort()], p=config.photometric))
    if config.random_crop > 0:
        # Sanitizing drops the boxes that left the crop, and would also drop those that reach over the image's edge.
        crop = [v2.ClampBoundingBoxes(), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()]
        steps.append(v2.RandomApply(crop, p=config.random_crop))
    steps.append(KeepRatioResize(config.long_side, (config.short_side[0], config.short_side[1])))
    if config.flip > 0:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    if config.vertical_flip > 0:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    return v2.Compose([*steps, *_normalise(config)])


def at_scale(config: DataConfig, factor: float) -> DataConfig:
    """The settings with the image size of evaluation times a factor."""
    sides = {name: max(round(factor * getattr(config, name)), 1) for name in ("long_side", "test_short_side")}
    return replace(config, **sides)


def evaluation_transforms(config: DataConfig) -> v2.Compose:
    """Resize to ``config.test_short_side`` and normalisation."""
    resize = KeepRatioResize(config.long_side, (config.test_short_side, config.test_short_side))
    return v2.Compose([resize, *_normalise(config)])


def _normalise(config: DataConfig) -> list[v2.Transform]:
    if len(config.mean) != 3 or len(config.std) != 3 or min(config.std) <= 0:
        raise ValueError(f"mean, std: expected three values each, std > 0, got {config.mean!r} and {config.std!r}")
    return [v2.ToDtype(torch.float32, scale=False), v2.Normalize(list(config.mean), list(config.std))]


IGNORED = -1  # the label of crowd boxes while they pass through the transforms together with the targets


def apply(
    transforms: v2.Transform,
    image: Tensor,
    boxes: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    image_id: Any = None,
    original_size: Size | None = None,
) -> Sample:
    """Run ``transforms`` on one image.

    Args:
        transforms: of ``training_transforms`` or ``evaluation_transforms``.
        image: (3, H, W) uint8 RGB.
        boxes: (G, 4) x1 y1 x2 y2 in pixels of ``image``.
        labels: (G,); ``IGNORED`` (−1) marks boxes that become ``Sample.ignore_boxes``.
        original_size: (height, width) of the image's file; None: that of ``image``.
    """
    size = (int(image.shape[-2]), int(image.shape[-1]))
    original_size = size if original_size is None else original_size
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    out = transforms(
        {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.as_tensor(labels, dtype=torch.int64).reshape(-1),
        }
    )
    image, boxes = (out[name].as_subclass(torch.Tensor) for name in ("image", "boxes"))
    labels = out["labels"]
    target = labels != IGNORED
    height, width = image.shape[-2:]
    return Sample(
        image=image,
        boxes=boxes[target],
        labels=labels[target],
        ignore_boxes=boxes[~target],
        image_id=image_id,
        original_size=original_size,
        scale_factor=(width / original_size[1], height / original_size[0]),
    )


def preprocess(image: Tensor, config: DataConfig, image_id: Any = None) -> Sample:
    """One image (3, H, W), uint8 RGB, as evaluation and prediction see it; ``batch.collate`` makes a batch of such."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(
            f"image: expected a uint8 tensor of shape (3, H, W), got {image.dtype} of shape {tuple(image.shape)}"
        )
    return apply(evaluation_transforms(config), image, torch.zeros((0, 4)), torch.zeros((0,)), image_id)
