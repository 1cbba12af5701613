"""The detector as a whole, its registry and its named configurations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import gflv2
from gflv2 import GFLV2, list_models, load_config
from gflv2.checkpoint.official_keys import from_official, to_official
from gflv2.models.detector import SingleStageDetector
from tests.models.fill import on_meta, without_gradient

OFFICIAL = {
    "gflv2_r50_fpn_1x": (41.0, 41.1, 19.4),
    "gflv2_r50_fpn_ms2x": (43.9, 44.4, 19.4),
    "gflv2_r101_fpn_ms2x": (45.8, 46.0, 14.6),
    "gflv2_r101_dcn_fpn_ms2x": (48.0, 48.2, 12.7),
    "gflv2_x101_dcn_fpn_ms2x": (48.8, 49.0, 10.7),
    "gflv2_r2n101_dcn_fpn_ms2x": (49.9, 50.5, 10.9),
}
OURS = {"gflv2_r18_fpn_1x", "gflv2_r50_dcn_fpn_ms2x", "gflv2_lite0", "gflv2_nanodet_m"}
OURS |= {"atss_r50_fpn_1x", "atss_r101_fpn_1x", "gflv1_r50_fpn_1x", "gflv1_r50_fpn_ms2x", "gflv1_r101_fpn_ms2x"}
OURS |= {"gflv1_r101_dcn_fpn_ms2x", "gflv1_x101_fpn_ms2x", "gflv1_x101_dcn_fpn_ms2x"}


@pytest.fixture(scope="module")
def lite():
    torch.manual_seed(0)
    return GFLV2("gflv2_lite0", num_classes=3)


def batch():
    torch.manual_seed(1)
    boxes = [torch.tensor([[10.0, 12, 70, 60], [40, 20, 120, 90]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)]
    return torch.randn(2, 3, 96, 128), boxes, labels, [(96, 128), (96, 96)]


def test_registry():
    assert set(list_models()) >= set(OFFICIAL) | OURS
    assert list_models("*dcn*") == sorted(name for name in list_models() if "dcn" in name)
    with pytest.raises(FileNotFoundError, match="gflv2_r50_fpn_1x"):
        GFLV2("gflv2_r50_fpn_1y")


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) | OURS))
def test_every_named_model_builds(name):
    model = on_meta(lambda: GFLV2(name))
    assert model.config.name == name
    assert model.config.model.num_classes == len(model.class_names) == 80
    trains = [p for p in model.parameters() if p.requires_grad]
    assert len(trains) > 0
    assert model.neck.lateral_convs[0].conv.in_channels == model.backbone.feature_info.channels()[0]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_official_recipes(name):
    config = load_config(name)
    assert (config.authors.ap_minival, config.authors.ap_test_dev, config.authors.fps_2080ti) == OFFICIAL[name]
    assert config.authors.name == name.replace("gflv2", "gfocal")
    twice = name.endswith("ms2x")
    assert config.data.short_side == ([480, 960] if twice else [800, 800])
    assert (config.data.long_side, config.data.test_short_side) == (1333, 800)
    assert (config.train.epochs, config.train.milestones) == ((24, [16, 22]) if twice else (12, [8, 11]))
    train = config.train
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (train.batch_size, train.warmup_iterations, train.clip_grad_norm) == (16, 500, None)
    stages = [] if "dcn" not in name else [3, 4, 5] if "r101" in name else [4, 5]
    assert config.model.backbone.deform.stages == stages and config.model.backbone.deform.version == 1


@pytest.mark.parametrize("name", sorted(OURS))
def test_nobody_elses_numbers_on_our_models(name):
    assert set(dataclasses.astuple(load_config(name).authors)) == {None}


def test_mmdets_recipes():
    for name in list_models("gflv1_*") + list_models("atss_*"):
        config = load_config(name)
        twice = name.endswith("ms2x")
        assert config.data.short_side == ([480, 800] if twice else [800, 800]), name
        assert (config.train.epochs, config.train.milestones) == ((24, [16, 22]) if twice else (12, [8, 11]))
        stages = [] if "dcn" not in name else [3, 4, 5] if "r101" in name else [4, 5]
        assert config.model.backbone.deform.stages == stages and config.model.backbone.deform.version == 1
        assert config.model.head.kind == ("atss" if name.startswith("atss") else "gfl")
        assert config.model.head.kind == "atss" or config.model.head.quality is None


def test_loss_and_gradients(lite):
    images, boxes, labels, sizes = batch()
    lite.train()
    losses = lite.loss(images, boxes, labels, sizes)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in lite.parameters() if p.requires_grad)
    assert not without_gradient(lite)
    lite.zero_grad()


def test_batch_without_boxes_reaches_every_parameter(lite):
    """A rank whose images have no boxes must take part in the gradient exchange of every parameter."""
    images, _, _, sizes = batch()
    losses = lite.train().loss(images, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, sizes)
    assert losses["loss_giou"] == 0 and losses["loss_dfl"] == 0 and losses["loss_qfl"] > 0
    sum(losses.values()).backward()
    assert not without_gradient(lite)
    assert all(torch.isfinite(p.grad).all() for p in lite.parameters() if p.requires_grad)
    lite.zero_grad()


@pytest.mark.parametrize("name", ["gflv1_r50_fpn_1x", "atss_r50_fpn_1x"])
def test_ablations_without_boxes(name):
    small = {"model__backbone__name": "resnet18", "model__neck__channels": 32, "model__head__channels": 32}
    model = GFLV2(name, num_classes=2, model__head__stacked_convs=1, model__head__gn_groups=4, **small).train()
    losses = model.loss(torch.randn(1, 3, 64, 64), [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)], [(64, 64)])
    sum(losses.values()).backward()
    assert not without_gradient(model)


def test_detect(lite):
    images, *_ = batch()
    lite.eval()
    found = lite.detect(images, [(96, 120), (80, 96)], torch.full((2, 2), 0.5), score_thr=0.0, max_detections=7)
    assert [len(image.boxes) for image in found] == [7, 7]
    for image, (height, width) in zip(found, [(96, 120), (80, 96)], strict=True):
        assert image.boxes.amax(0).tolist() <= [2 * width, 2 * height] * 2
        assert image.labels.dtype == torch.int64 and not image.scores.requires_grad
    nothing = lite.detect(images, score_thr=0.9)
    assert [tuple(image.boxes.shape) for image in nothing] == [(0, 4), (0, 4)]
    # The settings of the configuration are the defaults.
    lite.config.test.max_detections, before = 3, lite.config.test.max_detections
    lite.config.test.score_thr, threshold = 0.0, lite.config.test.score_thr
    assert len(lite.detect(images)[0].boxes) == 3
    lite.config.test.max_detections, lite.config.test.score_thr = before, threshold


def test_training_mode_keeps_batch_norm_in_eval(lite):
    lite.train()
    assert lite.bbox_head.training and not lite.backbone.bn1.training
    before = lite.backbone.bn1.running_mean.clone()
    lite(batch()[0])
    assert torch.equal(lite.backbone.bn1.running_mean, before)


def test_overrides_and_names():
    model = on_meta(lambda: GFLV2("gflv2_r50_fpn_1x", class_names=["cat", "dog"], model__head__reg_topk=2))
    assert model.class_names == ["cat", "dog"] and model.config.model.num_classes == 2
    assert model.bbox_head.reg_conf[0].in_channels == 12
    assert on_meta(lambda: GFLV2("gflv2_lite0", num_classes=2)).class_names == ["class 0", "class 1"]
    assert on_meta(lambda: GFLV2("gflv2_lite0")).class_names[:2] == ["person", "bicycle"]
    assert gflv2.GFLV2 is GFLV2


def test_hierarchical_transformer():
    """timm's Swin returns (B, H, W, C)."""
    options = {"model__backbone__name": "swin_tiny_patch4_window7_224", "model__backbone__out_indices": [1, 2, 3]}
    model = GFLV2("gflv2_lite0", num_classes=2, **options).eval()
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 224, 224))
    assert [tuple(c.shape) for c in output.class_logits[:3]] == [(1, 2, 28, 28), (1, 2, 14, 14), (1, 2, 7, 7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "config: expected"),
        ({"config": "gflv2_lite0", "num_classes": 3, "class_names": ["a"]}, "class_names: expected 3"),
        ({"config": "gflv2_lite0", "num_classes": 0}, "num_classes"),
        ({"config": "gflv2_lite0", "model__head__strides": [4, 8, 16, 32, 64]}, r"head.strides: expected \[8, 16, 32"),
        ({"config": "gflv2_lite0", "model__head__kind": "fcos"}, "head.kind"),
        ({"config": "gflv2_lite0", "model__head__colour": 1}, "colour"),
        ({"config": "atss_r50_fpn_1x", "legacy": True}, "legacy_background"),
        ({"config": "gflv2_lite0", "weights": "x.pth", "pretrained": True}, "pretrained"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        on_meta(lambda: GFLV2(**arguments))


def test_wrong_images(lite):
    with pytest.raises(ValueError, match=r"images: expected a tensor of shape \(\*, 3, \*, \*\)"):
        lite(torch.zeros(3, 64, 64))
    with pytest.raises(TypeError, match="images"):
        lite(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_layout_of_res2net_stem():
    keys = ["backbone.conv1.3.weight", "backbone.bn1.running_var", "backbone.layer1.0.bn1.weight", "neck.x"]
    theirs = ["backbone.stem.3.weight", "backbone.stem.7.running_var", *keys[2:]]
    assert [to_official(key, "res2net101d") for key in keys] == theirs
    assert [from_official(key, "res2net101d") for key in theirs] == keys
    assert [to_official(key, "resnet50") for key in keys] == keys
    assert [from_official(key, "res2net101_26w_4s") for key in keys] == keys


def test_the_facade_adds_no_tensor_to_the_module_that_is_trained():
    torch.manual_seed(0)
    plain = SingleStageDetector(load_config("gflv2_lite0", {"model.num_classes": 3}), class_names=["a", "b"])
    torch.manual_seed(0)
    facade = GFLV2("gflv2_lite0", num_classes=3)
    ours, theirs = facade.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert plain.class_names == ["class 0", "class 1", "class 2"], "two names do not fit three classes"
    assert type(facade.train(False)) is GFLV2
