"""The same convolutions by faster paths of PyTorch's CPU library, for training in channels_last.

Both were found by measuring every layer of the light model (``benchmarks/light_step.py``; AMD EPYC, float32):

* The gradient of a depthwise kernel that is 5 wide runs at 4 to 9 GFLOP/s, that of one up to 3 wide at 20 to 30. So it
  is taken in parts, 3 + 2 columns.
* With one thread, 1×1 convolutions of batches below 16 are handed to MKL's matrix product, which reaches 90 GFLOP/s on
  processors that are not Intel's; oneDNN's own kernels reach 110 to 230. They are taken where a convolution is dilated,
  and a kernel of one element does not change when it is.

Values and gradients are those of ``torch.nn.functional.conv2d`` up to rounding.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

COLUMNS = 3  # widest depthwise kernel whose gradient is fast
SMALL_BATCH = 16  # from here on PyTorch takes oneDNN for 1×1 kernels anyway


@functools.cache
def slow_products() -> bool:
    """Whether matrix products go to an MKL that keeps its fastest kernels for another maker's processors."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        names = Path("/proc/cpuinfo").read_text()
    except OSError:
        names = platform.processor()
    return "AuthenticAMD" in names


def paths_taken(batch: int, threads: int | None = None) -> str:
    """One line for people: what ``train.fast_convolutions`` does here, and why.

    Args:
        batch: images of a forward pass. threads: None: those of PyTorch.
    """
    number = torch.get_num_threads() if threads is None else threads
    wide = f"gradients of depthwise kernels wider than {COLUMNS} in columns"
    if number > 1:
        ones = f"1×1 convolutions as without it, since PyTorch itself takes oneDNN with {number} threads"
    elif batch >= SMALL_BATCH:
        ones = f"1×1 convolutions as without it, since PyTorch itself takes oneDNN from {SMALL_BATCH} images on"
    elif slow_products():
        ones = "1×1 convolutions by oneDNN, since MKL's matrix products are slow on AMD's processors (with 1 thread)"
    else:
        ones = "1×1 convolutions as without it, since MKL's matrix products are slow on AMD's processors only"
    return f"train.fast_convolutions: {wide}; {ones}"


def faster_on(images: Tensor, training: bool) -> contextlib.AbstractContextManager[Any]:
    """``CPUConvolutions`` for a training step on a CPU, nothing for everything else."""
    if training and images.device.type == "cpu" and not torch.compiler.is_compiling():
        return CPUConvolutions()
    return contextlib.nullcontext()


class CPUConvolutions(TorchFunctionMode):
    """While it is entered, ``conv2d`` takes the faster path where there is one.

    Args:
        columns: take depthwise gradients in parts. products: take 1×1 convolutions from MKL; None: where it is slow.
    """

    def __init__(self, *, columns: bool = True, products: bool | None = None) -> None:
        super().__init__()
        self.columns, self.products = columns, slow_products() if products is None else products

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is F.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        given = (input, weight, bias, stride, padding, dilation, groups)
        if not _takes(input, weight, padding, dilation):
            return F.conv2d(*given)
        if self.products and groups == 1 and tuple(weight.shape[2:]) == (1, 1):
            if len(input) < SMALL_BATCH and torch.get_num_threads() == 1:
                dilation = 2
        elif self.columns and groups == len(weight) == input.shape[1] and weight.shape[3] > COLUMNS:
            if bias is None and weight.requires_grad and torch.is_grad_enabled():
                return DepthwiseInColumns.apply(input, weight, _pair(stride), _pair(padding))
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _takes(input: Any, weight: Any, padding: Any, dilation: Any) -> bool:
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)) or isinstance(padding, str):
        return False
    usual = input.dim() == 4 and input.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return (
        usual
        and input.device.type == "cpu"
        and _pair(dilation) == (1, 1)
        and torch.backends.mkldnn.enabled
        and input.is_contiguous(memory_format=torch.channels_last)
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) if len(value) == 2 else (value[0], value[0])


class DepthwiseInColumns(torch.autograd.Function):
    """A depthwise convolution whose kernel's gradient is computed a few columns at a time."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # apart, for torch.func
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        upstream = upstream.contiguous(memory_format=torch.channels_last)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = _backward(upstream, x, weight, ctx.stride, ctx.padding, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            height, width = weight.shape[2:]
            down, right = ctx.padding
            padded = F.pad(x, (right, right, down, down))
            span = (upstream.shape[3] - 1) * ctx.stride[1]
            parts = []
            for first in range(0, width, COLUMNS):
                part = weight[..., first : first + COLUMNS]
                seen = padded[..., first : first + span + part.shape[3]]
                parts.append(_backward(upstream, seen, part, ctx.stride, (0, 0), (False, True, False))[1])
            dweight = torch.cat(parts, dim=3)
        return dx, dweight, None, None


def _backward(
    upstream: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    last = {"memory_format": torch.channels_last}
    return torch.ops.aten.convolution_backward(
        upstream,
        x.contiguous(**last),
        weight.contiguous(**last),
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        len(weight),
        wanted,
    )
