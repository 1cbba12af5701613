"""The native library (C++ on a CPU, CUDA C++ on a GPU): finding it, and calling it with torch tensors.

The library knows nothing of torch: it gets pointers, shapes, strides, a device index and a stream. It is loaded at the
first use; a library that is missing or broken is a reason to state, never an exception at import.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_RECORD = Path(__file__).resolve().parent.parent / "_build.json"


def _import() -> ModuleType:
    """``gflv2._native``, or the library that GFLV2_NATIVE_LIBRARY names: a build that is being worked on."""
    path = os.environ.get("GFLV2_NATIVE_LIBRARY")
    if not path:
        return importlib.import_module("gflv2._native")
    loader = importlib.machinery.ExtensionFileLoader("gflv2._native", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The extension module, or why there is none."""
    # torch comes first: it brings the OpenMP runtime that the library then shares.
    try:
        return _import(), None
    except Exception as error:  # a broken library may raise anything: ImportError, OSError, SystemError…
        if isinstance(error, ModuleNotFoundError) and error.name == "gflv2._native":
            recorded = build_record().get("native", {}).get("reason")
            return None, f"the native library was not built: {recorded or 'no record of a build was found'}"
        return None, f"the native library could not be loaded: {type(error).__name__}: {error}"


def build_record() -> dict[str, Any]:
    """What the build wrote beside the library: what was built, for what, and why not the rest; empty without one."""
    try:
        record = json.loads(_RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def library() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it is missing or broken; the message says why.
    """
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"gflv2: {reason}")
    return module


@functools.cache
def _cuda_problem(device: int) -> str | None:
    module, reason = _load()
    if module is None:
        return reason
    if not hasattr(module, "cuda_problem"):
        recorded = build_record().get("cuda", {}).get("reason")
        return f"the native library was built without CUDA: {recorded or 'no reason was recorded'}"
    return module.cuda_problem(device) or None


def unavailable(backend: str) -> str | None:
    """Why ``cpu``, ``cuda`` or ``simt`` kernels cannot run in this process at all, or None if they can."""
    if backend == "cpu":
        return _load()[1]
    if backend == "cuda":
        # The current device stands for all: asking each would start a context on each.
        return _cuda_problem(torch.cuda.current_device() if torch.cuda.is_available() else 0)
    if backend == "simt":
        return "the emulation of the CUDA sources is a test build and not part of the library"
    raise ValueError(f"backend: expected cpu, cuda or simt, got {backend!r}")


def status() -> dict[str, Any]:
    """What was built, and what of it runs here.

    Returns:
        ``loaded`` and ``reason``; ``instruction_set`` in use and ``instruction_sets`` that this processor has;
        ``cuda_architectures`` compiled for; ``build``: the record of the build.
    """
    module, reason = _load()
    answer: dict[str, Any] = {"loaded": module is not None, "reason": reason, "build": build_record()}
    if module is not None:
        answer["instruction_set"] = module.instruction_set()
        answer["instruction_sets"] = module.instruction_sets()
        answer["cuda_architectures"] = [a for a in getattr(module, "cuda_architectures", "").split(",") if a]
    return answer


def set_instruction_set(name: str) -> None:
    """Use another instruction set from now on, in the whole process; for tests and measurements.

    Raises:
        ValueError: it was not built, or this processor lacks it.
    """
    library().set_instruction_set(name)


def integral_forward(
    logits: Sequence[Tensor],
    projection: Tensor,
    scales: Tensor | None,
    points: Tensor | None,
    point_strides: Tensor | None,
    strides: Sequence[float],
    offset: float,
    out: Tensor,
) -> None:
    """Distances or boxes of every row, written to ``out``. All tensors lie on one device.

    Args:
        logits: 1 to 8 levels (B, 4·R, H, W), or one tensor of rows (M, 4, R); any strides.
        projection: (R,), in the dtype of the arithmetic (float32, or float64 for float64 logits).
        scales: (L,), same dtype; None: 1.
        points, point_strides: with rows, (M, 2) and (M,) in pixels, same dtype: boxes are wanted.
        strides: with levels, L numbers in pixels: boxes are wanted; empty: distances.
        offset: the point of cell (i, j) is ((j + offset)·stride, (i + offset)·stride).
        out: (B, A, 4) or (M, 4), contiguous, in the dtype of the arithmetic.
    """
    module = library()
    kind = compute_dtype(logits[0].dtype)
    _check_dense(out, "out", kind)
    keep = _dense_arguments(kind, projection, scales, points, point_strides)
    device, where = _place(logits[0])
    module.integral_forward(
        device, where, *_describe(logits, ()), *map(_pointer, keep), list(strides), float(offset), out.data_ptr()
    )


def integral_backward(
    grad_out: Tensor,
    logits: Sequence[Tensor],
    projection: Tensor,
    scales: Tensor | None,
    points: Tensor | None,
    point_strides: Tensor | None,
    strides: Sequence[float],
    offset: float,
    grad_logits: Sequence[Tensor],
    grad_projection: Tensor | None,
    grad_scales: Tensor | None,
) -> None:
    """Gradients of ``integral_forward``, written to ``grad_logits``, ``grad_projection`` and ``grad_scales``.

    Args:
        grad_out: gradient of ``out``, contiguous.
        grad_logits: like ``logits``, any strides without overlap; empty where they are not wanted.
        grad_projection, grad_scales: (R,) and (L,), contiguous, in the dtype of the arithmetic; None where not wanted.
        The rest: as in ``integral_forward``.
    """
    module = library()
    kind = compute_dtype(logits[0].dtype)
    for name, tensor in (("grad_out", grad_out), ("grad_projection", grad_projection), ("grad_scales", grad_scales)):
        if tensor is not None:
            _check_dense(tensor, name, kind)
    keep = _dense_arguments(kind, projection, scales, points, point_strides)
    device, where = _place(logits[0])
    dtype, bins, batch, count, levels = _describe(logits, grad_logits)
    workspace = None
    if device >= 0 and (grad_projection is not None or grad_scales is not None):
        sums = bins if grad_projection is not None else 0
        size = module.integral_workspace(levels, count, bool(grad_logits), batch, sums)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits[0].device)
    module.integral_backward(
        device,
        where,
        dtype,
        bins,
        batch,
        count,
        levels,
        bool(grad_logits),
        *map(_pointer, keep),
        list(strides),
        float(offset),
        *map(_pointer, (grad_out, grad_projection, grad_scales, workspace)),
    )


def atss(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    counts: Tensor | None,
    ignore_boxes: Sequence[Tensor],
    points: Sequence[Tensor],
    shapes: Sequence[int],
    valid: Sequence[int],
    strides: Sequence[float],
    topk: int,
    anchor_scale: float,
    offset: float,
    ignore_iof_thr: float,
    index: Tensor,
    iou: Tensor,
    assigned_labels: Tensor,
) -> None:
    """The assignment of a batch, written to the last three. All tensors are contiguous and lie on one device.

    Args:
        boxes: B tensors (G_i, 4) float32, or one (B, G, 4), of which the first ``counts[i]`` of image i exist.
        labels: shaped alike, int64. counts: (B,) int64 or None.
        ignore_boxes: B tensors (K_i, 4) float32, or one (B, K, 4), or none.
        points: L tensors (n_l, 2) float32; none: the grid.
        shapes: height and width of each level (points: 1 and n). valid: rows and columns that count, image by image,
            level by level; none: all.
        index, iou, assigned_labels: (B, A) int64, float32, int64.
    """
    module = library()
    levels: list[int] = []
    for level in range(len(strides)):
        levels += (points[level].data_ptr() if points else 0, shapes[2 * level], shapes[2 * level + 1])
    images: list[int] = []
    batch = index.shape[0]
    limits = [0] * batch if counts is None else [counts.data_ptr() + 8 * image for image in range(batch)]
    padded = boxes[0].dim() == 3
    targets = zip(_images(boxes, padded), _images(labels, padded), strict=True)
    ignored = _images(ignore_boxes, ignore_boxes[0].dim() == 3) if ignore_boxes else [(0, 0)] * batch
    for image, ((box, count), (label, _)) in enumerate(targets):
        ignore, ignore_count = ignored[image]
        images += (box, label, limits[image], ignore, count, ignore_count)
        images += valid[image * len(shapes) : (image + 1) * len(shapes)] if valid else shapes
    device, where = _place(index)
    scratch = None
    if any(count for _, count in ignored):
        scratch = torch.empty(index.shape, dtype=torch.uint8, device=index.device)
    outputs = map(_pointer, (index, iou, assigned_labels, scratch))
    module.atss(device, where, levels, list(strides), images, topk, anchor_scale, offset, ignore_iof_thr, *outputs)


def _images(tensors: Sequence[Tensor], padded: bool) -> list[tuple[int, int]]:
    """Address and number of the boxes (or labels) of each image; of one padded tensor, (B, G, …), all G."""
    if not padded:
        return [(tensor.data_ptr(), tensor.shape[0]) for tensor in tensors]
    (tensor,) = tensors
    step = tensor.stride(0) * tensor.element_size()
    return [(tensor.data_ptr() + image * step, tensor.shape[1]) for image in range(tensor.shape[0])]


def _describe(logits: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[int, int, int, int, list[int]]:
    """Dtype, bins, batch, number of levels; for each level its pointer, height, width, strides, and the gradient's."""
    numbers: list[int] = []
    rows = logits[0].dim() == 3
    bins = logits[0].shape[2] if rows else logits[0].shape[1] // 4
    for index, level in enumerate(logits):
        height, width = (1, level.shape[0]) if rows else level.shape[2:]
        numbers += (level.data_ptr(), height, width, *_strides(level, bins))
        if gradients:
            numbers += (gradients[index].data_ptr(), *_strides(gradients[index], bins))
    return _DTYPES[logits[0].dtype], bins, 1 if rows else logits[0].shape[0], len(logits), numbers


def _strides(tensor: Tensor, bins: int) -> tuple[int, int, int, int, int]:
    """Strides of the view (B, 4, R, H, W): rows (M, 4, R) are one image of one line."""
    if tensor.dim() == 3:
        row, side, bin_step = tensor.stride()
        return 0, side, bin_step, 0, row
    image, channel, y, x = tensor.stride()
    return image, bins * channel, channel, y, x


def _place(tensor: Tensor) -> tuple[int, int]:
    """CUDA: device index and current stream. CPU: −1 and the number of threads."""
    if tensor.is_cuda:
        return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
    return -1, torch.get_num_threads()


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense_arguments(kind: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """The small arguments, contiguous and in the dtype of the arithmetic; the caller holds them during the call."""
    return [None if tensor is None else tensor.to(kind).contiguous() for tensor in tensors]


def _check_dense(tensor: Tensor, name: str, kind: torch.dtype) -> None:
    if tensor.dtype != kind or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous {kind} tensor, got {tensor.dtype} with strides {tensor.stride()}"
        )
