"""CUDA kernels that may have a stack frame or spill registers, and why.

Kernels for the constants (R = 17 or 33, k ≤ 8) have neither. A generic one may, where it is listed here: for a source,
expressions that are searched for in the mangled names of its kernels, each with the reason. An expression that finds
no kernel is an error.
"""

from __future__ import annotations

_MANY_RANKS = (
    "k > 8: up to 65 ranks, whose numbers are known at run time only, are more than a thread has registers for"
)

ALLOWED: dict[str, list[tuple[str, str]]] = {
    "dgqp.cu": [(r"dgqp_(forward|backward)_kernelI.+Li0ELi0ELb0E", _MANY_RANKS)],
    "gfl_loss.cu": [(r"dgqp_backward_kernelI.+Li0ELi0ELb0E", _MANY_RANKS)],
}
