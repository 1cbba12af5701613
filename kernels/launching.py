"""How the kernels are compiled and launched: nothing that a call may change is compiled in."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton decides this when a kernel is decorated, that is at this import. The interpreter pays for each operation of a
# program, not for each element: kernels choose large blocks for it.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

# Explicit in every launch: the default differs between versions of Triton.
FUSED: dict[str, Any] = {"enable_fp_fusion": True}
OPTIONS: dict[str, Any] = {"num_warps": 4, **FUSED}


def kernel(function: Callable[..., None] | None = None, *, aligned: str = "") -> Any:
    """``triton.jit`` that specialises on ``tl.constexpr`` parameters alone.

    Of all others neither a size, nor a stride, nor the alignment of a tensor is compiled in.

    Args:
        aligned: a tensor that the operation has allocated itself: it always begins at a multiple of 16 bytes, which
            wide accesses need.
    """
    if function is None:
        return functools.partial(kernel, aligned=aligned)
    parameters = inspect.signature(function).parameters.values()
    constants = ("tl.constexpr", tl.constexpr)  # as `from __future__ import annotations` has it, and without
    run_time = [item.name for item in parameters if item.annotation not in constants and item.name != aligned]
    return triton.jit(do_not_specialize=run_time)(function)


def gapless(tensor: Tensor | None) -> Tensor | None:
    """A small argument as the kernels read it."""
    return None if tensor is None else tensor.contiguous()


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device and its current stream: make the tensor's device the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
