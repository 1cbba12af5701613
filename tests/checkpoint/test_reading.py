"""Reading files: every layout gives the same tensors, and no file runs code."""

from __future__ import annotations

import collections
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch

from gflv2.checkpoint import CheckpointError, interpret, read
from tests.checkpoint.checkpoint_files import (
    RAN,
    ConfigDict,
    equal,
    mmcv_file,
    mmengine_file,
    save_with_foreign_classes,
)

NAMES = ["cat", "dog"]
BOTH_FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])


def detector_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "backbone.conv1.weight": (4, 3, 3, 3),
        "backbone.bn1.num_batches_tracked": (),
        "neck.lateral_convs.0.conv.weight": (4, 4, 1, 1),
        "bbox_head.gfl_cls.weight": (3, 4, 3, 3),
        "bbox_head.gfl_cls.bias": (3,),
        "bbox_head.reg_conf.0.weight": (64, 20, 1, 1),
        "bbox_head.scales.0.scale": (),
    }
    state = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(5)
    return state


def with_prefix(state, prefix):
    return {prefix + key: value for key, value in state.items()}


LAYOUTS = {
    "bare": lambda s: ("weights", s),
    "data parallel": lambda s: ("weights", with_prefix(s, "module.")),
    "mmcv": lambda s: ("mmcv", mmcv_file(s, NAMES)),
    "mmcv data parallel": lambda s: ("mmcv", mmcv_file(with_prefix(s, "module."), NAMES)),
    "torch.compile": lambda s: ("weights", {"model": with_prefix(s, "_orig_mod.")}),
    "compiled part": lambda s: ("weights", {k.replace("backbone.", "backbone._orig_mod."): v for k, v in s.items()}),
    "lightning": lambda s: (
        "lightning",
        {"pytorch-lightning_version": "2.5", "state_dict": {**with_prefix(s, "model."), "metric.total": torch.ones(1)}},
    ),
    "parameters": lambda s: (
        "weights",
        {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    ),
    "mmdet 3": lambda s: (
        "mmengine",
        {"meta": {"dataset_meta": {"CLASSES": NAMES}}, "state_dict": {**s, "data_preprocessor.mean": torch.ones(3)}},
    ),
}


@BOTH_FORMATS
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_give_the_same_state(name, zipped, tmp_path):
    state = detector_state()
    layout, content = LAYOUTS[name](state)
    path = tmp_path / "file.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read(path)
    assert checkpoint.layout == layout
    assert equal(checkpoint.state, state)
    assert checkpoint.class_names == (NAMES if layout in ("mmcv", "mmengine") else None)
    assert not any(value.requires_grad for value in checkpoint.state.values())
    assert checkpoint.is_detector and checkpoint.has_quality


@BOTH_FORMATS
def test_mmengine_training_file_is_read_with_inert_stand_ins(zipped, tmp_path):
    state = detector_state()
    path = tmp_path / "epoch_1.pth"
    save_with_foreign_classes(lambda: mmengine_file(state, NAMES), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):  # the premise: PyTorch alone refuses it
        torch.load(path, weights_only=True)
    RAN.clear()
    averaged = read(path)
    trained = read(path, ema=False)
    assert RAN == []
    assert averaged.layout == "mmengine" and averaged.class_names == NAMES
    assert equal(averaged.state, state)
    assert equal(trained.state, {key: value + 1 for key, value in state.items()})
    assert "averaged" in averaged.notes[0] and "being trained" in trained.notes[0]
    with pytest.raises(pickle.UnpicklingError):  # and nothing stays allowed afterwards
        torch.load(path, weights_only=True)


@BOTH_FORMATS
def test_configuration_objects_are_read_as_plain_dictionaries(zipped, tmp_path):
    state = detector_state()

    def content():
        config = ConfigDict(model=ConfigDict(type="GFL"), lr=0.01)
        counts = collections.defaultdict(list, x=[1])
        meta = {"CLASSES": NAMES, "cfg": config, "counts": counts, "folder": pathlib.Path("/somewhere")}
        return {"meta": meta, "state_dict": state}

    path = tmp_path / "file.pth"
    save_with_foreign_classes(content, path, _use_new_zipfile_serialization=zipped)
    RAN.clear()
    checkpoint = read(path)
    assert RAN == []
    assert equal(checkpoint.state, state) and checkpoint.class_names == NAMES


def test_averaged_weights_of_each_program():
    state = detector_state()
    average = {key: value + 1 for key, value in state.items()}
    shadows = {"ema_" + key.replace(".", "_"): value for key, value in state.items()}
    files = {
        "timm": {"state_dict": state, "state_dict_ema": average},
        "mmcv buffers": {"meta": {"epoch": 1}, "state_dict": {**average, **shadows}},
        "lightning": {
            "pytorch-lightning_version": "2.6",
            "state_dict": with_prefix(average, "model."),
            "current_model_state": with_prefix(state, "model."),
        },
        "two copies": {"state_dict": {**with_prefix(state, "model."), **with_prefix(average, "ema_model.module.")}},
        "copy inside": {"state_dict": {**state, **with_prefix(average, "model_ema.")}},
    }
    for name, content in files.items():
        assert equal(interpret(content).state, average), name
        assert equal(interpret(content, ema=False).state, state), name
        assert "averaged" in " ".join(interpret(content).notes), name


def test_two_detectors_without_a_choice_are_an_error():
    state = detector_state()
    content = {**with_prefix(state, "first."), **with_prefix(state, "second.")}
    with pytest.raises(CheckpointError, match="several detectors.*first.*second"):
        interpret(content)


def test_old_names_of_offset_convolutions_are_renewed():
    state = {
        "backbone.layer2.0.conv2.weight": torch.ones(1),
        "backbone.layer2.0.conv2_offset.weight": torch.full((1,), 2.0),
        "backbone.layer2.0.conv2_offset.bias": torch.full((1,), 3.0),
        "backbone.layer3.0.convs.1_offset.weight": torch.full((1,), 4.0),
        "backbone.layer4.0.conv2.conv_offset.weight": torch.full((1,), 5.0),
        "bbox_head.gfl_cls.weight": torch.ones(1),
    }
    renewed = interpret(state).state
    assert renewed["backbone.layer2.0.conv2.conv_offset.weight"] == 2
    assert renewed["backbone.layer2.0.conv2.conv_offset.bias"] == 3
    assert renewed["backbone.layer3.0.convs.1.conv_offset.weight"] == 4
    assert renewed["backbone.layer4.0.conv2.conv_offset.weight"] == 5
    assert len(renewed) == len(state)


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": ("a", "b")}, ["a", "b"]),
        ({"CLASSES": ["a"]}, ["a"]),
        ({"CLASSES": "ball"}, ["ball"]),
        ({"CLASSES": None}, None),
        ({"CLASSES": [1, 2]}, None),
        ({"dataset_meta": {"classes": ("a",)}}, ["a"]),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ["a"]),
        ({"dataset_meta": {}}, None),
        ({"dataset_meta": None}, None),
    ],
)
def test_class_names(meta, names):
    assert interpret({"meta": meta, "state_dict": detector_state()}).class_names == names


def test_backbone_alone_gets_its_prefix():
    bare = {"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    for content in (bare, with_prefix(bare, "module."), {"state_dict": with_prefix(bare, "module.model.")}):
        checkpoint = interpret(content)
        assert set(checkpoint.state) == {"backbone.conv1.weight", "backbone.fc.weight"}
        assert not checkpoint.is_detector


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = detector_state()
    save_file(with_prefix(state, "module."), tmp_path / "file.safetensors")
    assert equal(read(tmp_path / "file.safetensors").state, state)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all..")
    with pytest.raises(CheckpointError, match="broken.safetensors is not a readable safetensors file"):
        read(tmp_path / "broken.safetensors")


# ---- refusals ------------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker: pathlib.Path) -> dict[str, tuple[object, str]]:
    """Objects that would create ``marker`` when unpickled, and the global that the refusal must name."""
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": (Attack(os.system, f"touch {marker}"), "system"),
        "eval": (Attack(eval, touch), "eval"),
        "exec": (Attack(exec, touch), "exec"),
        "numpy": (Attack(np.save, str(marker), [1]), "numpy.save"),
        "path method": (Attack(pathlib.Path.touch, marker), ""),
        # getattr is on the list of harmless names, since its stand-in does nothing: what it returns cannot be called.
        "getattr": (Attack(getattr, marker, "touch"), ""),
        "called getattr": (CalledResult(marker), ""),
    }


class CalledResult:
    """getattr(path, "touch")() as a pickle would spell it: REDUCE on the result of a REDUCE."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (_Bound(self.marker), ())


class _Bound:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (getattr, (self.marker, "touch"))

    def __call__(self):
        raise AssertionError("only pickled, never called")


@BOTH_FORMATS
@pytest.mark.parametrize("name", ["system", "eval", "exec", "numpy", "path method", "called getattr"])
def test_code_in_a_file_is_refused_and_not_run(name, zipped, tmp_path):
    marker = tmp_path / "ran"
    attack, named = attacks(marker)[name]
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": detector_state(), "meta": attack}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert not marker.exists()
    message = str(caught.value)
    assert str(path) in message and "refused" in message and named in message
    assert "weights only" in message and "torch.save" in message  # what to do
    assert "`weights_only`" not in message and "trusted source" not in message  # not PyTorch's advice to switch it off


def test_getattr_in_a_file_does_nothing(tmp_path):
    marker = tmp_path / "ran"
    attack, _ = attacks(marker)["getattr"]
    path = tmp_path / "odd.pth"
    torch.save({"state_dict": detector_state(), "meta": attack}, path)
    assert equal(read(path).state, detector_state())
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (pickle.dumps({"model": {"a": np.zeros(3)}}, protocol=4), "plain Python pickle"),
        (b"PK\x03\x04 cut off", "cannot be read as a PyTorch checkpoint"),
        (b"some text", "some.pth"),
    ],
)
def test_other_files_are_named_for_what_they_are(content, expected, tmp_path):
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        read(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "file.pth"
    for zipped in (True, False):
        torch.save(mmcv_file(detector_state()), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:-700])
        with pytest.raises(CheckpointError, match="truncated|cannot be read"):
            read(path)


def test_new_pickle_protocol_says_what_to_do(tmp_path):
    path = tmp_path / "file.pth"
    torch.save(mmcv_file(detector_state()), path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match="pickle protocol.*default protocol"):
        read(path)


def test_missing_file_and_address():
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read("nowhere.pth")
    with pytest.raises(FileNotFoundError, match="download the file first"):
        read("https://example.org/r50.pth")


def test_files_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="holds a list"):
        interpret([torch.ones(1)])
    with pytest.raises(CheckpointError, match="no state_dict; its entries are epoch, optimizer"):
        interpret({"epoch": 1, "optimizer": {}})
    path = tmp_path / "arrays.pth"
    torch.save({"state_dict": {"conv1.weight": np.zeros(3), "bn1.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match="1 entries are arrays or objects, not tensors: conv1.weight"):
        read(path)
