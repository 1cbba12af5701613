"""Losses whose gradient is formed together with their value: on a CPU, in float32 and float64.

Backward elsewhere recomputes what forward knew: a GPU waits for memory, not for arithmetic, and a 16-bit gradient must
not be rounded before the upstream gradient has scaled it. On a CPU the arithmetic is what takes the time, and one pass
for both is little longer than backward's alone. The gradient, for an upstream gradient of 1, waits with the graph; the
first backward takes it, and scales it where it must. One over a retained graph computes it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("gflv2", "FRAGMENT")
_library.define("scale_(Tensor(a!)[] tensors, Tensor factor) -> ()")
_scale = torch.ops.gflv2.scale_.default


def one_pass(backend: str, reduction: str, *differentiated: Tensor | None) -> bool:
    """Whether a loss of these tensors is better computed together with its gradient.

    Args:
        reduction: "none" has an upstream gradient for each row, for which nothing can be prepared.
        differentiated: the tensors that may get gradients, or None. All of one dtype: a gradient is rounded once.
    """
    if backend != "cpu" or reduction == "none" or torch.compiler.is_compiling():
        return False
    dtypes = {tensor.dtype for tensor in differentiated if tensor is not None}
    return dtypes in ({torch.float32}, {torch.float64})


def prepared(ctx: Any, upstream: Tensor, again: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The gradients times the upstream gradient, in a backward that calls this alone.

    Args:
        ctx: of an autograd.Function; ``ctx.prepared`` holds the gradients for an upstream gradient of 1.
        upstream: ().
        again: computes them once more.
    """
    found, ctx.prepared = ctx.prepared, None
    if found is None:
        found = again()
    _scale(found, upstream)
    return found


def _scale_on_cpu(tensors: list[Tensor], factor: Tensor) -> None:
    if float(factor) != 1.0:  # what a loss that is only added to others gets
        torch._foreach_mul_(tensors, factor)


_library.impl("scale_", _scale_on_cpu, "CPU")


@torch.library.register_fake("gflv2::scale_", lib=_library)
def _(tensors: list[Tensor], factor: Tensor) -> None:
    return None
