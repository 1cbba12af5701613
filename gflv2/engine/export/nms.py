"""Class-wise NMS behind a file's boxes and scores, in ONNX's own operators.

`torch.export` has no loop over an open number of images, so the nodes are written here, in ONNX's text form. They give
what ``gflv2.ops.batched_nms`` gives, in fixed shapes: NonMaxSuppression's survivors, whose number nobody knows before,
are written back into a tensor of zeros of the scores' shape, and a top-k with a constant k picks the best of it.
"""

from __future__ import annotations

from typing import Any

NAMES = ["boxes", "scores", "labels", "counts"]


def append_nms(
    program: Any, *, score_thr: float, iou_thr: float, max_detections: int, image_sizes: str = "image_sizes"
) -> Any:
    """A model ``images`` → (``boxes``, ``scores``) with the NMS behind it.

    The result takes ``images`` and ``image_sizes`` (B, 2) float32, (height, width) of each image without padding, to
    which boxes are clipped, and gives, with D = ``max_detections``:

    * ``boxes`` (B, D, 4), ``scores`` (B, D), ``labels`` (B, D) int64, best first;
    * ``counts`` (B,) int64: how many of the D are detections. The others have score 0, label −1 and an empty box.

    Args:
        program: an ``onnx.ModelProto``, which is not changed.
    """
    import onnx

    opset = next(entry.version for entry in program.opset_import if entry.domain == "")
    batch = program.graph.output[0].type.tensor_type.shape.dim[0]
    classes = program.graph.output[1].type.tensor_type.shape.dim[2].dim_value
    text = _TEXT.format(
        ir=program.ir_version,
        opset=opset,
        batch=batch.dim_param or batch.dim_value,
        image_sizes=image_sizes,
        classes=classes,
        score_thr=repr(float(score_thr)),
        iou_thr=repr(float(iou_thr)),
        most=int(max_detections),
    )
    keep = dict.fromkeys(("nodes", "edges", "inputs", "initializers", "value_infos", "functions"), False)
    head = onnx.compose.add_prefix(program, "candidate_", **{f"rename_{kind}": value for kind, value in keep.items()})
    pairs = [(output.name, f"candidate_{kind}") for output, kind in zip(head.graph.output, NAMES[:2], strict=True)]
    return onnx.compose.merge_models(head, onnx.parser.parse_model(text), io_map=pairs)


_TEXT = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
nms (
    float[{batch}, N, 4] candidate_boxes,
    float[{batch}, N, {classes}] candidate_scores,
    float[{batch}, 2] {image_sizes}
) => (
    float[{batch}, {most}, 4] boxes,
    float[{batch}, {most}] scores,
    int64[{batch}, {most}] labels,
    int64[{batch}] counts
)
{{
    nms_zero = Constant <value = float {{0.0}}> ()
    nms_zero_index = Constant <value = int64 {{0}}> ()
    nms_one_index = Constant <value = int64 {{1}}> ()
    nms_axis_1 = Constant <value = int64[1] {{1}}> ()
    nms_axis_2 = Constant <value = int64[1] {{2}}> ()
    nms_none = Constant <value = int64 {{-1}}> ()
    nms_classes = Constant <value = int64 {{{classes}}}> ()
    nms_most = Constant <value = int64[1] {{{most}}}> ()
    nms_iou_thr = Constant <value = float[1] {{{iou_thr}}}> ()
    nms_score_thr = Constant <value = float[1] {{{score_thr}}}> ()

    # Clipped to the image: (height, width) -> (width, height, width, height).
    nms_order = Constant <value = int64[4] {{1, 0, 1, 0}}> ()
    nms_limits = Gather <axis = 1> ({image_sizes}, nms_order)
    nms_limit = Unsqueeze (nms_limits, nms_axis_1)
    nms_positive = Max (candidate_boxes, nms_zero)
    nms_clipped = Min (nms_positive, nms_limit)

    # The survivors' scores at their places, all others 0.
    nms_above = Greater (candidate_scores, nms_score_thr)
    nms_thresholded = Where (nms_above, candidate_scores, nms_zero)
    nms_by_class = Transpose <perm = [0, 2, 1]> (nms_thresholded)
    nms_selected = NonMaxSuppression (nms_clipped, nms_by_class, nms_most, nms_iou_thr, nms_score_thr)
    nms_survivors = GatherND (nms_by_class, nms_selected)
    nms_empty = Mul (nms_by_class, nms_zero)
    nms_kept = ScatterND (nms_empty, nms_selected, nms_survivors)

    # The best of each image; zeros are appended, since there may be fewer scores than detections are wanted.
    nms_by_row = Transpose <perm = [0, 2, 1]> (nms_kept)
    nms_flat_shape = Constant <value = int64[2] {{0, -1}}> ()
    nms_flat = Reshape (nms_by_row, nms_flat_shape)
    nms_pads = Constant <value = int64[4] {{0, 0, 0, {most}}}> ()
    nms_padded = Pad (nms_flat, nms_pads)
    scores, nms_best = TopK <axis = 1> (nms_padded, nms_most)
    nms_is_found = Greater (scores, nms_zero)
    nms_row_or_beyond = Div (nms_best, nms_classes)
    nms_class = Mod (nms_best, nms_classes)
    labels = Where (nms_is_found, nms_class, nms_none)
    nms_row = Where (nms_is_found, nms_row_or_beyond, nms_zero_index)
    nms_row_3 = Unsqueeze (nms_row, nms_axis_2)
    nms_four = Constant <value = int64[3] {{1, 1, 4}}> ()
    nms_rows = Expand (nms_row_3, nms_four)
    nms_boxes = GatherElements <axis = 1> (nms_clipped, nms_rows)
    nms_is_found_3 = Unsqueeze (nms_is_found, nms_axis_2)
    boxes = Where (nms_is_found_3, nms_boxes, nms_zero)
    nms_ones = Where (nms_is_found, nms_one_index, nms_zero_index)
    counts = ReduceSum <keepdims = 0> (nms_ones, nms_axis_1)
}}
"""
