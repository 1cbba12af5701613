"""Losses whose gradient is formed together with their value: on a CPU, in float32 and float64.

Elsewhere backward recomputes what forward knew: a GPU waits for memory, not for arithmetic, and a 16-bit gradient must
not be rounded before the upstream gradient has scaled it. A CPU spends its time on the arithmetic, and one pass for
both takes little longer than backward alone. The gradient, for an upstream gradient of 1, is kept with the graph. The
first backward pass takes it, and scales it where it must. A pass over a retained graph computes it anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops import observed

_DTYPES = (torch.float32, torch.float64)


def one_pass(backend: str, reduction: str, tensors: Sequence[Tensor | None]) -> bool:
    """Whether a loss of these tensors is better computed together with its gradient.

    Args:
        reduction: "none" has an upstream gradient for each row, for which nothing can be prepared.
        tensors: those that may get gradients, or None, in a call that nobody observes (`observed.ordinary`).
    """
    if backend != "cpu" or reduction == "none":
        return False
    known = None
    for tensor in tensors:
        if tensor is not None:
            dtype = tensor.dtype
            if dtype not in _DTYPES or (known is not None and dtype != known):
                return False
            known = dtype
    # Activation checkpointing sets such a hook to keep less memory. A gradient that waits with the graph would be the
    # opposite.
    return not observed.saving_is_observed()
