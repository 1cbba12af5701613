"""Test-time augmentation: what its views are, that one view is none, and that a mirrored image gives mirrored boxes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gflv2 import GFLV2
from gflv2.data import CocoDetection, make_loader, shapes
from gflv2.engine import tta
from gflv2.engine.evaluate import evaluate
from gflv2.engine.predict import predict, predict_files

SETTINGS = {
    "model__backbone__name": "tf_efficientnet_lite0",
    "model__neck__channels": 16,
    "model__head__channels": 16,
    "model__head__stacked_convs": 1,
    "model__head__gn_groups": 4,
    "data__long_side": 96,
    "data__short_side": [64, 64],
    "data__test_short_side": 64,
    "data__workers": 0,
    "test__score_thr": 0.0,
    "test__max_detections": 30,
}


@pytest.fixture(scope="module")
def model() -> GFLV2:
    """Random weights that give each class and place another score."""
    torch.manual_seed(0)
    model = GFLV2({}, num_classes=5, class_names=list(shapes.CLASS_NAMES), **SETTINGS).eval()
    with torch.no_grad():
        for parameter in model.bbox_head.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=1, val=4, size=(64, 88))


@pytest.fixture
def views(model):
    """Sets what ``config.test.tta`` asks for, and takes it back."""
    plain = model.config.test.tta.scales, model.config.test.tta.flip

    def ask(scales: list[float], flip: bool = False) -> None:
        model.config.test.tta.scales, model.config.test.tta.flip = scales, flip

    yield ask
    ask(*plain)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (50, 67, 3)).astype(np.uint8)


def same(one, other) -> bool:
    names = ("boxes", "scores", "labels", "distributions", "points", "strides", "levels")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_one_view_or_twice_the_same_is_none(model, views):
    plain = predict(model, picture())
    assert len(plain) > 5 and not model.config.test.tta.active
    views([1.0, 1.0])
    assert model.config.test.tta.active
    assert same(predict(model, picture()), plain)


def test_a_mirrored_image_gives_mirrored_detections(model, views):
    views([1.0], flip=True)
    one, other = (predict(model, image) for image in (picture(), picture()[:, ::-1].copy()))
    assert len(one) == len(other) > 5
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.scores, other.scores)
    x1, y1, x2, y2 = one.boxes.unbind(1)
    torch.testing.assert_close(torch.stack([67 - x2, y1, 67 - x1, y2], 1), other.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.distributions[:, [2, 1, 0, 3]], other.distributions)
    torch.testing.assert_close(67 - one.points[:, 0], other.points[:, 0])
    # The expected position of each side is the box, in mirrored views too.
    for result in (one, other):
        mean = (result.distributions * result.bin_positions()).sum(-1)
        limit = torch.tensor([67.0, 50, 67, 50])
        torch.testing.assert_close(torch.minimum(mean.clamp(min=0), limit), result.boxes, rtol=0, atol=1e-3)


def test_the_views_are_resized_from_the_image_and_share_one_nms(model, views):
    """Each scale alone gives candidates; together they are those of all, thinned out by one class-wise NMS."""
    from torchvision.ops import batched_nms

    model.config.test.max_detections = 10_000
    try:
        alone = []
        for scale in (0.5, 1.0, 1.5):
            views([scale])
            alone.append(predict(model, picture()))
        views([0.5, 1.0, 1.5])
        together = predict(model, picture())
    finally:
        model.config.test.max_detections = 30
    boxes, scores, labels = (torch.cat([getattr(r, n) for r in alone]) for n in ("boxes", "scores", "labels"))
    kept = batched_nms(boxes, scores, labels, model.config.test.iou_thr)
    # What NMS removes in one scale cannot remove another box there that it would remove alone: the best are the same.
    assert torch.equal(together.scores[:5], scores[kept][:5])
    assert torch.equal(together.boxes[:5], boxes[kept][:5])
    seen = [set(result.strides[:, 0].tolist()) for result in (*alone, together)]
    assert seen[3] <= seen[0] | seen[1] | seen[2] and all(seen[3] & own for own in seen[:3])


def test_padding_stays_on_the_right(model):
    from gflv2.data import collate
    from gflv2.data.transforms import preprocess

    images = [torch.from_numpy(picture()).permute(2, 0, 1), torch.from_numpy(picture(1)[:, :40]).permute(2, 0, 1)]
    batch = collate([preprocess(image, model.config.data) for image in images])
    mirrored = tta._mirror(batch)
    for own, seen, (height, width) in zip(batch.images, mirrored, batch.image_sizes, strict=True):
        assert torch.equal(seen[:, :height, :width], own[:, :height, :width].flip(-1))
        assert not seen[:, :, width:].any() and not seen[:, height:].any()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_sees_what_prediction_sees(model, data, views, tmp_path, batch_size):
    views([1.0, 0.75], flip=True)
    file = tmp_path / "found.json"
    result = evaluate(model, data.val, batch_size=batch_size, progress=False, save_detections=file)
    assert result.images == 4
    dataset = CocoDetection(data.val, config=model.config.data, class_names=model.class_names)
    found = json.loads(file.read_text())
    for item, image_id in enumerate(dataset.image_ids):
        own = [row for row in found if row["image_id"] == image_id]
        seen = predict(model, dataset.path(item))
        if batch_size == 1:  # otherwise an image is padded to the size of others
            assert len(own) == len(seen) > 0
            assert [row["score"] for row in own] == pytest.approx(seen.scores.tolist())
        assert {row["category_id"] for row in own} <= set(dataset.category_ids)


def test_a_loader_of_another_order_is_refused(model, data, views):
    views([1.0, 0.75])
    dataset = CocoDetection(data.val, config=model.config.data, class_names=model.class_names)
    loader = make_loader(dataset, 1, train=False)
    turned = torch.utils.data.DataLoader(
        dataset, batch_sampler=[[i] for i in (3, 2, 1, 0)], collate_fn=loader.collate_fn
    )
    with pytest.raises(ValueError, match="test.tta.scales needs a loader in the order of its data set"):
        evaluate(model, turned, progress=False)
    assert evaluate(model, loader, progress=False).images == 4


def test_files_of_detections_have_the_ids_of_the_annotations(model, data, tmp_path):
    ids = [7, "a", 3, 90, 1]
    model.category_ids, before = ids, model.category_ids
    try:
        report = predict_files(model, data.val_images, tmp_path / "out", pictures=False, progress=False)
    finally:
        model.category_ids = before
    content = json.loads(report.json.read_text())
    assert content["categories"] == [{"id": i, "name": n} for i, n in zip(ids, shapes.CLASS_NAMES, strict=True)]
    used = {row["category_id"] for row in content["annotations"]}
    assert used <= set(ids) and len(used) > 1
