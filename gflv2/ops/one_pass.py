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


def one_pass(backend: str, reduction: str, *differentiated: Tensor | None) -> bool:
    """Whether a loss of these tensors is better computed together with its gradient.

    Args:
        reduction: "none" has an upstream gradient for each row, for which nothing can be prepared.
        differentiated: the tensors that may get gradients, or None. All of one dtype.
    """
    given = [tensor for tensor in differentiated if tensor is not None]
    if backend != "cpu" or reduction == "none" or not ordinary(*given):
        return False
    if {tensor.dtype for tensor in given} not in ({torch.float32}, {torch.float64}):
        return False
    # Who asks to see what is saved (activation checkpointing, above all) means to keep less of it.
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def prepared(ctx: Any, upstream: Tensor, again: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The gradients times the upstream gradient, for a backward whose forward left them.

    Args:
        ctx: of an autograd.Function; ``ctx.prepared`` holds the gradients for an upstream gradient of 1.
        upstream: (), and `ordinary`: what is traced here would run more than once.
        again: computes them once more.
    """
    found = ctx.__dict__.pop("prepared", None)
    if found is None:
        found = again()
    if float(upstream) != 1.0:  # what a loss that is only added to others gets
        for gradient in found:
            gradient.mul_(upstream)
    return found


def ordinary(*tensors: Tensor) -> bool:
    """Plain tensors in eager code: neither a compiler nor a mode or a transform is looking on."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    plain = (Tensor, torch.nn.Parameter)
    return all(type(tensor) in plain and not torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)
