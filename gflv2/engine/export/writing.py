"""``export``: a detector as an ONNX or torch.export file, checked against PyTorch before it appears."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflv2.engine.export import metadata, onnx_file
from gflv2.engine.export.check import TOLERANCES, Tolerance, compare_candidates, compare_logits
from gflv2.engine.export.graph import ExportedGraph, Sizes, step_of, trace
from gflv2.engine.export.nms import append_nms
from gflv2.files import write_whole
from gflv2.models.deform_conv import DeformConv2d
from gflv2.models.detector import SingleStageDetector
from gflv2.ops import Decoded, batched_nms
from gflv2.ops.checks import bad_value, check_choice, check_count

FORMATS = {".onnx": "onnx", ".pt2": "torch"}
OUTPUTS = ("decoded", "nms", "raw")
PRECISIONS = ("32", "16", "int8")


class ExportError(RuntimeError):
    """The exported file does not give what PyTorch gives; it is not written."""


@dataclass
class ExportReport:
    """What ``export`` wrote.

    Attributes:
        path: the file. size: its bytes.
        inputs, outputs: name → shape as the file declares it (empty for torch.export, whose inputs are positional).
        checked: the shapes (B, 3, H, W) of the images that the file was compared with PyTorch on.
        boxes, scores: the largest differences there, in pixels of the input and in score; or of logits.
        quantised: convolutions in int8; None where nothing was quantised.
    """

    path: Path
    size: int
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    checked: list[tuple[int, ...]] = field(default_factory=list)
    boxes: float = 0.0
    scores: float = 0.0
    quantised: int | None = None

    def __str__(self) -> str:
        lines = [f"wrote {self.path} ({self.size / 1e6:.1f} MB)"]
        for kind, values in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"  {kind} {name}: {' × '.join(map(str, shape))}" for name, shape in values.items()]
        images = ", ".join("×".join(map(str, shape)) for shape in self.checked)
        before = " (before it was quantised)" if self.quantised is not None else ""
        lines.append(f"checked against PyTorch{before} on random images {images}:")
        lines.append(f"  largest difference {self.boxes:.2g} pixels or logits, {self.scores:.2g} in score")
        if self.quantised is not None:
            lines.append(f"{self.quantised} convolutions are in int8; `gflv2 val` on the file says what it costs in AP")
        return "\n".join(lines)


def export(
    model: SingleStageDetector,
    path: str | Path,
    *,
    outputs: str = "decoded",
    precision: str = "32",
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    batch_size: int = 1,
    image_size: Sequence[int] | None = None,
    pre_topk: int | None = None,
    score_thr: float | None = None,
    iou_thr: float | None = None,
    max_detections: int | None = None,
    data: Any = None,
    image_dir: str | Path | None = None,
    calibration_images: int = 64,
    progress: bool = True,
) -> ExportReport:
    """Write a detector to a file that runs without this package.

    The network's input ``images`` is (B, 3, H, W) float32, RGB, normalised and padded as ``gflv2.data.transforms``
    does; what that needs is in the file's metadata (`metadata.describe`).

    Args:
        model: a ``GFLV2``. It is not changed.
        path: ``.onnx``, or ``.pt2`` for torch.export.
        outputs: ``"decoded"``: ``boxes`` (B, N, 4) in pixels of the input, not clipped, and ``scores`` (B, N, C);
            N = Σ_l min(pre_topk, points of level l), with ``dynamic_size`` pre_topk a level, filled up with
            scores of 0.
            ``"nms"``: detections, see `nms.append_nms`; ONNX only.
            ``"raw"``: logits of each level; box logits after their scale, quality logits where the head has them.
        precision: ``"32"``; ``"16"``: the network in float16, softmax and integral in float32, inputs and outputs
            float32; ``"int8"``: convolutions by onnxruntime's static quantisation, the distribution head in float32.
        dynamic_batch: the file takes any number of images, else ``batch_size``.
        dynamic_size: the file takes any height and width that are a multiple of ``size_multiple`` (metadata), from two
            of them on; else ``image_size`` (height, width), by default the configuration's test size.
        pre_topk: points kept on each level. score_thr, iou_thr, max_detections: of the NMS. All are constants of the
            file, by default those of ``model.config.test``.
        data, image_dir, calibration_images: for int8: the set that the ranges of the activations are measured on (as
            ``gflv2.engine.evaluate``), and how many of its images, spread evenly over it.

    Raises:
        ExportError: the file's results are not PyTorch's; no file is left.
        ModuleNotFoundError: a package of the extra ``export`` is missing. ValueError, TypeError: wrong arguments.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix)
    if kind is None:
        bad_value("path", "a file that ends in .onnx or .pt2", str(path))
    _check_choices(model, kind, outputs, precision, data)
    check_count(batch_size, "batch_size")
    test = model.config.test.options(
        pre_topk=pre_topk, score_thr=score_thr, iou_thr=iou_thr, max_detections=max_detections
    )
    if kind == "onnx":
        onnx_file.need("onnx", "onnxscript", "onnxruntime", what="Writing ONNX and checking it")
    sizes = _sizes(model, dynamic_batch, dynamic_size, batch_size, image_size)
    written = "raw" if outputs == "raw" else "decoded"
    graph, reference = (
        ExportedGraph(model, written, pre_topk=test["pre_topk"], half=half, open_size=open_size)
        for half, open_size in ((precision == "16", sizes.open_size), (False, False))
    )
    texts = metadata.to_texts(
        metadata.describe(model, outputs=outputs, precision=precision, step=sizes.step, test=test)
    )
    report = ExportReport(path, 0)
    deformable = any(isinstance(module, DeformConv2d) for module in model.modules())
    opset = onnx_file.DEFORMABLE_OPSET if deformable else onnx_file.OPSET
    try:
        program = trace(graph, sizes)
        proto = onnx_file.to_onnx(program, sizes, graph.output_names(), opset) if kind == "onnx" else None
        session = None if proto is None else onnx_file.session(proto.SerializeToString())
    except (RuntimeError, ValueError) as error:  # torch.export's and torch.onnx's own errors are RuntimeErrors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{path} is not written: this network cannot be exported: {lines[-1]}") from error
    run = program.module() if proto is None else partial(onnx_file.run_images, session)
    with torch.inference_mode():
        _check(reference, run, sizes, TOLERANCES[precision], report)
        if proto is None:
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={"gflv2.json": json.dumps(texts)})
            content = buffer.getvalue()
        else:
            if precision == "int8":
                from gflv2.engine.export.int8 import quantise

                proto, report.quantised = quantise(
                    proto, model, data, image_dir, images=calibration_images, sizes=sizes, progress=progress
                )
            if outputs == "nms":
                proto = _with_nms(proto, test, sizes, path)
            onnx_file.set_metadata(proto, texts)
            content = proto.SerializeToString()
            report.inputs, report.outputs = onnx_file.shapes(proto)
    write_whole(path, content)
    report.size = len(content)
    return report


def _check_choices(model: SingleStageDetector, kind: str, outputs: str, precision: str, data: Any) -> None:
    """Refuse what does not go together."""
    check_choice(outputs, "outputs", OUTPUTS)
    check_choice(precision, "precision", PRECISIONS)
    if kind == "torch" and outputs == "nms":
        bad_value("outputs", "'decoded' or 'raw' for a .pt2 file, since only ONNX has the NMS", outputs)
    if kind == "torch" and precision == "int8":
        bad_value("precision", "'32' or '16' for a .pt2 file, since onnxruntime quantises", precision)
    if (data is not None) != (precision == "int8"):
        bad_value("data", "a data set to calibrate on with precision int8, and with it alone", data)
    if model.bbox_head.legacy_background:
        raise ValueError("model: the authors' unused background channel is not exported; load it without legacy=True")


def _check(
    reference: ExportedGraph,
    run: Callable[[Tensor], Sequence[Tensor]],
    sizes: Sizes,
    tolerance: Tolerance,
    report: ExportReport,
) -> None:
    """Compare with PyTorch on random images, and note how well they agree.

    Raises:
        ExportError
    """
    for images in _pictures(sizes):
        expected, found = reference(images), run(images)
        if reference.outputs == "raw":
            difference = compare_logits(expected, found, tolerance)
        else:
            rows, strides = reference.level_rows(images), reference.model.bbox_head.strides
            difference = compare_candidates(expected, found, rows, reference.pre_topk, strides, tolerance)
        report.checked.append(tuple(images.shape))
        if difference.complaint:
            raise ExportError(f"{report.path} is not written: images {tuple(images.shape)}: {difference.complaint}")
        report.boxes, report.scores = max(report.boxes, difference.boxes), max(report.scores, difference.scores)


def _sizes(
    model: SingleStageDetector, dynamic_batch: bool, dynamic_size: bool, batch_size: int, image_size: Any
) -> Sizes:
    step = step_of(model)
    height = width = None
    if dynamic_size:
        if image_size is not None:
            bad_value("image_size", "None with dynamic_size", image_size)
    else:
        data = model.config.data
        given = image_size if image_size is not None else (data.test_short_side, data.long_side)
        if len(given) != 2 or not all(isinstance(side, int) and side > 0 for side in given):
            bad_value("image_size", "a height and a width in pixels", image_size)
        height, width = (-(-side // step) * step for side in given)
        if image_size is not None and (height, width) != tuple(image_size):
            bad_value("image_size", f"multiples of {step}, for example {height} {width}", list(image_size))
    return Sizes(None if dynamic_batch else batch_size, height, width, step)


def _pictures(sizes: Sizes) -> list[Tensor]:
    """Random images of the traced shape, and of others where the file says that it takes them."""
    shapes = {sizes.example(): None}
    if sizes.batch is None:
        shapes[sizes.example(batch=1)] = None
    if sizes.open_size:
        shapes[sizes.example(batch=3, cells=(5, 4))] = None
        shapes[sizes.example(batch=1, cells=(2, 3))] = None  # levels of one cell, and fewer cells than top-k
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _with_nms(proto: Any, test: dict[str, Any], sizes: Sizes, path: Path) -> Any:
    """The NMS behind it, compared with ours on the same candidates; also with a threshold that nothing reaches."""
    options = {"iou_thr": test["iou_thr"], "max_detections": test["max_detections"]}
    complete = append_nms(proto, score_thr=test["score_thr"], **options)
    images = _pictures(sizes)[0]
    limits = torch.tensor([[images.shape[2] - 7.0, images.shape[3] - 3.0]]).expand(len(images), 2).contiguous()
    boxes, scores = onnx_file.run(onnx_file.session(proto.SerializeToString()), images=images)
    boxes = torch.minimum(boxes.clamp(min=0), limits.flip(1).repeat(1, 2)[:, None])
    for threshold in (test["score_thr"], float(scores.amax())):
        tried = complete if threshold == test["score_thr"] else append_nms(proto, score_thr=threshold, **options)
        found = onnx_file.run(onnx_file.session(tried.SerializeToString()), images=images, image_sizes=limits)
        kept = torch.where(scores > threshold, scores, 0.0)
        points = torch.arange(boxes.shape[1]).expand(boxes.shape[:2])
        expected = batched_nms(Decoded(boxes, kept, points, (kept > 0).any(-1).sum(1)), **options)
        for image, wanted in enumerate(expected):
            count = len(wanted.scores)
            same = int(found[3][image]) == count and torch.equal(found[2][image, :count], wanted.labels)
            same = same and torch.allclose(found[0][image, :count], wanted.boxes, atol=1e-3)
            if not (
                same and torch.allclose(found[1][image, :count], wanted.scores) and not found[1][image, count:].any()
            ):
                raise ExportError(f"{path} is not written: its NMS gives other detections than PyTorch's")
    return complete
