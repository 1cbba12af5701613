"""The three commands of the quick start: weights by name, detection on a photograph, the same boxes from ONNX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import of_test, run
from tests.shared import data


@pytest.mark.slow
def test_weights_by_name_a_photograph_and_the_same_boxes_from_onnx(tmp_path: Path, monkeypatch, capsys) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra export is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GFLV2_WEIGHTS_MIRROR", data("nanodet_m").as_uri())
    monkeypatch.chdir(tmp_path)
    shutil.copy(data("coco_mini") / "images" / "000000000790.jpg", "photo.jpg")
    names: dict = {}
    shell, python = of_test(__file__)
    run(shell, names)
    found = [json.loads(Path(folder, "detections.json").read_text()) for folder in ("predictions", "exported")]
    assert all(Path(folder, "photo.jpg").is_file() for folder in ("predictions", "exported"))
    assert found[0]["categories"] == found[1]["categories"] and found[0]["categories"][-1]["id"] == 90
    assert len(found[0]["annotations"]) == len(found[1]["annotations"]) > 50
    for ours, theirs in zip(*(content["annotations"] for content in found), strict=True):
        assert ours["category_id"] == theirs["category_id"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.02)
    assert "no --weights: predicting with those of gflv2_nanodet_m" in capsys.readouterr().err
    run(python, names)
    assert names["difference"] < 0.01 and "person" in names["ours"].names
    assert names["ours"].labels.tolist() == names["exported"].labels.tolist()
    assert "person" in capsys.readouterr().out
