"""How a torch tensor is described to the native library: addresses, sizes, strides, and the place of the call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gflv2.ops.native.loading import emulating

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def describe(logits: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[int, int, int, int, list[int]]:
    """Dtype, bins, batch, number of levels; for each level its pointer, height, width, strides, and the gradient's."""
    numbers: list[int] = []
    rows = logits[0].dim() == 3
    bins = logits[0].shape[2] if rows else logits[0].shape[1] // 4
    for index, level in enumerate(logits):
        height, width = (1, level.shape[0]) if rows else level.shape[2:]
        numbers += (level.data_ptr(), height, width, *strides(level, bins))
        if gradients:
            numbers += (gradients[index].data_ptr(), *strides(gradients[index], bins))
    return DTYPES[logits[0].dtype], bins, 1 if rows else logits[0].shape[0], len(logits), numbers


def strides(tensor: Tensor, bins: int) -> tuple[int, int, int, int, int]:
    """Strides of the view (B, 4, R, H, W): rows (M, 4, R) are one image of one line."""
    if tensor.dim() == 3:
        row, side, bin_step = tensor.stride()
        return 0, side, bin_step, 0, row
    image, channel, y, x = tensor.stride()
    return image, bins * channel, channel, y, x


def map_strides(tensor: Tensor) -> tuple[int, int, int, int, int]:
    """Strides (image, side, class, y, x) of a score map: rows (N, C) are one image of one line; there are no sides."""
    if tensor.dim() == 2:
        row, class_step = tensor.stride()
        return 0, 0, class_step, 0, row
    image, channel, y, x = tensor.stride()
    return image, 0, channel, y, x


def addresses_of_images(tensors: Sequence[Tensor], padded: bool) -> list[tuple[int, int]]:
    """Address and number of the boxes (or labels) of each image; of one padded tensor, (B, G, …), all G."""
    if not padded:
        return [(tensor.data_ptr(), tensor.shape[0]) for tensor in tensors]
    (tensor,) = tensors
    step = tensor.stride(0) * tensor.element_size()
    return [(tensor.data_ptr() + image * step, tensor.shape[1]) for image in range(tensor.shape[0])]


def place(tensor: Tensor) -> tuple[int, int]:
    """CUDA: device index and current stream; its emulation has one of each. CPU: −1 and the number of threads."""
    if emulating.get():
        return 0, 0
    if tensor.is_cuda:
        return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
    return -1, torch.get_num_threads()


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def dense_arguments(kind: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """The small arguments, contiguous and in the dtype of the arithmetic; the caller holds them during the call."""
    return [None if tensor is None else tensor.to(kind).contiguous() for tensor in tensors]


def check_dense(tensor: Tensor, name: str, kind: torch.dtype) -> None:
    if tensor.dtype != kind or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous {kind} tensor, got {tensor.dtype} with strides {tensor.stride()}"
        )
