"""Memory that shows what a kernel wrote: full of NaN before, and with watched bytes on both sides."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

GUARD = 0x5A


def guarded(like: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A tensor shaped and strided like another, full of NaN (integers: −1), and the `GUARD` bytes around it."""
    margin = 256
    size = like.untyped_storage().nbytes()
    memory = torch.full((margin + size + margin,), GUARD, dtype=torch.uint8, device=like.device)
    inner = memory[margin : margin + size].view(like.dtype).fill_(float("nan") if like.is_floating_point() else -1)
    tensor = inner.as_strided(like.shape, like.stride(), inner.storage_offset() + like.storage_offset())
    return tensor, [memory[:margin], memory[margin + size :]]


def assert_untouched(*margins: list[Tensor]) -> None:
    """The watched bytes beside outputs that `guarded` made are as they were."""
    for guards in margins:
        assert all(bool((part == GUARD).all()) for part in guards), "bytes beside an output were overwritten"


def assert_written(outputs: Iterable[tuple[Tensor, list[Tensor]]], expected: Iterable[Tensor]) -> None:
    """Outputs that `guarded` made hold what is expected, bit for bit, and nothing beside them was touched."""
    for (tensor, guards), want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(tensor, want, rtol=0, atol=0)
        assert_untouched(guards)
