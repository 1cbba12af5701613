"""What "equal" means where rounding is amplified: a deviation within that of the package from itself.

The package alone, its input changed by one part in ten million, is the measure: what it computes then differs from what
it computed before by as much as any other order of the same sums may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SIZE = 1e-7


def disturbed(value: Tensor, seed: int = 7) -> Tensor:
    """The tensor, every element off by about one part in ten million, up or down."""
    draw = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, value.shape, generator=draw) * 2 - 1
    return value + value.detach().abs() * (SIZE * sign).to(value)


def check(
    ours: Sequence[Tensor],
    wanted: Sequence[Tensor],
    disturbed: Sequence[Tensor],
    *,
    factor: float = 10.0,
    floor: float = 2e-6,
    name: Callable[[int], str] = str,
) -> None:
    """Each of ours is as near to the package's result as ``factor`` times the disturbed package's, at its worst entry.

    Args:
        ours, wanted, disturbed: with our operations, by the package, and by the package on a disturbed input.
        floor: of the largest entry of all: some float32 roundings, for what a disturbed input leaves as it is.
    """
    scale = max(float(one.abs().max()) for one in wanted if one.numel())
    for index, (found, exact, other) in enumerate(zip(ours, wanted, disturbed, strict=True)):
        assert found.shape == exact.shape, name(index)
        if not exact.numel():
            continue
        error, noise = (float((one.float() - exact.float()).abs().max()) for one in (found, other))
        assert error <= factor * noise + floor * scale, f"{name(index)}: off by {error}, the package by {noise}"
