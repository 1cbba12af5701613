"""`gflv2 val` and `gflv2 predict` on an exported file, and the stand-alone example of the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gflv2.cli import main
from gflv2.engine.analysis import analyze
from gflv2.engine.export import OnnxDetector

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "onnx_example.py"


def numbers(file: Path) -> dict:
    return json.loads(file.read_text())


def test_val_gives_the_same_numbers(weights: Path, open_file: Path, sample_set, tmp_path: Path) -> None:
    found = {}
    for kind, source in (("torch", weights), ("onnx", open_file)):
        file = tmp_path / f"{kind}.json"
        line = ["val", str(source), "--data", str(sample_set.val), "--json", str(file), "--no-progress"]
        assert main([*line, "--batch-size", "2", "--test.score_thr", "0.15"]) == 0
        found[kind] = numbers(file)
    assert found["onnx"]["detections"] == found["torch"]["detections"] > 10
    assert found["onnx"]["AP"] == pytest.approx(found["torch"]["AP"], abs=5e-4)


def test_predict_writes_the_same_detections(weights: Path, open_file: Path, sample_set, tmp_path: Path, capsys) -> None:
    found = {}
    for kind, source in (("torch", weights), ("onnx", open_file)):
        line = ["predict", str(sample_set.val_images), "--weights", str(source), "--no-progress"]
        assert main([*line, "--output", str(tmp_path / kind)]) == 0
        found[kind] = numbers(tmp_path / kind / "detections.json")
    assert len(list((tmp_path / "onnx").glob("*.jpg"))) == len(found["onnx"]["images"]) == 4
    rows = [found[kind]["annotations"] for kind in ("torch", "onnx")]
    assert len(rows[0]) == len(rows[1]) > 10
    for mine, theirs in zip(*rows, strict=True):
        assert mine["category_id"] == theirs["category_id"]
        assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=2e-3)
        assert mine["score"] == pytest.approx(theirs["score"], abs=2e-5)
    assert main([*line, "--distributions"]) == 2
    assert "distributions: an exported file gives none" in capsys.readouterr().err


def test_the_example_needs_onnxruntime_and_numpy_only(open_file: Path, sample_set, tmp_path: Path) -> None:
    image = sorted((sample_set.val_images).iterdir())[0]
    assert main(["predict", str(image), "--weights", str(open_file), "--output", str(tmp_path), "--no-progress"]) == 0
    # Neither this package nor torch can be imported there; Pillow reads the picture.
    code = "import sys, runpy; sys.modules['torch'] = sys.modules['gflv2'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    line = [sys.executable, "-c", code, str(EXAMPLE), str(open_file), str(image), "0.1"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    names = {row["id"]: row["name"] for row in numbers(tmp_path / "detections.json")["categories"]}
    expected = numbers(tmp_path / "detections.json")["annotations"]
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == len(expected) > 3
    for (name, score, *box), row in zip(found, expected, strict=True):
        x, y, width, height = row["bbox"]
        assert name == names[row["category_id"]] and float(score) == pytest.approx(row["score"], abs=2e-3)
        assert [float(side) for side in box] == pytest.approx([x, y, x + width, y + height], abs=0.3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output", "a.onnx", "--format", "torch"], "--output: expected a file that ends in .pt2 for --format torch"),
        (["--output", "a.txt"], "--output: expected a file that ends in .onnx or .pt2, got a.txt"),
        (["--raw", "--nms"], "argument --nms: not allowed with argument --raw"),
        (["--size", "100", "64"], "image_size: expected multiples of 32"),
        (["--precision", "int8"], "data: expected a data set to calibrate on with precision int8"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str, weights: Path, capsys) -> None:
    assert main(["export", str(weights), *arguments]) == 2
    assert "gflv2 export: error: " + message in capsys.readouterr().err


def test_an_exported_file_sees_each_image_once(open_file: Path, sample_set, tmp_path: Path, capsys) -> None:
    """Views that its configuration asks for are said and left out; views that the command asks for are refused."""
    import onnx

    from gflv2.engine.export import onnx_file

    proto = onnx.load(str(open_file))
    texts = {entry.key: entry.value for entry in proto.metadata_props}
    config = json.loads(texts["config"])
    config["test"]["tta"] = {"flip": True, "scales": [0.5, 1.0]}
    onnx_file.set_metadata(proto, {**texts, "config": json.dumps(config)})
    file = tmp_path / "views.onnx"
    onnx.save(proto, str(file))
    found = []
    for source in (open_file, file):
        line = ["val", str(source), "--data", str(sample_set.val), "--no-progress"]
        assert main([*line, "--json", str(tmp_path / "numbers.json")]) == 0
        found.append(numbers(tmp_path / "numbers.json"))
    assert found[0] == found[1] and found[0]["detections"] > 10
    said = capsys.readouterr().err
    assert said.count("views.onnx sees each image once: test.tta of the model") == 1
    assert main([*line, "--test.tta.flip", "true"]) == 2
    assert "test.tta.flip: an exported file sees each image once" in capsys.readouterr().err


def test_verbs_that_look_inside_refuse_an_exported_file(open_file: Path, capsys) -> None:
    for arguments in (["analyze", str(open_file), "x.json"], ["view", str(open_file), "--no-browser"]):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"gflv2 {arguments[0]}: error: weights: {open_file} is an ")
    detector = OnnxDetector(open_file)
    with pytest.raises(TypeError, match="model: expected a GFLV2, .* got OnnxDetector"):
        analyze(detector, "x.json")
    pytest.importorskip("flask", reason="the extra view is not installed")
    from gflv2.engine.view import make_app

    with pytest.raises(TypeError, match="model: expected a GFLV2, .* got OnnxDetector"):
        make_app(detector)


def test_a_configuration_with_an_exported_file_is_refused(open_file: Path, capsys) -> None:
    assert main(["predict", "x.jpg", "--weights", str(open_file), "--config", "gflv2_lite0"]) == 2
    assert "--config: expected none with" in capsys.readouterr().err
