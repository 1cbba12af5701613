"""A logarithm that is as exact near 1 as far from it. (Triton's own is off by 1e-7 there, whatever the result.)"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_ROOT = tl.constexpr(0x3F3504F3)  # the bits of √½


@triton.jit
def minus_log(value, complement):
    """−log(value) for a normal positive number. ``complement`` is 1 − value and serves where value lies near 1.

    log(1 + f) for √½ − 1 ≤ f ≤ √2 − 1 is f + f²·p(f), with the polynomial of degree 7 that minimises the largest
    relative error (3e-8).
    """
    above = value.to(tl.int32, bitcast=True) - HALF_ROOT
    n = above >> 23  # value = 2^n·m with √½ ≤ m < √2
    m = ((above & 0x7FFFFF) + HALF_ROOT).to(tl.float32, bitcast=True)
    f = tl.where(n == 0, -complement, m - 1.0)
    p = f * 8.734750748e-2 - 1.430748254e-1
    p = p * f + 1.491798908e-1
    p = p * f - 1.657051444e-1
    p = p * f + 1.996207088e-1
    p = p * f - 2.500175536e-1
    p = p * f + 3.333395123e-1
    p = p * f - 4.999999106e-1
    return -(n.to(tl.float32) * 6.931471806e-1 + (f * f * p + f))
