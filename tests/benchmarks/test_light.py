"""The benchmarks of the light recipe: the predictor's start, and the step on a CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import light_step, predictor_start
from benchmarks.harness import table
from gflv2.data import shapes
from gflv2.nn.quality import QualityPredictor


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_units_are_counted():
    predictor = QualityPredictor(2, 3)
    with torch.no_grad():
        predictor[0].weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [1, 0]])[:, :, None, None])
        predictor[0].bias.copy_(torch.tensor([0.5, 0, -1]))
    rows = torch.tensor([[0.5, 0.0], [2.0, 0.0]])
    assert predictor_start.units_of(predictor, rows) == (3, 1, 1)


@pytest.mark.parametrize("trained", [False, True], ids=["replayed", "trained"])
def test_starts_are_compared(trained, tmp_path):
    shapes.generate(tmp_path / "shapes", seed=1, train=16, val=2, size=64)
    file = tmp_path / "start.csv"
    arguments = ["--data", str(tmp_path / "shapes"), "--short-side", "64", "64", "--random", "--epochs", "1"]
    arguments += ["--starts", "normal", "hinge", "--seeds", "0", "--output", str(file)]
    predictor_start.main(arguments + ["--trained"] * trained)
    rows = table.read(file, predictor_start.COLUMNS)
    assert len(rows) == (2 if trained else 4) and all(row["units"] == "64" and row["steps"] == "2" for row in rows)
    text = "\n".join(predictor_start.section(file))
    assert "| `hinge` | 0.001 | 1 |" in text and ("| AP |" in text) == trained


def test_remedies_and_layers(tmp_path):
    file = tmp_path / "step.csv"
    light_step.main(["--batch", "1", "--size", "64", "64", "--rounds", "1", "--output", str(file)])
    rows = table.read(file, light_step.COLUMNS)
    steps = [row for row in rows if row["part"] == "step"]
    assert [row["name"] for row in steps] == list(light_step.REMEDIES) and steps[0]["ratio"] == "1"
    assert all(float(row["ms"]) > 0 for row in rows)
    wide = [row for row in rows if row["part"] == "5×5 depthwise"]
    assert [row["name"] for row in wide] == ["forward", "gradient of the input", "gradient of the kernel"]
    assert {row["count"] for row in wide} == {"9"}
    assert "| 5×5 depthwise | gradient of the kernel | 9 |" in "\n".join(light_step.section(file))
