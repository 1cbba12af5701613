"""One image with its boxes, and a batch of them as the detector takes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]  # (height, width) in pixels


@dataclass
class Sample:
    """One image, resized and normalised but not padded, with its boxes in pixels of the resized image."""

    image: Tensor  # (3, h, w) float32
    boxes: Tensor  # (G, 4) float32, x1 y1 x2 y2
    labels: Tensor  # (G,) int64
    ignore_boxes: Tensor  # (K, 4) float32: crowds, which are no targets
    image_id: Any
    original_size: Size
    scale_factor: tuple[float, float]  # (resized width / original width, the same of heights)
    instead_of: tuple[str, ...] = ()  # why images could not be decoded whose place this one takes


@dataclass
class Batch:
    """Images padded to one size with zeros (the mean colour, since they are normalised), right and bottom only.

    Box coordinates are pixels of the resized image; divide them by ``scale_factors`` for those of the original.
    """

    images: Tensor  # (B, 3, H, W) float32
    boxes: list[Tensor]  # B × (G, 4) float32, x1 y1 x2 y2
    labels: list[Tensor]  # B × (G,) int64
    image_sizes: list[Size]  # resized, without padding
    padded_sizes: list[Size]  # each image's own padding to the divisor, not the batch's
    original_sizes: list[Size]
    scale_factors: Tensor  # (B, 2) float32: (width, height), resized / original
    image_ids: list[Any]
    ignore_boxes: list[Tensor] | None = None  # B × (K, 4), or None where no image of the batch has any
    instead_of: tuple[str, ...] = ()  # of all samples

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the data loader)."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> Batch:
        packed = self.__getstate__()
        for name, value in packed.items():
            if isinstance(value, Tensor):
                packed[name] = function(value)
        moved = replace(self)
        moved.__setstate__(packed)
        return moved

    # A worker process sends every tensor through one shared-memory file. Fifty small tensors per batch are slow and run
    # into the limit of open files, so the ragged lists travel, and go to the device, as one tensor each.
    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, width in (("boxes", 4), ("labels", None), ("ignore_boxes", 4)):
            rows = state[name]
            if rows is not None:
                state[name + "_counts"] = [len(row) for row in rows]
                empty = torch.zeros((0, width) if width else (0,), dtype=torch.float32 if width else torch.int64)
                state[name] = torch.cat(rows) if rows else empty
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            value = state[field.name]
            counts = state.get(field.name + "_counts")
            setattr(self, field.name, value if counts is None else list(value.split(counts)))


def collate(samples: Sequence[Sample], divisor: int = 32) -> Batch:
    """Pad images to a multiple of ``divisor`` and to the largest of the batch, and gather their boxes.

    Args:
        samples: at least one.
        divisor: each image's padded size is the next multiple of it; so is the batch's.
    """
    if len(samples) == 0:
        raise ValueError("samples: expected at least one sample, got none")
    image_sizes = [tuple(sample.image.shape[-2:]) for sample in samples]
    padded_sizes = [tuple(math.ceil(side / divisor) * divisor for side in size) for size in image_sizes]
    height, width = (max(sides) for sides in zip(*padded_sizes, strict=True))
    images = samples[0].image.new_zeros((len(samples), 3, height, width))
    for padded, sample, (h, w) in zip(images, samples, image_sizes, strict=True):
        padded[:, :h, :w] = sample.image
    has_ignored = any(len(sample.ignore_boxes) for sample in samples)
    return Batch(
        images=images,
        boxes=[sample.boxes for sample in samples],
        labels=[sample.labels for sample in samples],
        image_sizes=image_sizes,
        padded_sizes=padded_sizes,
        original_sizes=[sample.original_size for sample in samples],
        scale_factors=torch.tensor([sample.scale_factor for sample in samples], dtype=torch.float32),
        image_ids=[sample.image_id for sample in samples],
        ignore_boxes=[sample.ignore_boxes for sample in samples] if has_ignored else None,
        instead_of=tuple(reason for sample in samples for reason in sample.instead_of),
    )
