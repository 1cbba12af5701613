"""What becomes of the entries of a file and of a model."""

from __future__ import annotations

import logging
import math
import re

import pytest
import timm
import torch
import torchvision

from gflv2 import GFLV2
from gflv2.checkpoint import COCO_NAMES, CheckpointError, interpret, load_weights, save
from tests.checkpoint.checkpoint_files import NARROW, TINY, equal, mmcv_file, official, tiny, weights

CLASS_KEYS = {"bbox_head.gfl_cls.weight", "bbox_head.gfl_cls.bias"}
NAMES = ["a", "b", "c", "d", "e"]


def without(state, *parts):
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def test_background_channel_is_sliced_off_by_default(caplog):
    source, model = tiny(), tiny(seed=1)
    file = mmcv_file(official(weights(source)), NAMES)
    with caplog.at_level(logging.INFO, logger="gflv2"):
        report = load_weights(model, interpret(file))
    assert equal(model.state_dict(), source.state_dict())
    assert report.fresh == [] and len(report.loaded) == len(model.state_dict())
    assert report.class_names == NAMES
    assert "6 → 5 channels" in caplog.text


def test_background_channel_is_kept_in_legacy_mode():
    state = official(weights(tiny()))
    model = tiny(seed=1, legacy=True)
    load_weights(model, interpret(mmcv_file(state, NAMES)))
    assert equal(model.state_dict(), state)
    assert len(model.state_dict()["bbox_head.gfl_cls.bias"]) == 6


def test_legacy_model_gets_a_silent_channel_from_a_file_without_one():
    source, legacy = tiny(), tiny(seed=1, legacy=True)
    load_weights(legacy, interpret(mmcv_file(weights(source), NAMES)))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain, extended = source.eval()(images), legacy.eval()(images)
        scores, more = source.bbox_head.joint_scores(plain), legacy.bbox_head.joint_scores(extended)
    for a, b in zip(scores, more, strict=True):
        assert torch.equal(a, b[:, :5])
        assert (b[:, 5] == 0).all()
    options = {"score_thr": 0.0, "iou_thr": 0.6, "max_detections": 50}
    for a, b in zip(
        source.bbox_head.detect(plain, **options), legacy.bbox_head.detect(extended, **options), strict=True
    ):
        assert len(a.boxes) > 0
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("names", [NAMES, None])
def test_other_class_count_restarts_the_class_convolution_alone(names):
    source, model = tiny(), tiny(seed=1, num_classes=2)
    torch.nn.init.constant_(model.bbox_head.gfl_cls.bias, 7.0)
    with pytest.warns(UserWarning, match="5 classes, the model 2: bbox_head.gfl_cls starts fresh"):
        report = load_weights(model, interpret(mmcv_file(official(weights(source)), names)))
    assert set(report.fresh) == CLASS_KEYS
    assert equal(without(model.state_dict(), "gfl_cls"), without(source.state_dict(), "gfl_cls"))
    head = model.bbox_head.gfl_cls
    assert torch.allclose(head.bias, torch.full((2,), -math.log(99)))
    assert 0.005 < head.weight.std() < 0.015
    assert torch.sigmoid(head.bias[0]).item() == pytest.approx(0.01)


def test_channels_are_not_taken_for_background_where_the_names_say_otherwise():
    source = tiny(num_classes=6)  # six real classes, in a file of a program that adds no channel
    model = tiny(seed=1)
    with pytest.warns(UserWarning, match="6 classes, the model 5"):
        load_weights(model, interpret(mmcv_file(weights(source), [*NAMES, "f"])))
    with pytest.warns(UserWarning, match="taken to be the authors' background"):
        load_weights(model, interpret(weights(source)))
    assert torch.equal(model.bbox_head.gfl_cls.bias, source.bbox_head.gfl_cls.bias[:5])


def test_gflv1_file_starts_a_v2_model():
    source = tiny("gflv1_r50_fpn_1x")
    model = tiny(seed=1)
    before = weights(model)
    with pytest.warns(UserWarning, match="GFLV1 file: the quality predictor bbox_head.reg_conf starts fresh"):
        report = load_weights(model, interpret(mmcv_file(weights(source), NAMES)))
    fresh = {key for key in model.state_dict() if ".reg_conf." in key}
    assert set(report.fresh) == fresh and len(fresh) == 4
    assert equal(without(model.state_dict(), ".reg_conf."), source.state_dict())
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in fresh)


def test_v2_file_does_not_fit_a_v1_model():
    with pytest.raises(CheckpointError) as caught:
        load_weights(tiny("gflv1_r50_fpn_1x"), interpret(weights(tiny())))
    assert "4 not in the model: bbox_head.reg_conf.0.weight (64, 20, 1, 1)" in str(caught.value)
    assert "model.head.quality = 'statistics', the model None" in str(caught.value)


def test_mismatch_lists_keys_and_shapes_and_changes_nothing():
    model = tiny()
    before = weights(model)
    state = weights(tiny(seed=1))
    del state["neck.fpn_convs.0.conv.bias"]
    state["bbox_head.other.weight"] = torch.ones(2, 3)
    state["bbox_head.gfl_reg.weight"] = torch.ones(32, 8, 3, 3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, interpret(state))
    message = str(caught.value)
    assert "1 missing in the file: neck.fpn_convs.0.conv.bias (8,)" in message
    assert "1 not in the model: bbox_head.other.weight (2, 3)" in message
    assert "1 of another shape: bbox_head.gfl_reg.weight file (32, 8, 3, 3), model (68, 8, 3, 3)" in message
    assert "model.head.reg_max = 7, the model 16" in message
    assert equal(model.state_dict(), before)


def test_long_lists_are_shortened_with_counts():
    with pytest.raises(CheckpointError) as caught:
        load_weights(tiny(), interpret(without(weights(tiny()), "backbone.layer")))
    message = str(caught.value)
    assert "missing in the file: backbone.layer1" in message and "… and " in message
    assert len(message) < 2000


def test_wrong_configuration_is_told_with_the_names_that_fit(tmp_path):
    path = tmp_path / "r101.pth"
    with torch.device("meta"):
        state = GFLV2("gflv2_r101_dcn_fpn_ms2x").state_dict()
    with torch.device("meta"):
        model = GFLV2("gflv2_r50_fpn_1x")
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, interpret(state, str(path)))
    message = str(caught.value)
    assert "model.backbone.name = 'resnet101', the model 'resnet50'" in message
    assert "model.backbone.deform.stages = [3, 4, 5], the model []" in message
    assert "gflv2_r101_dcn_fpn_ms2x" in message


def test_other_detectors_are_refused():
    state = {key.replace("gfl_cls", "retina_cls"): value for key, value in weights(tiny()).items()}
    with pytest.raises(CheckpointError, match="another kind of detector"):
        load_weights(tiny(), interpret(state))


def test_counters_and_bins_may_be_missing():
    source, model = tiny(), tiny(seed=1)
    report = load_weights(model, interpret(without(weights(source), "num_batches_tracked", "integral.project")))
    assert all(key.endswith(("num_batches_tracked", "integral.project")) for key in report.fresh)
    assert torch.equal(model.bbox_head.integral.project, torch.arange(17.0))
    assert equal(without(model.state_dict(), "num_batches"), without(source.state_dict(), "num_batches"))


def test_bins_are_checked():
    state = weights(tiny())
    state["bbox_head.integral.project"] = torch.arange(8.0)
    with pytest.raises(CheckpointError, match=r"integral.project file \(8,\), model \(17,\)"):
        load_weights(tiny(), interpret(state))
    state["bbox_head.integral.project"] = torch.arange(17.0) ** 1.5
    model = tiny(seed=1)
    with pytest.warns(UserWarning, match="integral.project is not 0 … 16"):
        load_weights(model, interpret(state))
    assert torch.equal(model.bbox_head.integral.project, torch.arange(17.0) ** 1.5)


def test_half_precision_file_fills_a_float_model():
    state = {key: value.half() if value.is_floating_point() else value for key, value in weights(tiny()).items()}
    model = tiny(seed=1)
    load_weights(model, interpret(state))
    loaded = model.state_dict()
    assert all(loaded[key].dtype == torch.float32 for key in state if state[key].is_floating_point())
    assert all(torch.equal(loaded[key], state[key].to(loaded[key].dtype)) for key in state)


def test_meta_model_takes_the_tensors_of_the_file():
    source = tiny()
    with torch.device("meta"):
        model = GFLV2("gflv2_r50_fpn_1x", num_classes=5, **TINY)
    load_weights(model, interpret(weights(source)))
    assert equal(model.state_dict(), source.state_dict())
    frozen = {name for name, parameter in source.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in model.named_parameters() if not parameter.requires_grad} != set()


# ---- backbones alone -----------------------------------------------------------------------------------------------


def test_torchvision_backbone():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None)
    model = GFLV2("gflv2_r18_fpn_1x", **NARROW)
    neck = weights(model.neck)
    report = load_weights(model, interpret(resnet.state_dict()))
    assert equal(model.backbone.state_dict(), without(resnet.state_dict(), "fc."))
    assert equal(model.neck.state_dict(), neck)
    assert set(report.dropped) == {"backbone.fc.weight", "backbone.fc.bias"}
    assert all(not key.startswith("backbone.") for key in report.fresh)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_timm_backbones_with_their_classifiers(name):
    torch.manual_seed(0)
    whole = timm.create_model(name).state_dict()
    options = {**TINY, "model__backbone__name": name, "model__backbone__frozen_stages": 0}
    if name == "test_convnext":
        options["model__backbone__out_indices"] = [1, 2, 3]
    model = GFLV2("gflv2_r50_fpn_1x", **options)
    load_weights(model, interpret(whole))
    loaded = model.backbone.state_dict()
    for key, value in loaded.items():
        source = key if key in whole else key.replace("_", ".", 1)
        assert torch.equal(value, whole[source]), key


def test_plain_backbone_starts_a_deformable_one():
    torch.manual_seed(0)
    with torch.device("meta"):
        state = timm.create_model("resnet50").state_dict()
    state = {
        key: torch.rand(value.shape) if value.is_floating_point() else torch.tensor(0) for key, value in state.items()
    }
    model = GFLV2("gflv2_r50_dcn_fpn_ms2x", **NARROW)
    report = load_weights(model, interpret(state))
    fresh = [key for key in report.fresh if key.startswith("backbone.") and "num_batches" not in key]
    assert fresh and all(".conv_offset." in key for key in fresh)
    assert all(not model.state_dict()[key].any() for key in fresh)
    assert torch.equal(model.backbone.layer3[0].conv2.weight, state["layer3.0.conv2.weight"])


def test_res2net_backbone_under_both_names_of_its_stem():
    with torch.device("meta"):
        state = timm.create_model("res2net101d").state_dict()
        model = GFLV2("gflv2_r2n101_dcn_fpn_ms2x", **NARROW)
        authors = GFLV2("gflv2_r2n101_dcn_fpn_ms2x", **NARROW)
    theirs = {re.sub("^conv1", "stem", re.sub("^bn1", "stem.7", key)): value for key, value in state.items()}
    assert "stem.7.weight" in theirs and "stem.0.weight" in theirs
    for weights_, net in ((state, model), (theirs, authors)):
        fresh = load_weights(net, interpret(weights_)).fresh
        assert all(".conv_offset." in key for key in fresh if key.startswith("backbone."))


def test_wrong_backbone_is_named():
    with torch.device("meta"):
        state = timm.create_model("resnet101").state_dict()
        model = GFLV2("gflv2_r50_fpn_1x")
    with pytest.raises(CheckpointError, match="does not fit the backbone(.|\n)*'resnet101', the model 'resnet50'"):
        load_weights(model, interpret(state))
    with pytest.raises(CheckpointError, match="missing in the file"):
        load_weights(tiny(), interpret(without(timm.create_model("test_resnet").state_dict(), "layer3.")))


def test_backbone_alone_needs_a_configuration(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="a backbone alone; name the detector"):
        GFLV2(weights=tmp_path / "backbone.pth")


# ---- building a model for a file -----------------------------------------------------------------------------------


# A structure that follows from keys alone: the authors' backbone, and 32 norm groups, which leave no trace in them.
PLAIN = {"model__backbone__name": "resnet18", "model__head__channels": 32, "model__head__gn_groups": 32}


def official_file(folder, names=NAMES, classes=5):
    source = tiny("gflv2_r18_fpn_1x", num_classes=classes, **PLAIN)
    path = folder / "official.pth"
    torch.save(mmcv_file(official(weights(source)), names), path)
    return source, path


def test_official_file_alone_gives_model_and_names(tmp_path):
    source, path = official_file(tmp_path)
    for model in (GFLV2(path), GFLV2(weights=path)):
        assert model.class_names == NAMES
        assert equal(model.state_dict(), source.state_dict())
        assert model.config.model.backbone.name == "resnet18"


def test_official_file_in_legacy_mode(tmp_path):
    source, path = official_file(tmp_path)
    model = GFLV2(weights=path, legacy=True)
    assert model.bbox_head.legacy_background
    assert equal(model.state_dict(), official(source.state_dict()))


def test_coco_names_where_a_file_of_80_classes_has_none(tmp_path):
    _, path = official_file(tmp_path, names=None, classes=80)
    assert GFLV2(weights=path).class_names == list(COCO_NAMES)
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == 80


def test_the_file_decides_the_classes_unless_the_user_does(tmp_path):
    source = tiny()
    source.class_names = list(NAMES)
    path = save(source, tmp_path / "mine.pth")
    options = dict(TINY)
    model = GFLV2("gflv2_r50_fpn_1x", weights=path, **options)
    assert model.class_names == NAMES and equal(model.state_dict(), source.state_dict())
    for given in ({"num_classes": 2}, {"class_names": ["x", "y"]}, {"model__num_classes": 2}):
        with pytest.warns(UserWarning, match="5 classes, the model 2"):
            model = GFLV2("gflv2_r50_fpn_1x", weights=path, **{**options, **given})
        assert model.config.model.num_classes == 2
        assert model.class_names == (["x", "y"] if "class_names" in given else ["class 0", "class 1"])
    with pytest.warns(UserWarning, match="5 classes, the model 3"):
        model = GFLV2({"base": "gflv2_r50_fpn_1x", "model": {"num_classes": 3}}, weights=path, **options)
    assert model.config.model.num_classes == 3
    model = GFLV2("gflv2_r50_fpn_1x", weights=path, class_names=list("vwxyz"), **options)
    assert model.class_names == list("vwxyz") and equal(model.state_dict(), source.state_dict())
