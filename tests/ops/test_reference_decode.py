"""`decode` and `batched_nms`: selection, ties, clipping, thresholds, the unused background class."""

from __future__ import annotations

import sys

import pytest
import torch

from gflv2 import ops
from tests.ops.random_head import STRIDES, RandomHead


def run(head: RandomHead, **changes) -> ops.Decoded:
    cls, box, options = head.arguments()
    with torch.no_grad():
        return ops.decode(cls, box, **{**options, **changes})


def joint(head: RandomHead) -> torch.Tensor:
    cls, box, _ = head.arguments()
    quality = ops.dgqp(box, *head.layers, scales=head.scales, topk=3).sigmoid()
    flat = torch.cat([level.flatten(2).transpose(1, 2) for level in cls], 1)
    return (flat.sigmoid() * quality[..., None]).detach()


def test_small_levels_keep_raster_order() -> None:
    head = RandomHead()
    decoded = run(head, score_thr=0.0)
    assert torch.equal(decoded.points, torch.arange(30).expand(2, 30))
    torch.testing.assert_close(decoded.scores, joint(head))
    boxes = ops.integral(head.box_logits, head.projection, scales=head.scales, strides=STRIDES).detach()
    torch.testing.assert_close(decoded.boxes, boxes)
    assert decoded.distributions is None and not decoded.legacy_background


def test_large_levels_are_sorted() -> None:
    head = RandomHead()
    decoded = run(head, score_thr=0.0, pre_topk=6, return_distributions=True)
    assert decoded.boxes.shape == (2, 12, 4) and decoded.distributions.shape == (2, 12, 4, 6)
    best = joint(head)
    first = best[:, :24].amax(-1).sort(dim=1, descending=True).indices[:, :6]
    assert torch.equal(decoded.points[:, :6], first)
    assert torch.equal(decoded.points[:, 6:], torch.arange(24, 30).expand(2, 6))  # six cells: raster order
    whole = run(head, score_thr=0.0)
    rows = decoded.points[..., None]
    torch.testing.assert_close(decoded.boxes, whole.boxes.gather(1, rows.expand(-1, -1, 4)))
    torch.testing.assert_close(decoded.scores, whole.scores.gather(1, rows.expand(-1, -1, 3)))
    distances = (decoded.distributions * head.projection.detach()).sum(-1)
    widths = decoded.boxes[..., 2] - decoded.boxes[..., 0]
    strides = torch.tensor([8.0] * 6 + [16.0] * 6)
    torch.testing.assert_close(widths, (distances[..., 0] + distances[..., 2]) * strides)


def test_of_equal_scores_the_lower_point_comes_first() -> None:
    cls = [torch.zeros(1, 2, 5, 5)]
    cls[0][0, 1, 3, 2] = 1.0
    box = [torch.zeros(1, 16, 5, 5)]
    decoded = ops.decode(cls, box, strides=[8], pre_topk=7)
    assert decoded.points[0].tolist() == [17, 0, 1, 2, 3, 4, 5]


def test_threshold_is_strict_and_counts_rows() -> None:
    cls = [torch.full((1, 2, 2, 2), -10.0)]
    cls[0][0, 0, 0, 0] = 0.0  # J = 0.5 exactly
    cls[0][0, 1, 1, 1] = 1.0
    box = [torch.zeros(1, 16, 2, 2)]
    decoded = ops.decode(cls, box, strides=[8], score_thr=0.5)
    assert decoded.counts.tolist() == [1] and (decoded.scores > 0).sum() == 1
    decoded = ops.decode(cls, box, strides=[8], score_thr=0.49)
    assert decoded.counts.tolist() == [2]
    assert decoded.counts.dtype == decoded.points.dtype == torch.int64


@pytest.mark.parametrize("as_tensor", [False, True])
def test_boxes_are_clipped_then_divided(as_tensor: bool) -> None:
    head = RandomHead()
    sizes, factors = [(20, 30), (11, 48)], [(2.0, 0.5), (1.0, 3.0)]
    if as_tensor:
        sizes, factors = torch.tensor(sizes), torch.tensor(factors)
    plain, found = run(head).boxes, run(head, image_sizes=sizes, scale_factors=factors).boxes
    for image, (height, width) in enumerate([(20, 30), (11, 48)]):
        x, y = [(2.0, 0.5), (1.0, 3.0)][image]
        torch.testing.assert_close(found[image][:, 0::2], plain[image][:, 0::2].clamp(0, width) / x)
        torch.testing.assert_close(found[image][:, 1::2], plain[image][:, 1::2].clamp(0, height) / y)


def test_offset_moves_the_points() -> None:
    head = RandomHead()
    a, b = run(head).boxes, run(head, offset=0.5).boxes
    shift = torch.cat([torch.full((24,), 4.0), torch.full((6,), 8.0)])[:, None].expand(30, 4)
    torch.testing.assert_close(b - a, shift.expand(2, 30, 4), rtol=0, atol=1e-4)


def test_without_quality_and_with_given_quality() -> None:
    head = RandomHead()
    flat = torch.cat([level.flatten(2).transpose(1, 2) for level in head.class_logits], 1).sigmoid().detach()
    torch.testing.assert_close(run(head, predictor=None, score_thr=0.0).scores, flat)
    r = torch.randn(2, 30)
    found = run(head, predictor=None, quality_logits=r, score_thr=0.0).scores
    torch.testing.assert_close(found, flat * r.sigmoid()[..., None])


def test_float64() -> None:
    decoded = run(RandomHead(dtype=torch.float64))
    assert decoded.boxes.dtype == decoded.scores.dtype == torch.float64


def candidates(boxes: list[list[float]], scores: list[list[float]], legacy: bool = False) -> ops.Decoded:
    boxes, scores = torch.tensor([boxes]), torch.tensor([scores])
    rows = torch.arange(boxes.shape[1])[None]
    return ops.Decoded(boxes, scores, rows, (scores > 0).any(-1).sum(1), None, legacy)


def test_nms_is_class_wise_and_strict() -> None:
    # Boxes 0 and 1 have IoU 0.5 exactly, boxes 0 and 2 more.
    boxes = [[0.0, 0, 4, 1], [0, 0, 2, 1], [0, 0, 3.9, 1], [50, 50, 60, 60]]
    scores = [[0.9, 0.0], [0.8, 0.0], [0.7, 0.6], [0.0, 0.5]]
    (found,) = ops.batched_nms(candidates(boxes, scores), iou_thr=0.5)
    pairs = list(zip(found.rows.tolist(), found.labels.tolist(), strict=True))
    assert pairs == [(0, 0), (1, 0), (2, 1), (3, 1)]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.6, 0.5]))
    torch.testing.assert_close(found.boxes[2], torch.tensor(boxes[2]))
    (found,) = ops.batched_nms(candidates(boxes, scores), iou_thr=0.49, score_thr=0.5)
    assert list(zip(found.rows.tolist(), found.labels.tolist(), strict=True)) == [(0, 0), (2, 1)]


def crowd(classes: int, size: float, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes in groups that overlap, their scores (two of them equal) and classes, the first and the last among them."""
    draw = torch.Generator().manual_seed(seed)
    centre = size * torch.rand(count // 8 + 1, 2, generator=draw).repeat_interleave(8, 0)[:count]
    side = 4 + 30 * torch.rand(count, 2, generator=draw)
    centre = centre + 6 * torch.rand(count, 2, generator=draw)
    labels = torch.tensor([0, classes // 2, classes - 1])[torch.randint(0, 3, (count,), generator=draw)]
    scores = torch.rand(count, generator=draw)
    scores[count // 2] = scores[0]
    return torch.cat([centre - side / 2, centre + side / 2], 1), scores, labels


@pytest.mark.parametrize("threshold", [0.3, 0.6])
@pytest.mark.parametrize("size", [100.0, 1333.0, 1e4, 1e6])
@pytest.mark.parametrize("classes", [1, 80, 1203, 20_000])
@pytest.mark.parametrize("calls", ["one", "one a class"])
def test_nms_is_that_of_each_class_alone(
    calls: str, classes: int, size: float, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any size and number of classes: moving the classes apart in float32 would round the boxes."""
    from torchvision.ops import nms

    monkeypatch.setitem(sys.modules["gflv2.ops.decode"]._ONE_CALL, False, 266 if calls == "one" else 265)
    boxes, scores, labels = crowd(classes, size, 266, seed=classes)
    of_points = torch.zeros(1, 266, classes)
    of_points[0, torch.arange(266), labels] = scores
    decoded = ops.Decoded(boxes[None], of_points, torch.arange(266)[None], torch.tensor([266]))
    (found,) = ops.batched_nms(decoded, iou_thr=threshold, max_detections=None)
    survivors = []
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        survivors.append(rows[nms(boxes[rows], scores[rows], threshold)])
    want = torch.cat(survivors).sort().values
    want = want[scores[want].sort(descending=True, stable=True).indices]
    assert 0 < len(want) < 266
    assert torch.equal(found.rows, want)
    assert torch.equal(found.labels, labels[want]) and torch.equal(found.boxes, boxes[want])


def test_zero_area_boxes_survive() -> None:
    (found,) = ops.batched_nms(candidates([[3.0, 3, 3, 9], [5, 5, 5, 5], [5, 5, 5, 5]], [[0.9], [0.8], [0.7]]))
    assert found.rows.tolist() == [0, 1, 2]


def test_the_unused_class_fills_slots_before_it_is_dropped() -> None:
    boxes = [[float(20 * k), 0.0, float(20 * k + 10), 10.0] for k in range(4)]
    scores = [[0.2, 0.9], [0.3, 0.8], [0.4, 0.1], [0.5, 0.0]]
    (found,) = ops.batched_nms(candidates(boxes, scores, legacy=True), max_detections=3)
    assert found.rows.tolist() == [3] and found.labels.tolist() == [0]
    (found,) = ops.batched_nms(candidates(boxes, scores), max_detections=3)
    assert found.labels.tolist() == [1, 1, 0]
    (found,) = ops.batched_nms(candidates(boxes, scores, legacy=True), max_detections=None)
    assert found.rows.tolist() == [3, 2, 1, 0]


def test_nothing_above_the_threshold() -> None:
    (found,) = ops.batched_nms(candidates([[0.0, 0, 1, 1]], [[0.0]]))
    assert found.boxes.shape == (0, 4) and found.labels.shape == (0,) and found.rows.dtype == torch.int64


def test_the_legacy_class_counts_in_the_selection() -> None:
    """max J over C + 1 channels chooses the points."""
    cls = [torch.full((1, 3, 2, 2), -5.0)]
    cls[0][0, 2, 1, 0] = 4.0  # the unused class is best at point 2
    cls[0][0, 0, 0, 1] = 1.0
    decoded = ops.decode(cls, [torch.zeros(1, 16, 2, 2)], strides=[8], pre_topk=1, legacy_background=True)
    assert decoded.points.tolist() == [[2]] and decoded.legacy_background
    (found,) = ops.batched_nms(decoded)
    assert len(found.boxes) == 0


class Exported(torch.nn.Module):
    """A decoder alone, as an exported model ends in it."""

    def __init__(self, head: RandomHead) -> None:
        super().__init__()
        self.scales = torch.nn.Parameter(head.scales.detach())
        self.layers = torch.nn.ParameterList(layer.detach() for layer in head.layers)

    def forward(self, *levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        predictor = ops.Predictor(*self.layers, topk=3)
        options = {"strides": STRIDES, "scales": self.scales, "predictor": predictor, "pre_topk": 10}
        return ops.decode(levels[:2], levels[2:], **options)[:3]


@pytest.mark.parametrize("kind", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports(kind: str, tmp_path) -> None:
    head = RandomHead()
    levels = tuple(level.detach().clone() for level in [*head.class_logits, *head.box_logits])
    levels[0][0, :, 1] = 0.5  # ties between points of one row: none of the order is left open
    levels[2][0, :, :, :] = 0.0
    model = Exported(head).eval()
    expected = [tensor.detach() for tensor in model(*levels)]
    if kind == "torch":
        found = torch.export.export(model, levels).module()(*levels)
    else:
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        file = str(tmp_path / "decode.onnx")
        torch.onnx.export(model, levels, dynamo=True, verbose=False).save(file)
        program = runtime.InferenceSession(file)
        inputs = {node.name: level.numpy() for node, level in zip(program.get_inputs(), levels, strict=True)}
        found = [torch.from_numpy(array) for array in program.run(None, inputs)]
    assert torch.equal(found[2], expected[2])
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_exports_for_any_batch_and_size() -> None:
    """Also where a level has fewer cells than the top-k, whose k is a constant of the graph."""
    head = RandomHead()
    levels = tuple(level.detach().clone() for level in [*head.class_logits, *head.box_logits])
    model = Exported(head).eval()
    dim = torch.export.Dim
    batch, sizes = dim("batch", max=64), [[dim(f"{side}{level}", max=64) for side in "hw"] for level in range(2)]
    dims = [{0: batch, 2: sizes[level][0], 3: sizes[level][1]} for level in (0, 1, 0, 1)]
    program = torch.export.export(model, levels, dynamic_shapes=(tuple(dims),)).module()
    generator = torch.Generator().manual_seed(1)
    for count, shapes in ((1, [(5, 7), (3, 3)]), (4, [(2, 3), (2, 2)])):
        other = [torch.randn(count, c, *shape, generator=generator) for c in (3, 24) for shape in shapes]
        boxes, scores, points = program(*other)
        expected = [tensor.detach() for tensor in model(*other)]
        assert boxes.shape == (count, 20, 4)
        rows = [h * w for h, w in shapes]
        for image in range(count):
            for level, kept in enumerate(min(n, 10) for n in rows):
                start, first = 10 * level, level * min(rows[0], 10)
                theirs = [tensor[image, first : first + kept] for tensor in expected]
                mine = [tensor[image, start : start + kept] for tensor in (boxes, scores, points)]
                for a, b in zip(mine, theirs, strict=True):  # one of both may keep raster order
                    torch.testing.assert_close(a[mine[2].argsort()], b[theirs[2].argsort()])
                assert not scores[image, start + kept : start + 10].any()
