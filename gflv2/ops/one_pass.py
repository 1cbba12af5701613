"""Losses whose gradient is formed together with their value: on a CPU, in float32 and float64.

Elsewhere backward recomputes what forward knew: a GPU waits for memory, not for arithmetic, and a 16-bit gradient must
not be rounded before the upstream gradient has scaled it. A CPU spends its time on the arithmetic, and one pass for
both takes little longer than backward alone. The gradient, for an upstream gradient of 1, is kept with the graph. The
first backward pass takes it, and scales it where it must. A pass over a retained graph computes it anew.

The private functions of torch that this package asks stand here and nowhere else. tests/ops/test_one_pass.py says so
when torch changes them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def one_pass(backend: str, reduction: str, *differentiated: Tensor | None) -> bool:
    """Whether a loss of these tensors is better computed together with its gradient.

    Args:
        reduction: "none" has an upstream gradient for each row, for which nothing can be prepared.
        differentiated: the tensors that may get gradients, or None. All of one dtype.
    """
    if backend != "cpu" or reduction == "none":
        return False
    given = [tensor for tensor in differentiated if tensor is not None]
    if not ordinary(*given) or given[0].dtype not in (torch.float32, torch.float64):
        return False
    if any(tensor.dtype != given[0].dtype for tensor in given):
        return False
    # Such a hook sees every tensor that is kept for backward. Activation checkpointing sets one to keep less memory,
    # and a gradient that waits with the graph would be the opposite.
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def ordinary(*tensors: Tensor) -> bool:
    """Whether these are plain tensors in eager code, which no compiler, mode or transform observes."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    plain = (Tensor, torch.nn.Parameter)
    return all(type(tensor) in plain and not torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)
