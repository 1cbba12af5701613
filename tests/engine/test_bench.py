"""`gflv2 bench`: what it counts, not how fast anything is."""

from __future__ import annotations

import json

import pytest
import torch

from gflv2 import GFLV2
from gflv2.cli import main
from gflv2.engine.bench import bench


def test_counts_and_sizes() -> None:
    model = GFLV2("gflv2_lite0", num_classes=3)
    result = bench(model, image_size=(40, 64), batch_size=2, seconds=0)
    assert result.image_size == (64, 64), "padded to 32"
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < result.trained <= result.parameters
    assert result.calls == 5 and 0 < result.latency <= result.latency_95
    assert result.images_per_second == 2 / result.latency
    text = str(result)
    assert "2 images of 64 × 64" in text and "gflv2_lite0" in text


def test_command_line(tmp_path, capsys) -> None:
    path = tmp_path / "numbers" / "bench.json"
    arguments = ["gflv2_lite0", "--size", "64", "96", "--seconds", "0", "--precision", "bf16", "--channels-last"]
    assert main(["bench", *arguments, "--json", str(path), "--model.num_classes", "2", "--device", "cpu"]) == 0
    numbers = json.loads(path.read_text())
    assert numbers["image_size"] == [64, 96] and numbers["precision"] == "bf16" and numbers["device"].startswith("cpu")
    assert "images/second" in capsys.readouterr().out


def test_weights_of_a_file(tmp_path) -> None:
    model = GFLV2("gflv2_lite0", num_classes=2)
    torch.nn.init.constant_(model.bbox_head.gfl_cls.bias, 3.0)  # everything scores above the threshold
    path = model.save(tmp_path / "model.pt")
    options = ["--size", "64", "64", "--seconds", "0", "--device", "cpu", "--json", str(tmp_path / "bench.json")]
    for arguments in ([str(path)], ["gflv2_lite0", "--weights", str(path)]):
        assert main(["bench", *arguments, *options]) == 0
        numbers = json.loads((tmp_path / "bench.json").read_text())
        assert numbers["config"] == "gflv2_lite0" and 0 < numbers["detections"] <= 100


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"precision": "8"}, "precision"),
        ({"batch_size": 0}, "batch_size"),
        ({"image_size": (0, 64)}, "image_size"),
        ({"seconds": -1.0}, "seconds"),
    ],
)
def test_errors_name_the_argument(arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        bench(GFLV2("gflv2_lite0"), **arguments)
