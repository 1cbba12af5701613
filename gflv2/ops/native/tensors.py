"""How torch tensors, and the place of a call, are described to the native library.

Its functions take (device, where, allocate), and every field of the C++ arguments by name. A tensor is handed over as
it is: the library asks it for data_ptr(), shape and stride().
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.native.loading import emulating
from gflv2.ops.reduction import Reduction

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
Place = tuple[int, int, Callable[[int], Tensor] | None]


def place(tensor: Tensor) -> Place:
    """CUDA: device index, current stream, and what allocates bytes there. CPU: −1, the number of threads, None.

    The emulation has one device and one stream.
    """
    if emulating.get():
        return 0, 0, functools.partial(torch.empty, dtype=torch.uint8, device=tensor.device)
    if tensor.is_cuda:
        device = tensor.device
        stream = torch.cuda.current_stream(device).cuda_stream
        return device.index, stream, functools.partial(torch.empty, dtype=torch.uint8, device=device)
    return -1, torch.get_num_threads(), None


def of_images(tensors: Sequence[Tensor], padded_dims: int) -> Sequence[Tensor] | Tensor | None:
    """Tensors of the images of a batch: a list of one each, one padded tensor for all, or None where there are none."""
    if not tensors:
        return None
    return tensors[0] if tensors[0].dim() == padded_dims else tensors


def reduction_fields(reduction: Reduction, out: Tensor | None, grad: Tensor | None) -> dict[str, Any]:
    """The fields of the C++ `Reduction`.

    Args:
        out: the result: of a forward pass, and of a backward pass that computes both.
        grad: its gradient, for a backward pass; None: 1.
    """
    weight, factor, divisor, kind = reduction
    total = kind != "none"
    return {"total": total, "weight": weight, "divisor": divisor, "factor": factor, "out": out, "grad_out": grad}


def check_dense(tensor: Tensor, name: str, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous {dtype} tensor, got {tensor.dtype} with strides {tensor.stride()}"
        )
