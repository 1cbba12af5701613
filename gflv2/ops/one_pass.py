"""Losses whose gradient is formed together with their value: on a CPU, in float32 and float64.

Elsewhere backward recomputes what forward knew: a GPU waits for memory, not for arithmetic, and a 16-bit gradient must
not be rounded before the upstream gradient has scaled it. A CPU spends its time on the arithmetic, and one pass for
both takes little longer than backward alone. The gradient, for an upstream gradient of 1, is kept with the graph. The
first backward pass takes it, and scales it where it must. A pass over a retained graph computes it anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gflv2.ops import observed


def one_pass(backend: str, reduction: str, *differentiated: Tensor | None) -> bool:
    """Whether a loss of these tensors is better computed together with its gradient.

    Args:
        reduction: "none" has an upstream gradient for each row, for which nothing can be prepared.
        differentiated: the tensors that may get gradients, or None. All of one dtype.
    """
    if backend != "cpu" or reduction == "none":
        return False
    given = [tensor for tensor in differentiated if tensor is not None]
    if not observed.ordinary(given) or given[0].dtype not in (torch.float32, torch.float64):
        return False
    if any(tensor.dtype != given[0].dtype for tensor in given):
        return False
    # Such a hook sees every tensor that is kept for backward. Activation checkpointing sets one to keep less memory,
    # and a gradient that waits with the graph would be the opposite.
    return not observed.saving_is_observed()
