"""Gradient accumulation: the losses of a batch that goes through the network in parts, one after the other.

Each part is computed without keeping what its gradient needs, and once more in the backward pass, as activation
checkpointing does: one part's activations are in memory at a time. The sums that divide the losses are those of the
whole batch, as they are over several devices, so the gradient is that of the whole batch. (The mean over the losses of
the parts would not be: a part with few objects would count as much as one with many.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

_Part = TypeVar("_Part")


def slices(length: int, parts: int) -> list[slice]:
    """So many parts of a batch, or one for each image; their lengths differ by at most one."""
    ends = [length * number // parts for number in range(parts + 1)]
    return [slice(first, end) for first, end in zip(ends, ends[1:], strict=False) if end > first]


def recomputed(function: Callable[[slice], _Part], parts: Sequence[slice], model: nn.Module) -> list[_Part]:
    """``function`` of each part; its activations are computed again when gradients need them.

    Args:
        model: whose BatchNorm layers must not count a part twice.
    """

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _statistics_held(model)

    return [checkpoint(function, part, use_reentrant=False, context_fn=contexts) for part in parts]


@contextlib.contextmanager
def _statistics_held(model: nn.Module) -> Iterator[None]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    held = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms if norm.track_running_stats]
    for norm, _, count in held:
        norm.momentum, norm.num_batches_tracked = 0.0, count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in held:
            norm.momentum, norm.num_batches_tracked = momentum, count
