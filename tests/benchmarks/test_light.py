"""The benchmarks of the light recipe: the predictor's start, and the step on a CPU."""

from __future__ import annotations

import re
from contextlib import nullcontext
from unittest import mock

import pytest
import torch

from benchmarks import light_ap, light_loader, light_remedies, light_report, light_step, predictor_start
from benchmarks.harness import table
from benchmarks.light_remedies import REMEDIES, Remedy, Steps
from gflv2 import GFLV2
from gflv2.data import shapes
from gflv2.engine import lightning_module
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


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The table of a tiny step, with one thread."""
    folder, before = tmp_path_factory.mktemp("light"), torch.get_num_threads()
    shapes.generate(folder / "data", seed=1, train=8, val=1, size=64)
    file = folder / "light_step-here.csv"
    arguments = ["--batch", "2", "--size", "64", "64", "--rounds", "1", "--batches", "1", "--output", str(file)]
    light_step.main([*arguments, "--data", str(folder / "data"), "--threads", "1"])
    torch.set_num_threads(before)
    return file


def test_remedies_floors_and_loaders(measured):
    rows = table.read(measured, light_step.COLUMNS)
    steps = [row for row in rows if row["part"] == "step"]
    assert [row["name"] for row in steps] == list(REMEDIES) and steps[0]["ratio"] == "1"
    numbers = {row["name"]: row["numbers"] for row in steps}
    assert numbers["plain again"] == light_step.SAME and numbers["fused AdamW"] in ("0", light_step.SAME)
    assert float(numbers["gradients of wide depthwise kernels in columns"]) < 1e-5
    assert float(numbers["autocast to bfloat16"]) > 1e-3
    assert [row["name"] for row in rows if row["part"] == "loader"] == list(light_loader.WAYS)
    assert sum(float(row["share"]) for row in rows if row["part"] == "kinds") == pytest.approx(1, abs=0.1)
    wide = [row for row in rows if row["part"] == "5×5 depthwise"]
    assert [row["name"] for row in wide] == ["forward", "gradient of the input", "gradient of the kernel"]
    assert {row["count"] for row in wide} == {"9"}
    assert all(float(row["ms"]) > 0 for row in rows if row["part"] != "kinds")


def test_too_few_images_for_the_loader_are_one_line(tmp_path, capsys, one_thread):
    shapes.generate(tmp_path, seed=1, train=8, val=1, size=64)
    arguments = ["--batch", "4", "--batches", "9", "--parts", "loader", "--threads", "1"]
    light_step.main([*arguments, "--data", str(tmp_path)])
    assert re.fullmatch(
        r"no part loader: expected at least 10 batches of 4 images in .*, got \d\n", capsys.readouterr().out
    )


def test_new_rows_take_the_place_of_old_ones(measured, tmp_path, monkeypatch):
    old = table.read(measured, light_step.COLUMNS)
    file = tmp_path / "step.csv"
    table.write(file, old, light_step.COLUMNS)

    def new(part, steps, options):
        yield {"part": part, "name": f"new, {torch.get_num_threads()}"}

    monkeypatch.setattr(light_step, "measured", new)
    light_step.main(["--parts", "step", "compile", "--output", str(file)])  # with one thread and two
    rows = table.read(file, light_step.COLUMNS)
    found = [(row["threads"], row["part"], row["name"]) for row in rows if row["name"].startswith("new")]
    assert found == [(str(n), part, f"new, {n}") for n in (1, 2) for part in ("step", "compile")]
    assert [row for row in rows if not row["name"].startswith("new")] == [row for row in old if row["part"] != "step"]


def test_the_report_has_the_precision_beside_each_option(measured):
    scores = measured.parent / "light_step_ap.csv"
    table.write(scores, [], light_report.AP_COLUMNS)
    assert "| plain | " in (text := "\n".join(light_report.section(measured))) and "| not measured |" in text
    known = {"none": (0.39, 0.40, 0.41), "columns": (0.38, 0.40, 0.40), "rounding": (0.5,)}
    rows = [
        {"option": option, "seed": str(seed), "ap": str(ap)}
        for option, own in known.items()
        for seed, ap in enumerate(own)
    ]
    table.write(scores, rows, light_report.AP_COLUMNS)
    text = "\n".join(light_report.section(measured))
    scores.unlink()
    # The differences 0.01, 0 and 0.01: mean 0.0067, standard error 0.0033, and 4.303 of it for two degrees of freedom.
    assert "0.3933 ± 0.0067 (3); −0.0067 [−0.0210, +0.0077]" in text
    assert "| same numbers |" in text and "from start weights multiplied by 1 ± 1e-7): 0.5000 (1)." in text
    assert "| 5×5 depthwise | gradient of the kernel | 9 |" in text and "convolutions at their floors" in text
    table.write(scores, [*rows, rows[0]], light_report.AP_COLUMNS)
    with pytest.raises(ValueError, match="each seed of an option once, got seed 0 of none again"):
        light_report.scores(scores)
    scores.unlink()


def test_folded_norms_and_the_step_without_them_agree(one_thread):
    steps = Steps("gflv2_lite0", 1, (64, 64))
    assert len(steps.pairs) == 48  # all of EfficientNet-Lite0
    steps.model.double()
    steps.images = steps.images.double()
    plain, folded = (steps.numbers(Remedy(fold=fold))[0] for fold in ("", "all"))
    assert (folded - plain).norm() < 1e-9 * plain.norm() and not torch.equal(folded, plain)


def test_options_of_the_precision(tmp_path, monkeypatch, one_thread):
    images = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    model = GFLV2("gflv2_lite0", num_classes=2).to(memory_format=torch.channels_last).train()
    model.double()  # so that rounding is small, and what a path refuses is seen
    model.config.train.fast_convolutions = False
    images = images.double()
    plain = model(images)[0]
    for option in light_ap.OPTIONS:
        with light_ap.taken(option):
            found = model(images)[0]
            changed = any(not torch.equal(a, b) for a, b in zip(plain, found, strict=True))
            assert changed == (option in ("frozen", "folded", "all")), option  # other paths take float32 alone
            for a, b in zip(plain, found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
            optimizer = lightning_module.make_optimizer(model.parameters(), model.config.train)
            assert bool(optimizer.defaults["fused"]) == (option in ("fused", "all"))
            with mock.patch.object(light_remedies, "CPUConvolutions", return_value=nullcontext()) as paths:
                model(images)
            columns, products = option in ("columns", "both", "all"), option in ("products", "both", "all")
            wanted = [mock.call(columns=columns, products=products)] if columns or products else []
            assert paths.call_args_list == wanted
        assert torch.equal(model(images)[0][0], plain[0])
    with light_ap.taken("bf16"), torch.autocast("cpu", dtype=torch.bfloat16):  # as the setting has it
        assert model.float()(images.float())[0][0].dtype == torch.bfloat16
    common = {"train.fast_convolutions": False}
    assert light_ap.settings("bf16") == common | {"train.precision": "bf16"}
    assert light_ap.settings("nchw") == common | {"train.channels_last": False}
    assert all(light_ap.settings(option) == common for option in light_ap.OPTIONS if option not in ("bf16", "nchw"))

    def weights() -> torch.Tensor:
        torch.manual_seed(0)
        model = GFLV2("gflv2_lite0", num_classes=2)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    plain = weights()
    with light_ap.taken("rounding"):
        moved = weights()
    assert not torch.equal(moved, plain) and torch.equal(weights(), plain)
    torch.testing.assert_close(moved, plain, rtol=1e-6, atol=0)

    def study(name, *, output, seeds, **others):
        output.mkdir(parents=True, exist_ok=True)
        (output / "runs.csv").write_text(f"row,seed,AP\nGFLV2,{seeds[0]},0.{seeds[0]}5\n")

    monkeypatch.setattr(light_ap, "study", study)
    file = tmp_path / "ap.csv"
    light_ap.main(["--seeds", "1", "2", "--options", "none", "both", "--runs", str(tmp_path), "--output", str(file)])
    assert light_report.scores(file) == {"none": {"1": 0.15, "2": 0.25}, "both": {"1": 0.15, "2": 0.25}}
