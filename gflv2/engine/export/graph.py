"""The part of a detector that is exported, and its trace by torch.export.

Both file formats start from one ``ExportedProgram``: what is checked is what is written. ``torch.onnx.export`` takes it
with ``dynamo=True``; its older exporter, of TorchScript, is deprecated since torch 2.9 and knows no symbolic sizes, so
that a size that was open there could be fixed in silence. Here it is an error.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from gflv2.models.dense_head import shapes_of, split_levels
from gflv2.models.detector import SingleStageDetector
from gflv2.models.gfl_head import GFLHead
from gflv2.ops import dgqp

# Sizes below are for tracing alone where a size stays open: any two numbers that are neither equal nor 0 or 1 cells.
_TRACED_CELLS = (8, 10)
_TRACED_BATCH = 2
_MOST = 4096  # images of a batch, and cells of stride ``step``, that a file with open sizes is declared for


class Sizes(NamedTuple):
    """The input of an exported file.

    Attributes:
        batch: images, or None: any number.
        height, width: pixels, or None: any multiple of ``step``.
        step: pixels that an open height or width is a multiple of.
    """

    batch: int | None
    height: int | None
    width: int | None
    step: int

    @property
    def open_size(self) -> bool:
        return self.height is None

    def example(self, batch: int = _TRACED_BATCH, cells: tuple[int, int] = _TRACED_CELLS) -> tuple[int, int, int, int]:
        """(B, 3, H, W) with these numbers where they are open."""
        height, width = (self.height, self.width) if self.height else (self.step * cells[0], self.step * cells[1])
        return self.batch or batch, 3, height, width


class ExportedGraph(nn.Module):
    """Images → what the file gives: ``"decoded"`` boxes and scores, or ``"raw"`` logits. Results are float32.

    Args:
        model: a copy that is changed: ``float16`` weights, paddings that do not depend on the size.
        pre_topk: points kept on each level.
        half: the network in float16. Softmax, statistics, their predictor, integral and boxes stay in float32: a
            distance is a sum over bins times a stride of up to 128 pixels, of which float16 would leave 11 bits.
    """

    def __init__(self, model: SingleStageDetector, outputs: str, *, pre_topk: int, half: bool, open_size: bool) -> None:
        super().__init__()
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        if open_size:
            fix_paddings(model)
        self.half_precision = half
        if half:
            halve(model)
        self.model, self.outputs, self.pre_topk = model, outputs, pre_topk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.model(images.half() if self.half_precision else images)
        head = self.model.bbox_head
        if self.outputs == "decoded":
            return head.decode(output, pre_topk=self.pre_topk, score_thr=0.0)[:2]
        scales = output.scales.float().unbind()
        classes = [level.float() for level in output.class_logits]
        boxes = [level.float() * scale for level, scale in zip(output.box_logits, scales, strict=True)]
        quality = output.quality_logits
        if output.predictor is not None:
            first, predictor = output.box_logits, output.predictor
            quality = dgqp(
                first,
                *predictor[:4],
                scales=output.scales,
                topk=predictor.topk,
                mean=predictor.mean,
                variance=predictor.variance,
            )
        if quality is None:
            return (*classes, *boxes)
        return (*classes, *boxes, *split_levels(quality.float().unsqueeze(2), output.class_logits))

    def output_names(self) -> list[str]:
        """Of ``forward``'s results, in their order."""
        if self.outputs == "decoded":
            return ["boxes", "scores"]
        head = self.model.bbox_head
        kinds = ["class_logits", "box_logits"]
        if not isinstance(head, GFLHead) or (head.quality is not None and head.composition == "product"):
            kinds.append("quality_logits")
        return [f"{kind}_{stride}" for kind in kinds for stride in head.strides]

    def level_rows(self, images: Tensor) -> list[int]:
        """Points of each level for such images, of which ``decoded`` keeps ``pre_topk`` at most."""
        return [height * width for height, width in shapes_of(self.model(images).class_logits)]


def step_of(model: SingleStageDetector) -> int:
    """What heights and widths have to be a multiple of: the data's padding and the backbone's coarsest stride."""
    return math.lcm(model.config.data.pad_divisor, *model.backbone.feature_info.reduction())


def trace(graph: ExportedGraph, sizes: Sizes) -> torch.export.ExportedProgram:
    """The graph with its open sizes symbolic; a size that the code fixes is an error of torch.export."""
    dims: dict[int, torch.export.Dim] = {}
    if sizes.batch is None:
        dims[0] = torch.export.Dim("batch", min=1, max=_MOST)
    if sizes.open_size:
        for axis, name in ((2, "rows"), (3, "columns")):
            dims[axis] = sizes.step * torch.export.Dim(name, min=2, max=_MOST)
    example = torch.zeros(sizes.example())
    return torch.export.export(graph, (example,), dynamic_shapes=(dims or None,))


def halve(model: SingleStageDetector) -> None:
    """Weights in float16, but not those of what float32 computes: scales, bins and the statistics' predictor."""
    model.half()
    head = model.bbox_head
    head.scales.float()
    if isinstance(head, GFLHead):
        head.integral.float()
        if head.quality == "statistics" and head.composition == "product":
            head.reg_conf.float()


def fix_paddings(model: nn.Module) -> None:
    """TensorFlow's "same" convolutions of timm with constant paddings.

    timm computes them from each image's size. For a symbolic size that is an expression which contains that of the
    layer before: five such layers (tf_efficientnet_lite0) keep sympy busy for longer than anyone waits. Where the size
    is a multiple of the stride, as it is here, the padding is the same number for all of them.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _SameConv2d(child))


class _SameConv2d(nn.Conv2d):
    """A "same" convolution for heights and widths that are a multiple of its stride; other sizes would be wrong."""

    def __init__(self, conv: nn.Conv2d) -> None:
        options = {
            "stride": conv.stride,
            "dilation": conv.dilation,
            "groups": conv.groups,
            "bias": conv.bias is not None,
        }
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, **options)
        self.weight, self.bias = conv.weight, conv.bias
        total = [
            max((kernel - 1) * dilation + 1 - stride, 0)
            for kernel, dilation, stride in zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
        ]
        self.around = [side for pad in reversed(total) for side in (pad // 2, pad - pad // 2)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around))
