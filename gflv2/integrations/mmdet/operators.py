"""``standin()``: the part of mmcv's compiled operators that mmdet's dense detectors need, on torchvision's.

mmdet cannot be imported without the compiled part of mmcv, which mmcv-lite lacks and which mmcv 2.1 has prebuilt for
older versions of PyTorch only. mmcv's Python code is the same in both, so what is stood in for is what it calls:

* ``nms`` (and with it ``batched_nms``): torchvision's. Suppressed is what overlaps a better box by *more* than the
  threshold, as in mmcv. ``offset=1`` (a side is x2 − x1 + 1) moves x2 and y2 by one. Boxes of equal score: the lower
  index first;
* ``roi_align``: torchvision's, with mmcv's defaults (``aligned=True``, ``sampling_ratio=0``: adaptive).
  ``pool_mode="max"`` is refused;
* ``deform_conv2d`` and ``modulated_deform_conv2d``: torchvision's; offsets are (y, x) pairs in both. ``im2col_step``
  has no meaning here;
* ``sigmoid_focal_loss``: torchvision's on the rows of an identity matrix, in place of mmcv's CUDA kernel (on a CPU
  mmdet has its own code); class weights are refused.

Gradients are torchvision's own. mmcv asks for them apart from the forward pass, which is therefore repeated in the
backward pass. Every other operator (soft NMS, NMS of rotated boxes, RoI pooling, deformable attention on a GPU, …) can
be imported and raises NotImplementedError when it is called, which names it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gflv2.integrations.common import require
from gflv2.integrations.report import say

PIP = 'mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 torchvision "setuptools<81"'
_stood_in: list[str] = []


def there() -> bool:
    """Whether mmcv has its operators, compiled ones or somebody's stand-ins."""
    require("mmcv", PIP, of="mmdet")
    return "mmcv.ops" in sys.modules or importlib.util.find_spec("mmcv._ext") is not None


def stand_in() -> tuple[str, ...]:
    """`gflv2.integrations.mmdet.standin`, up to the import of mmcv.ops."""
    if there():
        if not _stood_in:
            say("mmcv has its operators already: gflv2 stands in for none")
        return tuple(_stood_in)
    require("torchvision", "torchvision", of="mmdet")
    loader: Any = importlib.import_module("mmcv.utils.ext_loader")
    own = loader.load_ext
    loader.load_ext = _load_ext
    try:
        importlib.import_module("mmcv.ops")  # all of its modules ask for their functions while they are imported
    finally:
        loader.load_ext = own
    _stood_in.extend(_NAMES)
    version = importlib.metadata.version("torchvision")
    say(f"mmcv's {', '.join(_NAMES)} are torchvision {version}'s now; mmcv's other operators raise when called")
    return _NAMES


def _load_ext(name: str, functions: Sequence[str]) -> SimpleNamespace:
    """In place of the compiled module."""
    return SimpleNamespace(**{one: _FUNCTIONS.get(one, _missing(one)) for one in functions})


def _missing(function: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        have = ", ".join(_NAMES)
        raise NotImplementedError(f"mmcv.ops: {function} needs mmcv's compiled operators; gflv2 stands in for {have}")

    return call


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """(N, 4) and (N,) → kept indices, best first."""
    from torchvision.ops import nms

    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return nms(boxes, scores, iou_threshold)


def _roi_align_of(rois: Tensor, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    from torchvision.ops import roi_align

    if options["pool_mode"] != 1:  # mmcv's number of "avg"
        raise NotImplementedError("mmcv.ops.roi_align: pool_mode: expected 'avg', as torchvision has it, got 'max'")
    size = (options["aligned_height"], options["aligned_width"])
    scale, ratio, aligned = options["spatial_scale"], options["sampling_ratio"], options["aligned"]
    return lambda features: roi_align(features, rois, size, scale, ratio, aligned)


def _roi_align_forward(features: Tensor, rois: Tensor, output: Tensor, *_: Tensor, **options: Any) -> None:
    output.copy_(_roi_align_of(rois, options)(features))


def _roi_align_backward(
    grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **options: Any
) -> None:
    # Linear in the features: the gradient does not depend on their values, which mmcv does not keep.
    _gradients(_roi_align_of(rois, options), [torch.zeros_like(grad_input)], grad, [grad_input])


def _deform_conv_of(groups: int, kernel: Sequence[int], **options: Any) -> Callable[..., Tensor]:
    """A function of input (B, C, H, W), offsets, weight, mask or None, and bias or None."""
    from torchvision.ops import deform_conv2d

    def call(features: Tensor, offset: Tensor, weight: Tensor, mask: Any = None, bias: Any = None) -> Tensor:
        expected = 2 * groups * kernel[0] * kernel[1]
        if offset.shape[1] != expected:  # torchvision would take the number of groups from it
            raise ValueError(f"offset: expected {expected} channels (deform_groups {groups}), got {offset.shape[1]}")
        return deform_conv2d(features, offset, weight, bias, mask=mask, **options)

    return call


def _plain(options: dict[str, Any]) -> Callable[..., Tensor]:
    """``_deform_conv_of`` by the names of mmcv's first version."""
    return _deform_conv_of(
        options["deformable_group"],
        (options["kH"], options["kW"]),
        stride=(options["dH"], options["dW"]),
        padding=(options["padH"], options["padW"]),
        dilation=(options["dilationH"], options["dilationW"]),
    )


def _deform_conv_forward(
    features: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *_: Tensor, **options: Any
) -> None:
    output.copy_(_plain(options)(features, offset, weight))


def _deform_conv_backward_input(
    features: Tensor,
    offset: Tensor,
    grad: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *_: Tensor,
    **options: Any,
) -> None:
    call = _plain(options)
    _gradients(lambda *leaves: call(*leaves, weight), [features, offset], grad, [grad_input, grad_offset])


def _deform_conv_backward_parameters(
    features: Tensor, offset: Tensor, grad: Tensor, grad_weight: Tensor, *_: Tensor, **options: Any
) -> None:
    call = _plain(options)
    # Linear in the weight, whose values are not handed over here.
    _gradients(lambda weight: call(features, offset, weight), [grad_weight], grad, [grad_weight])


def _modulated(options: dict[str, Any]) -> Callable[..., Tensor]:
    return _deform_conv_of(
        options["deformable_group"],
        (options["kernel_h"], options["kernel_w"]),
        stride=(options["stride_h"], options["stride_w"]),
        padding=(options["pad_h"], options["pad_w"]),
        dilation=(options["dilation_h"], options["dilation_w"]),
    )


def _modulated_deform_conv_forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **options: Any,
) -> None:
    output.copy_(_modulated(options)(features, offset, weight, mask, bias if options["with_bias"] else None))


def _modulated_deform_conv_backward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad: Tensor,
    **options: Any,
) -> None:
    leaves, gradients = [features, offset, weight, mask], [grad_input, grad_offset, grad_weight, grad_mask]
    if options["with_bias"]:
        leaves, gradients = [*leaves, bias], [*gradients, grad_bias]
    _gradients(_modulated(options), leaves, grad, gradients)


def _focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """(N, C) logits and (N,) labels, C for background → (N, C)."""
    from torchvision.ops import sigmoid_focal_loss

    if weight.numel():  # mmcv takes that of the row's label, and background has none
        raise NotImplementedError("mmcv.ops.sigmoid_focal_loss: weight: expected None, got weights of classes")
    hot = (target[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    return sigmoid_focal_loss(logits, hot, alpha=alpha, gamma=gamma, reduction="none")


def _focal_forward(logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, **options: float) -> None:
    output.copy_(_focal(logits, target, weight, **options))


def _focal_backward(logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, **options: float) -> None:
    ones = torch.ones_like(logits)  # of each element alone; mmcv multiplies by what comes from above
    _gradients(lambda leaf: _focal(leaf, target, weight, **options), [logits], ones, [grad_input])


def _gradients(call: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, into: Sequence[Tensor]) -> None:
    """Write the gradients of ``call`` for each input."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        found = torch.autograd.grad(call(*leaves), leaves, grad)
    for place, value in zip(into, found, strict=True):
        place.copy_(value)


def _version() -> str:
    return f"torchvision {importlib.metadata.version('torchvision')}, by gflv2"


_NAMES = ("nms", "roi_align", "deform_conv2d", "modulated_deform_conv2d", "sigmoid_focal_loss")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "nms": _nms,
    "roi_align_forward": _roi_align_forward,
    "roi_align_backward": _roi_align_backward,
    "deform_conv_forward": _deform_conv_forward,
    "deform_conv_backward_input": _deform_conv_backward_input,
    "deform_conv_backward_parameters": _deform_conv_backward_parameters,
    "modulated_deform_conv_forward": _modulated_deform_conv_forward,
    "modulated_deform_conv_backward": _modulated_deform_conv_backward,
    "sigmoid_focal_loss_forward": _focal_forward,
    "sigmoid_focal_loss_backward": _focal_backward,
    # What mmcv's collect_env prints.
    "get_compiler_version": _version,
    "get_compiling_cuda_version": _version,
}
