"""The demonstration: what it chooses to show, what it prints, and one small run of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gflv2 import GFLV2, demo
from gflv2.engine.results import Result


def match(sharp: float, ambiguous: list[bool], broad: list[bool] | None = None) -> demo.Match:
    """A detection whose sides are broad where ``broad`` (default: ``ambiguous``) says; else one bin holds ``sharp``."""
    distributions = torch.zeros(1, 4, 17)
    distributions[..., 3], distributions[..., 4] = sharp, 1 - sharp
    for side, flag in enumerate(ambiguous if broad is None else broad):
        if flag:
            distributions[0, side] = 1 / 17
    result = Result(
        boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        scores=torch.tensor([0.8]),
        labels=torch.tensor([0]),
        class_names=("star",),
        image=np.zeros((64, 64, 3), np.uint8),
        distributions=distributions,
        projection=torch.arange(17.0),
        points=torch.tensor([[24.0, 24.0]]),
        strides=torch.full((1, 2), 8.0),
        levels=torch.zeros(1, dtype=torch.int64),
    )
    return demo.Match(result, 0, ambiguous)


def test_the_clearest_example_is_chosen():
    clear = match(1.0, [True, False, False, False])
    less = match(0.6, [True, False, False, False])
    wrong = match(1.0, [True, False, False, False], broad=[False, True, False, False])
    none, all_sides = match(1.0, [False] * 4), match(1.0, [True] * 4)
    assert clear.contrast == pytest.approx(math.log2(17), abs=1e-4)
    assert less.contrast == pytest.approx(math.log2(17) - 0.971, abs=1e-3)
    assert wrong.contrast == pytest.approx(-math.log2(17), abs=1e-4)
    assert none.contrast == all_sides.contrast == -math.inf
    chosen = demo.choose([none, wrong, less, clear, all_sides], 2)
    assert chosen == [clear, less]
    # One example an image.
    second = demo.Match(clear.result, 0, [True, False, False, False])
    assert demo.choose([second, clear, less], 2) == [second, less]


def test_mean_entropy():
    sure, unsure = demo.mean_entropy([match(1.0, [True, False, False, True]), match(0.5, [False] * 4)])
    assert sure == pytest.approx((2 * 0 + 4 * 1) / 6, abs=1e-4) and unsure == pytest.approx(math.log2(17), abs=1e-4)
    assert all(math.isnan(value) for value in demo.mean_entropy([]))


def test_next_commands_can_be_run(tmp_path, monkeypatch):
    from gflv2 import cli

    text = demo.next_commands(Path("demo/run/weights/best.pt"), Path("demo/data/val"))
    first, *commands = text.splitlines()
    assert first == "Next:" and len(commands) == 3
    for command in commands:
        program, *words = command.partition("#")[0].split()
        assert Path(program).name == "gflv2"
        cli._parser().parse_args(words)


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    pytest.importorskip("lightning")
    made = demo.run(tmp_path, train_images=8, val_images=4, size=96, epochs=1, pictures=1, progress=False)
    assert made.weights.is_file() and 0 <= made.metrics["AP"] <= 1
    for path in made.pictures:
        with Image.open(path) as picture:
            picture.verify()
    text = capsys.readouterr().out
    for part in ("1. Generating 8 + 4 images", "2. Training gflv2_lite0", "AP   IoU .50–.95", "4. Drawing", "Next:"):
        assert part in text
    # A second run into the same folder replaces the first, and gives the same detector.
    first = GFLV2(weights=made.weights).state_dict()
    again = demo.run(tmp_path, train_images=8, val_images=4, size=96, epochs=1, pictures=1, progress=False)
    assert again.metrics == pytest.approx(made.metrics, nan_ok=True)
    for key, value in GFLV2(weights=again.weights).state_dict().items():
        torch.testing.assert_close(value, first[key], msg=key)


def test_command_line(monkeypatch):
    asked = {}
    monkeypatch.setattr(demo, "run", lambda **options: asked.update(options))
    assert demo.main(["--epochs", "3", "--output", "here", "--no-progress"]) == 0
    assert asked["epochs"] == 3 and asked["output"] == "here" and asked["progress"] is False and asked["seed"] == 0
