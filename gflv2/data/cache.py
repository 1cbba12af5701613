"""Decoded images in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

MOST_MEMORY = 0.5  # share of the free memory that may be taken


class ImageCache:
    """Images (3, H, W) uint8, decoded once, in the process that makes the loaders; workers that it forks share them.

    An image that cannot be decoded is tried again when it is asked for, and raises then.

    Args:
        decode: image of an item.
        length: number of items.
        name: of the data set, for messages.

    Raises:
        ValueError: the images would take more than half of the free memory.
    """

    def __init__(self, decode: Callable[[int], Tensor], length: int, name: str) -> None:
        self._decode = decode
        # A worker touches, and so copies, the small object of an image, but not its pixels.
        self._images: list[Tensor | None] = []
        free, taken = free_memory(), 0
        with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as pool:
            for image in pool.map(partial(_or_none, decode), range(length)):
                self._images.append(image)
                taken += image.numel() if image is not None else 0
                if free is not None and taken > MOST_MEMORY * free:
                    pool.shutdown(cancel_futures=True)
                    raise ValueError(
                        f"data.cache_images: {len(self._images)} of {length} images of {name} take "
                        f"{taken / 1e9:.1f} GB already, more than half of the {free / 1e9:.1f} GB that are free"
                    )
        _log.info("%s: %d images in memory, %.0f MB", name, length, taken / 1e6)

    def __getitem__(self, item: int) -> Tensor:
        image = self._images[item]
        # A copy: a transform may write into what it gets.
        return self._decode(item) if image is None else image.clone()


def _or_none(decode: Callable[[int], Tensor], item: int) -> Tensor | None:
    try:
        return decode(item)
    except (OSError, ValueError):
        return None


def free_memory() -> int | None:
    """Bytes that this process may still take, of the machine and of its container; None where nobody tells."""
    limits = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        most, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        limits.append(max(most - now, 0))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    return min(limits, default=None)
