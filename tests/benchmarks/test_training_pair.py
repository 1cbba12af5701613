"""The training pair: two trainings that see the same data, its table, and what the report makes of it."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks import report, training_pair
from benchmarks.harness import machine, pairs
from benchmarks.integrations import guide
from gflv2.config import load_config
from gflv2.data import Batch, shapes
from gflv2.ops import backends
from tests.engine.captured import TINY, batch, plain_loop, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_step_in_two_parts_is_a_step() -> None:
    """The cut between network and losses changes no gradient."""
    model = tiny_model().train()
    model.config.train.optimizer, model.config.train.warmup_iterations = "sgd", 0
    plain = copy.deepcopy(model)
    trainee = training_pair.Trainee("reference", "reference", model, iterations=10, per_epoch=10)
    other = training_pair.Trainee("reference", "reference", plain, iterations=10, per_epoch=10)
    found = []
    for seed in range(2):
        images, boxes, labels = batch(seed)
        given = Batch(images, boxes, labels, [], None, [], torch.ones(2, 2), [0, 1])
        found.append(trainee.step(given, training_pair.clock_of(torch.device("cpu"))))
    with training_pair.use_backend("reference"):
        wanted = plain_loop(plain, other.optimizer, [batch(seed) for seed in range(2)], after=other.schedule.step)
    assert [step.losses for step in found] == [
        {name.removeprefix("loss_"): value for name, value in losses.items()} for losses in wanted
    ]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(0 < step.head_seconds < step.seconds for step in found)


def test_from_training_to_report(tmp_path, capsys, monkeypatch) -> None:
    data = shapes.generate(tmp_path / "shapes", train=4, val=2, size=64)
    config = load_config({**TINY, "data": {"long_side": 64}, "train": {"warmup_iterations": 1, "lr": 0.002}})
    said: list[str] = []
    options = {"config": config, "batch_size": 2, "short_side": (64, 64), "say": said.append}
    rows = training_pair.run(data.train, data.val, iterations=3, **options)
    steps = pairs.by_backend(rows)
    assert list(steps) == ["reference", "fused"] and [len(one) for one in steps.values()] == [3, 3]
    kernels = "reference" if backends.unavailable("cpu", "cpu") else "cpu"
    assert [one[0]["kernels"] for one in steps.values()] == ["reference", kernels]
    assert steps["fused"][0]["start"] == "random" and steps["fused"][0]["images"] == "4"
    for a, b in zip(*steps.values(), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-3)
        assert float(a["loss"]) == pytest.approx(sum(float(a[name]) for name in ("qfl", "giou", "dfl")), rel=1e-5)
        assert (a["ap"] != "") == (a["step"] == "2")
    assert any(text.startswith("fused: AP") and "2 test images" in text for text in said)

    path = tmp_path / "results" / f"{pairs.PREFIX}{machine.slug(rows[0]['device'])}.csv"
    pairs.write(path, rows)
    assert pairs.by_backend(pairs.read(path)) == pairs.by_backend(rows)
    output = tmp_path / "REPORT.md"
    files = report.write(path.parent, output)
    text, picture = output.read_text(), tmp_path / "plots" / f"{path.stem}.svg"
    monkeypatch.setattr(guide, "RESULTS", path.parent)
    assert guide.measured() == [], "a pair is no row of the guide"
    assert files == [output, picture] and f"(plots/{path.stem}.svg)" in text
    assert "## Same training, faster" in text and "4 images, batches of 2, from random weights" in text
    drawn = picture.read_text()
    assert "reference" in drawn and "fused" in drawn
    report.write(path.parent, output)
    assert picture.read_text() == drawn, "the same table gives the same picture"

    (path.parent / f"{pairs.PREFIX}wrong.csv").write_text("step,loss\n")
    with pytest.raises(ValueError, match="expected the columns device, config"):
        report.write(path.parent, output)
    assert training_pair.main(["--data", str(tmp_path)]) == 2
    assert "--data: expected a folder with instances_train.json" in capsys.readouterr().err


def test_the_numbers_of_the_report(tmp_path) -> None:
    rows = []
    for backend, factor in (("reference", 1.0), ("fused", 0.5)):
        for step in range(40):
            row = dict.fromkeys(pairs.COLUMNS, "")
            row |= {"device": "box", "config": "tiny", "data": "set", "backend": backend, "kernels": backend}
            row |= {"step": str(step), "loss": str(4.0 - step / 20 + (backend == "fused" and step == 7) * 0.3)}
            # The first steps are slow and do not count.
            row |= {"seconds": str(9.0 if step < 3 else 2.0 * factor), "head_seconds": str(0.5 * factor**2)}
            rows.append(row)
        rows[-1] |= {"ap": "0.5", "ap50": "0.75"}
    found = pairs.summarise(pairs.by_backend(rows)["fused"])
    assert found == pairs.Summary(40, pytest.approx(4 - 32 / 20), 1.0, 0.125, 0.5, 0.75)
    assert pairs.smooth([1.0, 2.0, 6.0]) == [1.0, 1.5, 3.0]
    pairs.write(tmp_path / f"{pairs.PREFIX}box.csv", rows)
    report.write(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "| fused | 40 | 2.4000 | 0.500 | 0.750 | 1 | 0.125 |" in text
    mean = sum(4.0 - step / 20 for step in range(40)) / 40
    assert f"{100 * 0.3 / mean:.2g} % of the mean loss. A step is 2× as fast, its targets and losses 4×." in text
