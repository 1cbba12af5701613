"""`atss` against an independent brute force in NumPy, and its rules one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gflv2.ops import Assignment, atss
from gflv2.ops.reference import atss as definition
from tests.ops.under_test import backends_of, running

BACKENDS = backends_of("atss")


def brute_force(boxes, labels, shapes, strides, *, topk=9, size=None, ignore=None, iof=0.0, anchor=8.0, offset=0.0):
    """One image, one box and one point at a time; float32 where the rules say float32."""
    f = np.float32
    points, anchors, level_of, valid = [], [], [], []
    for level, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
        rows, columns = (height, width) if size is None else (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        for i in range(height):
            for j in range(width):
                x, y, half = (
                    f((f(j) + f(offset)) * f(stride)),
                    f((f(i) + f(offset)) * f(stride)),
                    f(anchor / 2 * stride),
                )
                points.append((x, y))
                anchors.append((x - half, y - half, x + half, y + half))
                level_of.append(level)
                valid.append(i < rows and j < columns)
    count = len(points)

    def overlap(a, b):
        return f(max(min(a[2], b[2]) - max(a[0], b[0]), f(0))) * f(max(min(a[3], b[3]) - max(a[1], b[1]), f(0)))

    def area(a):
        return f(a[2] - a[0]) * f(a[3] - a[1])

    index, iou = np.zeros(count, np.int64), np.full(count, f(-1e8))
    if not len(boxes):
        return index, np.zeros(count, np.float32), np.full(count, -1)
    ignored = np.zeros(count, bool)
    if ignore is not None and iof > 0:
        for k in range(count):
            share = [overlap(anchors[k], box) / max(area(anchors[k]), f(1e-6)) for box in ignore]
            ignored[k] = valid[k] and any(value > f(iof) for value in share)
    index[ignored] = -1
    for number, box in enumerate(boxes):
        centre = f(f(box[0] + box[2]) * f(0.5)), f(f(box[1] + box[3]) * f(0.5))
        candidates = []
        for level in range(len(shapes)):
            members = [k for k in range(count) if level_of[k] == level and valid[k]]

            def distance(k, centre=centre):
                dx, dy = f(centre[0] - points[k][0]), f(centre[1] - points[k][1])
                return f(1e16) if ignored[k] else f(f(dx * dx) + f(dy * dy))

            candidates += sorted(members, key=lambda k: (distance(k), k))[:topk]
        ious = []
        for k in candidates:
            common = overlap(anchors[k], box)
            ious.append(f(common / max(f(f(area(anchors[k]) + area(box)) - common), f(1e-6))))
        if len(candidates) < 2:
            continue
        exact = [float(value) for value in ious]
        mean = sum(exact) / len(exact)
        threshold = f(mean + math.sqrt(sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)))
        for k, value in zip(candidates, ious, strict=True):
            x, y = points[k]
            inside = min(f(x - box[0]), f(y - box[1]), f(box[2] - x), f(box[3] - y)) > f(0.01)
            if value >= threshold and inside and value > iou[k]:
                index[k], iou[k] = number + 1, value
    assigned = np.array([labels[k - 1] if k > 0 else -1 for k in index])
    return index, iou, assigned


def random_boxes(generator: np.random.RandomState, count: int, height: int, width: int, whole: bool) -> np.ndarray:
    centre = generator.uniform(-20, 1, (count, 2)) + generator.uniform(0, 1, (count, 2)) * [width + 20, height + 20]
    size = np.exp(generator.uniform(0, 5, (count, 2)))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return (np.round(boxes / 4) * 4 if whole else boxes).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(12))
def test_against_brute_force(seed: int, backend: str) -> None:
    """Two images of random boxes; on every second seed whole numbers, full of ties."""
    generator = np.random.RandomState(seed)
    strides = [[8, 16, 32], [8], [16, 32, 64, 128], [8, 20, 50]][seed % 4]
    height, width = generator.randint(40, 150, 2)
    shapes = [(math.ceil(height / s), math.ceil(width / s)) for s in strides]
    sizes = [(int(height), int(width)), (int(generator.randint(20, height)), int(generator.randint(20, width)))]
    options = {
        "topk": [9, 1, 5, 13][generator.randint(4)],
        "anchor": [8.0, 3.0][seed % 2],
        "offset": [0.0, 0.5][generator.randint(2)],
        "iof": 0.4 if seed % 3 == 0 else 0.0,
    }
    images = [random_boxes(generator, count, height, width, seed % 2 == 1) for count in (generator.randint(0, 12), 6)]
    ignores = [random_boxes(generator, 2, height, width, False) for _ in images]
    labels = [generator.randint(0, 5, len(boxes)) for boxes in images]
    with running(backend) as device:
        found = atss(
            [torch.from_numpy(boxes).to(device) for boxes in images],
            [torch.from_numpy(label).to(device) for label in labels],
            shapes,
            strides,
            topk=options["topk"],
            padded_sizes=sizes,
            ignore_boxes=[torch.from_numpy(boxes).to(device) for boxes in ignores],
            ignore_iof_thr=options["iof"],
            anchor_scale=options["anchor"],
            offset=options["offset"],
        )
    for image, (boxes, label) in enumerate(zip(images, labels, strict=True)):
        index, iou, assigned = brute_force(
            boxes, label, shapes, strides, size=sizes[image], ignore=ignores[image], **options
        )
        assert np.array_equal(found.index[image].cpu().numpy(), index)
        assert np.array_equal(found.iou[image].cpu().numpy(), iou)
        assert np.array_equal(found.labels[image].cpu().numpy(), assigned)


def assign(boxes, shapes=((8, 8), (4, 4)), strides=(8, 16), labels=None, anchor_scale=4.0, **options) -> Assignment:
    boxes = [torch.tensor(image, dtype=torch.float32).reshape(-1, 4) for image in boxes]
    if labels is None:
        labels = [torch.arange(len(image)) for image in boxes]
    return atss(boxes, labels, list(shapes), list(strides), anchor_scale=anchor_scale, **options)


def test_one_candidate_gives_no_positive() -> None:
    """The unbiased deviation of one value is undefined."""
    box = [[[-4, -20, 36, 20]]]
    options = {"strides": [16], "anchor_scale": 2.0}
    assert assign(box, shapes=[(1, 3)], **options).index.tolist() == [[0, 1, 0]]
    assert not assign(box, shapes=[(1, 3)], padded_sizes=[(16, 16)], **options).index.any()
    assert not assign(box, shapes=[(1, 1)], **options).index.any()


def test_equal_ious_go_to_the_lower_box() -> None:
    box = [8, 8, 40, 40]
    found = assign([[box, box]])
    assert set(found.index.unique().tolist()) == {0, 1}


def test_a_point_on_the_rim_is_no_positive() -> None:
    """min(l, t, r, b) must exceed 0.01 px: the point (16, 16) is 0.015 or 0.005 px inside."""
    near, on = (assign([[[left, 12, 22, 20]]], anchor_scale=1.0).index[0] for left in (15.985, 15.995))
    assert near.nonzero().flatten().tolist() == [18, 69]  # on both levels
    assert not on.any()


def test_boxes_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.RandomState(0)
    boxes = [random_boxes(generator, count, 64, 64, True) for count in (30, 7, 0)]
    whole = assign(boxes)
    monkeypatch.setattr(definition, "CHUNK", 64 * 3 * 4)
    for a, b in zip(whole, assign(boxes), strict=True):
        assert torch.equal(a, b)


def test_order_of_images_and_boxes() -> None:
    generator = np.random.RandomState(1)
    boxes = [random_boxes(generator, count, 64, 64, False) for count in (9, 4)]
    found, swapped = assign(boxes), assign(boxes[::-1])
    for a, b in zip(found, swapped, strict=True):
        assert torch.equal(a, b.flip(0))
    order = generator.permutation(9)
    shuffled = assign([boxes[0][order]], labels=[torch.from_numpy(order)])
    assert torch.equal(shuffled.labels[0], found.labels[0])  # the label here is the number of the box
    assert torch.equal(shuffled.iou[0], found.iou[0])


def test_no_boxes_at_all() -> None:
    found = assign([[], []])
    assert not found.index.any() and not found.iou.any() and (found.labels == -1).all()
    # Ignore boxes have no effect in an image without boxes, as in the authors' code.
    ignore = [torch.tensor([[-100.0, -100.0, 200.0, 200.0]])] * 2
    found = assign([[], [[8, 8, 40, 40]]], ignore_boxes=ignore, ignore_iof_thr=0.5)
    assert not found.index[0].any() and (found.index[1] != 0).all()


def test_senseless_boxes_do_no_harm() -> None:
    """NaN, inverted, empty and far boxes: nothing positive, nothing read outside, the good box unharmed."""
    good = [8, 8, 40, 40]
    nan = float("nan")
    bad = [
        [nan, nan, nan, nan],
        [40, 40, 8, 8],
        [1e30, 1e30, 2e30, 2e30],
        [5, 5, 5, 5],
        [nan, 0, 9, 9],
    ]
    alone, among = assign([[good]]), assign([[*bad, good]])
    assert torch.equal(alone.index == 1, among.index == 6)
    assert not ((among.index > 0) & (among.index < 6)).any()


def test_many_boxes_in_little_memory() -> None:
    """5000 boxes in a small image: worked off in chunks."""
    boxes = random_boxes(np.random.RandomState(2), 5000, 256, 256, False)
    found = assign([boxes], shapes=[(32, 32), (16, 16), (8, 8)], strides=[8, 16, 32])
    assert 1 < found.index.max() <= 5000


def test_results_have_their_types() -> None:
    found = assign([[[8, 8, 40, 40]]], labels=[torch.tensor([3], dtype=torch.int32)])
    assert [tensor.dtype for tensor in found] == [torch.int64, torch.float32, torch.int64]
    assert set(found.labels.unique().tolist()) == {-1, 3}
