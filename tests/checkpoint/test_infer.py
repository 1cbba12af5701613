"""What keys and shapes tell about a configuration."""

from __future__ import annotations

import pytest
import timm
import torch

from gflv2 import GFLV2
from gflv2.checkpoint import CheckpointError, infer_config, interpret
from gflv2.checkpoint.infer import backbone_name, split_class_channels
from gflv2.config import load_config
from tests.checkpoint.checkpoint_files import NARROW, TINY, mmcv_file, official
from tests.shared import golden, golden_cases

STRUCTURES = {
    "structure_r50": ("resnet50", [], "gflv2_r50_fpn_1x"),
    "structure_r101": ("resnet101", [], "gflv2_r101_fpn_ms2x"),
    "structure_r101_dcn": ("resnet101", [3, 4, 5], "gflv2_r101_dcn_fpn_ms2x"),
    "structure_x101_dcn": ("resnext101_32x4d", [4, 5], "gflv2_x101_dcn_fpn_ms2x"),
    "structure_x101_nodcn": ("resnext101_32x4d", [], "custom"),
    "structure_r2n101_dcn": ("res2net101d", [4, 5], "gflv2_r2n101_dcn_fpn_ms2x"),
    "structure_r2n101_nodcn": ("res2net101d", [], "custom"),
}


def on_meta(config, **options) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return GFLV2(config, **options).state_dict()


def golden_state(case: str) -> dict[str, torch.Tensor]:
    entries = golden(case).meta["state_dict"]
    return {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in entries.items()
    }


@pytest.mark.parametrize("case", golden_cases("structure_*"))
def test_authors_structures(case):
    config = infer_config(golden_state(case))
    backbone, stages, name = STRUCTURES[case]
    assert config.model.backbone.name == backbone
    assert config.model.backbone.deform.stages == stages
    assert config.name == name
    assert (config.model.num_classes, config.model.head.legacy_background) == (80, True)


@pytest.mark.parametrize(
    "name",
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x4d resnext101_64x4d resnext101_32x8d "
    "wide_resnet50_2 res2net50_26w_4s res2net101_26w_4s res2net50d res2net101d".split(),
)
def test_backbones_by_their_keys(name):
    with torch.device("meta"):
        state = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).state_dict()
    assert backbone_name({"backbone." + key: value for key, value in state.items()}) == name


def test_unknown_backbones_are_not_guessed():
    for name in ("resnet50d", "tf_efficientnet_lite0", "resnet50c", "res2net50_14w_8s"):
        if timm.is_model(name):
            with torch.device("meta"):
                state = timm.create_model(name).state_dict()
            assert backbone_name({"backbone." + key: value for key, value in state.items()}) is None, name
    state = on_meta("gflv2_lite0")
    with pytest.raises(CheckpointError, match="do not tell its backbone; give the configuration"):
        infer_config(state)
    assert infer_config(state, "gflv2_lite0").model == load_config("gflv2_lite0").model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 3},
        {"model__head__reg_max": 7},
        {"model__head__reg_topk": 8},
        {"model__head__reg_topk": 1},
        {"model__head__reg_channels": 16},
        {"model__head__quality": None},
        {"model__head__quality": "reg"},
        {"model__head__quality": "both"},
        {"model__head__composition": "composed"},
        {"model__head__kind": "atss", "model__head__loss_weights": [1.0, 2.0, 1.0]},
        {"model__head__stacked_convs": 2, "model__head__channels": 96, "model__neck__channels": 64},
        {"model__head__depthwise": True, "model__neck__depthwise": True},
        {"model__neck__levels": 4, "model__head__strides": [8, 16, 32, 64]},
    ],
    ids=lambda options: ",".join(f"{k.split('__')[-1]}={v}" for k, v in options.items()) or "default",
)
def test_every_option_that_shows_in_shapes_is_found(options):
    with torch.device("meta"):
        model = GFLV2("gflv2_r18_fpn_1x", **options)
    want, have = model.config.model, infer_config(model.state_dict()).model
    want.head.loss_weights = have.head.loss_weights  # no trace in the weights
    want.backbone.pretrained = have.backbone.pretrained
    assert have == want


@pytest.mark.parametrize("version", [1, 2])
def test_version_of_deformable_convolution(version):
    options = {"model__backbone__deform__stages": [4], "model__backbone__deform__version": version}
    state = on_meta("gflv2_r50_fpn_1x", **options, **NARROW)
    deform = infer_config(state).model.backbone.deform
    assert (deform.stages, deform.version) == ([4], version)
    odd = next(key for key in state if key.endswith("conv_offset.weight"))
    state[odd] = torch.empty(36, *state[odd].shape[1:], device="meta")
    with pytest.raises(CheckpointError, match="18 .version 1. or 27 .version 2.*36"):
        infer_config(state)


def test_base_decides_what_shapes_leave_open():
    # Eight inputs: the largest probability and the mean, or the two largest.
    state = on_meta("gflv2_r18_fpn_1x", model__head__reg_topk=2, model__head__add_mean=False)
    head = infer_config(state).model.head
    assert (head.reg_topk, head.add_mean) == (1, True)
    head = infer_config(state, {"model": {"head": {"reg_topk": 2, "add_mean": False}}}).model.head
    assert (head.reg_topk, head.add_mean) == (2, False)
    state = on_meta("gflv2_r18_fpn_1x", model__head__quality="cls")
    assert infer_config(state).model.head.quality == "reg"
    assert infer_config(state, {"model": {"head": {"quality": "cls"}}}).model.head.quality == "cls"


def channels(count: int, *, quality: bool = True, **meta) -> dict:
    state = {"bbox_head.gfl_cls.weight": torch.empty(count, 1, 1, 1)}
    if quality:
        state["bbox_head.reg_conf.0.weight"] = torch.empty(64, 20, 1, 1)
    return mmcv_file(state, **meta) if meta else state


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (channels(81), (80, True)),
        (channels(80), (80, False)),
        (channels(6), (6, False)),  # bare: as likely ours as theirs
        (channels(6, names=None), (5, True)),  # mmcv: the authors' code, which always has the extra channel
        (channels(6, names="abcde"), (5, True)),
        (channels(5, names="abcde"), (5, False)),
        (channels(9, names="abcde"), (8, True)),  # names of something else
        (channels(80, quality=False, names=None), (80, False)),
        (channels(5, quality=False, names=None), (5, False)),
    ],
)
def test_class_channels(content, expected):
    assert split_class_channels(interpret(content)) == expected


def test_files_that_are_no_detector_of_this_family():
    with pytest.raises(CheckpointError, match="a backbone alone"):
        infer_config({"conv1.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="another kind of detector"):
        infer_config({"bbox_head.retina_cls.weight": torch.ones(1), "backbone.conv1.weight": torch.ones(1)})


def test_extra_class_channel_in_a_whole_file():
    with torch.device("meta"):
        state = GFLV2("gflv2_r18_fpn_1x", num_classes=3, **NARROW).state_dict()
    state = {key: torch.empty(value.shape) for key, value in state.items() if "bbox_head" in key or "neck" in key}
    config = infer_config(
        interpret(mmcv_file(official(state), ["a", "b", "c"])), {"model": {"backbone": {"name": "resnet18"}}}
    )
    assert (config.model.num_classes, config.model.head.legacy_background) == (3, True)
    assert config.model.head.channels == TINY["model__head__channels"]
