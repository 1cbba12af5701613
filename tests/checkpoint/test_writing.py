"""Our own files, and files for other programs."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import pickletools
import zipfile

import pytest
import torch

from gflv2 import GFLV2
from gflv2.checkpoint import CheckpointError, convert, describe_model, interpret, load_weights, read, save
from tests.checkpoint.checkpoint_files import TINY, equal, mmcv_file, official, randomise, tiny, weights
from tests.checkpoint.test_infer import STRUCTURES, golden_state
from tests.shared import golden_cases

NAMES = ["ant", "bee", "cat", "dog", "eel"]
R18 = {"model__backbone__name": "resnet18", "model__head__channels": 32, "model__head__gn_groups": 32}


def named(config="gflv2_r50_fpn_1x", **options) -> GFLV2:
    model = tiny(config, **options)
    model.class_names = NAMES[: model.config.model.num_classes]
    return model


# ---- our own format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "options",
    [
        {"data__mean": [1.0, 2.0, 3.0], "data__std": [4.0, 5.0, 6.0], "train__epochs": 3},
        {"legacy": True},
        {"model__head__quality": "both"},
        {"model__head__kind": "atss", "model__head__loss_weights": [1.0, 2.0, 1.0]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_file_alone_restores_everything(options, ending, tmp_path):
    model = named(**options)
    path = tmp_path / "folder" / f"mine.{ending}"
    model.save(path)
    for restored in (GFLV2(path), GFLV2(weights=read(path))):
        assert restored.class_names == NAMES
        assert dataclasses.asdict(restored.config) == dataclasses.asdict(model.config)
        assert equal(restored.state_dict(), model.state_dict())
    assert os.listdir(path.parent) == [path.name]  # no temporary file is left


def test_own_files_hold_plain_types_only(tmp_path):
    content = torch.load(save(named(), tmp_path / "mine.pth"), weights_only=True)  # no stand-ins here

    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool)

    state = content.pop("state_dict")
    assert plain(content), content
    assert content["format"] == "gflv2" and content["version"] == 1 and content["class_names"] == NAMES
    assert content["config"]["data"]["mean"] == [123.675, 116.28, 103.53]
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in state.values())


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_category_ids_travel_with_the_class_names(ending, tmp_path):
    model = named()
    assert model.category_ids == [1, 2, 3, 4, 5]
    model.category_ids = [2**63 + 1, 0, "three", 90, 7]
    path = save(model, tmp_path / f"mine.{ending}")
    assert GFLV2(path).category_ids == model.category_ids
    assert GFLV2(path, class_names=["v", "w", "x", "y", "z"]).category_ids == [1, 2, 3, 4, 5], "of other classes"
    again = convert(path, tmp_path / f"again.{ending}", "gflv2")
    assert GFLV2(again).category_ids == model.category_ids
    description = {**describe_model(named()), "category_ids": None}
    assert interpret({**description, "state_dict": dict(named().state_dict())}, "old.pth").category_ids is None


def test_the_ids_of_coco_have_its_gaps():
    ids = dict(zip((model := tiny(num_classes=80)).class_names, model.category_ids, strict=True))
    known = {"person": 1, "stop sign": 13, "backpack": 27, "dining table": 67, "toilet": 70, "toothbrush": 90}
    assert {name: ids[name] for name in known} == known and len(set(ids.values())) == 80


@pytest.mark.parametrize("ids", [[1, 2], [1, 1, 2, 3, 4], [1.5, 2, 3, 4, 5], {"a": 1}, [True, 2, 3, 4, 5]])
def test_category_ids_that_do_not_fit_are_refused(ids, tmp_path):
    path = save(named(), tmp_path / "mine.pth")
    torch.save({**torch.load(path, weights_only=True), "category_ids": ids}, path)
    with pytest.raises(CheckpointError, match="mine.pth holds category ids that are not valid: expected 5 different"):
        read(path)


def test_a_file_of_a_later_version_is_refused(tmp_path):
    path = save(named(), tmp_path / "mine.pth")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 2}, path)
    with pytest.raises(CheckpointError, match="format version 2; this gflv2 reads up to 1"):
        read(path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(named(), tmp_path / "mine.pth")
    before = path.read_bytes()

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device.*mine.pth"):
        save(named(seed=1), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["mine.pth"]


def test_a_sliced_tensor_takes_its_own_space_only(tmp_path):
    model = named(**R18)
    torch.save(mmcv_file(official(weights(model)), NAMES), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.pth", "gflv2", background=False)
    content = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    bias = content["bbox_head.gfl_cls.bias"]
    assert bias.untyped_storage().nbytes() == bias.numel() * 4 == 20


def test_other_normalisation_is_told(tmp_path):
    path = save(named(data__mean=[127.5, 127.5, 127.5]), tmp_path / "mine.pth")
    with pytest.warns(UserWarning, match=r"trained with data.mean = \[127.5, 127.5, 127.5\], the configuration has"):
        load_weights(tiny(seed=1), path)
    assert GFLV2("gflv2_r50_fpn_1x", weights=path, **TINY).config.data.mean == [127.5, 127.5, 127.5]


def test_lightning_checkpoint_with_our_description(tmp_path):
    model = named()
    average = {"model." + key: value for key, value in weights(model).items()}
    content = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "state_dict": average,
        "current_model_state": {key: value * 2 for key, value in average.items()},
        "averaging_state": {"n_averaged": torch.tensor(5)},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [],
        "gflv2": describe_model(model),
    }
    torch.save(content, tmp_path / "last.ckpt")
    restored = GFLV2(weights=tmp_path / "last.ckpt")
    assert equal(restored.state_dict(), model.state_dict()) and restored.class_names == NAMES
    with pytest.warns(UserWarning, match="integral.project is not"):  # doubled like everything else
        trained = GFLV2(weights=read(tmp_path / "last.ckpt", ema=False)).state_dict()
    assert torch.equal(trained["bbox_head.gfl_reg.weight"], 2 * model.bbox_head.gfl_reg.weight)


# ---- the authors' layout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("structure_*"))
def test_round_trip_through_the_official_layout(case, tmp_path):
    """Our model → a file with the authors' exact keys, shapes and types → our model, bit for bit."""
    backbone, stages, name = STRUCTURES[case]
    base = name if name != "custom" else "gflv2_r50_fpn_ms2x"
    options = {"model__backbone__name": backbone, "model__backbone__deform__stages": stages}
    with torch.device("meta"):
        model = GFLV2(base, **options)
    model.to_empty(device="cpu")
    for number, value in enumerate(model.state_dict().values()):
        # Cheap, and other for each tensor: the bits are what counts.
        value.copy_(torch.arange(value.numel()).remainder_(1009).add_(number).view(value.shape))
    model.bbox_head.integral.project.copy_(torch.arange(17))
    path = convert(model, tmp_path / "official.pth")
    written = torch.load(path, weights_only=True)
    expected = golden_state(case)
    assert set(written) == {"meta", "state_dict"}
    assert {key: (value.shape, value.dtype) for key, value in written["state_dict"].items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
    with torch.device("meta"):
        again = GFLV2(base, **options)
    report = load_weights(again, path)
    path.unlink()
    assert report.fresh == [] and report.dropped == []
    assert equal(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", ["official", "mmengine"])
def test_background_channel_of_converted_files(layout, tmp_path):
    model = named(**R18)
    path = convert(model, tmp_path / "theirs.pth", layout)
    content = torch.load(path, weights_only=True)
    weight, bias = (content["state_dict"][f"bbox_head.gfl_cls.{name}"] for name in ("weight", "bias"))
    assert torch.equal(weight[:5], model.bbox_head.gfl_cls.weight) and not weight[5].any()
    assert torch.equal(bias[:5], model.bbox_head.gfl_cls.bias)
    assert torch.sigmoid(bias[5]) == 0 and torch.sigmoid(bias[5].double()) == 0 and torch.sigmoid(bias[5].half()) == 0
    meta = content["meta"]
    assert (meta["CLASSES"] if layout == "official" else meta["dataset_meta"]["classes"]) == tuple(NAMES)
    assert zipfile.is_zipfile(path) == (layout == "mmengine")  # the authors' torch may be older than the zip format
    checkpoint = read(path)
    assert checkpoint.layout == ("mmcv" if layout == "official" else "mmengine")
    restored = GFLV2(weights=path)
    assert equal(restored.state_dict(), model.state_dict()) and restored.class_names == NAMES
    assert restored.config.model == model.config.model
    plain = torch.load(convert(model, tmp_path / "plain.pth", layout, background=False), weights_only=True)
    assert len(plain["state_dict"]["bbox_head.gfl_cls.bias"]) == 5


def test_the_authors_trained_channel_survives_a_conversion(tmp_path):
    state = official(weights(named(**R18)))
    torch.save(mmcv_file(state, NAMES), tmp_path / "a.pth")
    assert len(read(convert(tmp_path / "a.pth", tmp_path / "ours.pth", "gflv2")).state["bbox_head.gfl_cls.bias"]) == 5
    convert(tmp_path / "a.pth", tmp_path / "ours.pth", "gflv2", background=True)
    convert(tmp_path / "ours.pth", tmp_path / "b.pth", "official")
    assert equal(torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"], state)
    restored = GFLV2(weights=tmp_path / "ours.pth")
    assert restored.bbox_head.legacy_background and restored.class_names == NAMES


def test_gflv1_is_written_without_background(tmp_path):
    model = named("gflv1_r50_fpn_1x", **R18)
    content = torch.load(convert(model, tmp_path / "v1.pth"), weights_only=True)
    assert equal(content["state_dict"], model.state_dict())
    assert equal(GFLV2(weights=tmp_path / "v1.pth").state_dict(), model.state_dict())


def test_what_loading_tolerates_is_written_in_full(tmp_path):
    model = named(**R18)
    state = {k: v for k, v in weights(model).items() if "num_batches" not in k and "project" not in k}
    torch.save(mmcv_file(state, NAMES), tmp_path / "a.pth")
    written = torch.load(convert(tmp_path / "a.pth", tmp_path / "b.pth"), weights_only=True)["state_dict"]
    assert set(written) == set(model.state_dict())
    assert torch.equal(written["bbox_head.integral.project"], torch.arange(17.0))
    assert written["backbone.bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_bare_tensors(ending, tmp_path):
    model = named()
    path = convert(model, tmp_path / f"bare.{ending}", "state_dict")
    assert equal(read(path).state, model.state_dict())
    assert read(path).layout == "weights"
    other = tiny(seed=1)
    load_weights(other, path)
    assert equal(other.state_dict(), model.state_dict())


def test_a_bare_file_needs_its_configuration_to_become_ours(tmp_path):
    model = named()
    convert(model, tmp_path / "bare.pth", "state_dict")
    with pytest.raises(CheckpointError, match="do not tell its backbone"):
        convert(tmp_path / "bare.pth", tmp_path / "ours.pth", "gflv2")
    convert(tmp_path / "bare.pth", tmp_path / "ours.pth", "gflv2", config=model.config)
    restored = GFLV2(weights=tmp_path / "ours.pth")
    assert equal(restored.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "no backbone 'test_resnet'"),
        ({**R18, "model__head__depthwise": True}, "no depthwise"),
        ({**R18, "model__head__quality": "cls"}, "no quality from 'cls'"),
        ({**R18, "model__head__composition": "composed"}, "in the form 'composed'"),
        ({**R18, "model__head__add_variance": True}, "no statistics but the top k"),
        ({**R18, "model__head__kind": "atss", "model__head__loss_weights": [1.0, 2.0, 1.0]}, "no head 'atss'"),
    ],
)
def test_what_the_authors_code_does_not_know_is_refused(options, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        convert(named(**options), tmp_path / "theirs.pth")
    assert os.listdir(tmp_path) == []


def test_wrong_requests(tmp_path):
    model = named(**R18)
    with pytest.raises(ValueError, match="layout: expected one of 'official', 'mmengine', 'gflv2', 'state_dict'"):
        convert(model, tmp_path / "x.pth", "onnx")
    with pytest.raises(CheckpointError, match="is a .pth file, got x.safetensors"):
        convert(model, tmp_path / "x.safetensors", "official")
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="a backbone alone"):
        convert(tmp_path / "backbone.pth", tmp_path / "x.pth")


def test_converted_files_ask_for_tensors_only(tmp_path):
    """The authors' program unpickles by name: nothing of this package may be named in the file."""
    path = convert(named(**R18), tmp_path / "theirs.pth")
    stream, names = io.BytesIO(path.read_bytes()), set()
    for _ in range(4):  # the old torch format: magic number, version, system, then the content
        names |= {argument for opcode, argument, _ in pickletools.genops(stream) if opcode.name == "GLOBAL"}
    assert "torch._utils _rebuild_tensor_v2" in names
    assert names <= {
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch LongStorage",
        "collections OrderedDict",
    }


def test_random_models_differ():
    """The premise of the comparisons above: a wrong copy would show."""
    a, b = tiny(), randomise(tiny(), seed=1)
    same = [key for key, value in a.state_dict().items() if torch.equal(value, b.state_dict()[key])]
    assert all("num_batches" in key or "project" in key for key in same)
    assert interpret(a.state_dict()).is_detector
