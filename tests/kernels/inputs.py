"""Inputs that the launches and the tests of the kernels share, and the names of what was launched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from gflv2.kernels.variants import Variant

SIZES = [(size, size + 1) for size in (20, 10, 5, 3, 2)]
POINTS = sum(height * width for height, width in SIZES)
STRIDES = [8.0, 16.0, 32.0, 64.0, 128.0]


def pyramid(
    channels: int,
    dtype: torch.dtype,
    *,
    last: bool = False,
    batch: int = 2,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> list[torch.Tensor]:
    """Levels (B, channels, H_l, W_l); ``last``: channels_last. Their values do not matter: nothing is launched."""
    form = torch.channels_last if last else torch.contiguous_format
    return [torch.empty(batch, channels, *size, dtype=dtype).to(memory_format=form) for size in sizes]


def fifty_sizes() -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """A number, a batch and the sizes of five levels: 1, multiples of 16 and odd ones are among them."""
    for index in range(50):
        height, width = 129 + 32 * index + index % 3, 161 + 13 * index
        yield index, 1 + index % 5, [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]


def names(found: Iterable[Variant]) -> list[str]:
    """Of the kernels, without their modules."""
    return [variant.kernel.rsplit(".", 1)[-1] for variant in found]
