"""How far a kernel may be from the definition: the one table that every parity test reads.

The exact answer is the reference in float64 on the same rounded inputs. A result may be off by

    EAGER_FACTOR × the largest error of the eager float32 reference
    + one rounding of the result's dtype
    + FLOOR × the magnitude of the terms that it sums (the eager error can be zero by luck, and a sum can cancel).
"""

from __future__ import annotations

import torch

EAGER_FACTOR = 2.0

# A few units in the last place of the precision of computation: exp and the order of the sums differ.
FLOOR = {
    "integral": 4 * torch.finfo(torch.float32).eps,
    "integral in float64": 64 * torch.finfo(torch.float64).eps,
    "dgqp": 8 * torch.finfo(torch.float32).eps,
    "dgqp in float64": 64 * torch.finfo(torch.float64).eps,
    "qfl": 8 * torch.finfo(torch.float32).eps,  # a power is the exponential of a product
    "qfl in float64": 64 * torch.finfo(torch.float64).eps,
    "focal": 8 * torch.finfo(torch.float32).eps,  # as for qfl
    "focal in float64": 64 * torch.finfo(torch.float64).eps,
    "dfl": 4 * torch.finfo(torch.float32).eps,
    "dfl in float64": 64 * torch.finfo(torch.float64).eps,
    "distribution_kl": 4 * torch.finfo(torch.float32).eps,
    "distribution_kl in float64": 64 * torch.finfo(torch.float64).eps,
    "giou": 4 * torch.finfo(torch.float32).eps,
    "giou in float64": 64 * torch.finfo(torch.float64).eps,
    "ciou": 4 * torch.finfo(torch.float32).eps,
    "ciou in float64": 64 * torch.finfo(torch.float64).eps,
    "gfl_targets": 4 * torch.finfo(torch.float32).eps,
    "gfl_targets in float64": 64 * torch.finfo(torch.float64).eps,
    "gfl_loss": 8 * torch.finfo(torch.float32).eps,
    "gfl_loss in float64": 64 * torch.finfo(torch.float64).eps,
    "decode": 4 * torch.finfo(torch.float32).eps,
    "decode in float64": 64 * torch.finfo(torch.float64).eps,
}


def rounding(dtype: torch.dtype, *, interpreted: bool) -> tuple[float, float]:
    """(relative, absolute) error of one rounding to ``dtype``; the absolute part is for subnormal results.

    Args:
        interpreted: the result comes from Triton's interpreter, which truncates a bfloat16 store, where a GPU rounds.
    """
    info = torch.finfo(dtype)
    ulps = 1.0 if interpreted and dtype == torch.bfloat16 else 0.5
    return ulps * info.eps, ulps * info.smallest_normal * info.eps
