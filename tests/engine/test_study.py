"""Studies: their files, their statistics, runs that are killed and go on, several processes, what rows cost."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from gflv2 import checkpoint
from gflv2.cli import main
from gflv2.config import load_config
from gflv2.data import CocoDetection, make_loader
from gflv2.engine.interruption import Interrupted
from gflv2.engine.study import cost, list_studies, read_study, run, study
from gflv2.engine.study.cost import Cost, _Candidate, _fingerprint, put_aside, read_costs
from gflv2.engine.study.plan import Study
from gflv2.engine.study.run import METRICS, data_paths, settings_of
from gflv2.engine.study.statistics import estimate, t_cdf, t_quantile
from gflv2.engine.study.table import interval, markdown, summarise
from gflv2.models.detector import SingleStageDetector

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "model": {
        "backbone": {"name": "test_efficientnet", "frozen_stages": 0},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 64, "short_side": [64, 64], "test_short_side": 64, "workers": 0},
    "train": {"epochs": 1, "batch_size": 4, "base_batch_size": 4, "warmup_iterations": 0},
}
PLAN = {
    "base": "tiny.yaml",
    "seeds": [0, 1],
    "compare": "one",
    "rows": {"one": {"settings": {"model.head.quality": None}}, "two": {}},
    "data": {"shapes": {"generate": {"train": 4, "val": 2, "size": 64, "seed": 0}}},
    "cost_rounds": 2,
}


def write(folder: Path, **changes) -> Path:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return path


@pytest.fixture
def plan(tmp_path):
    return write(tmp_path)


def go(plan: Path, **options):
    return study(
        plan, **{"output": plan.parent / "out", "pretrained": False, "progress": False, "devices": ["cpu"], **options}
    )


# ---- statistics ----------------------------------------------------------------------------------


# Two-sided 95 % values of the usual tables.
@pytest.mark.parametrize("freedom, t", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_t_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(t, abs=5e-4)
    assert t_cdf(0.0, freedom) == 0.5


def test_an_estimate_is_that_of_the_textbook() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, math.nan])
    assert (found.n, found.mean) == (4, 2.5)
    assert found.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert found.high - found.mean == pytest.approx(3.1824 * found.error, rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.half)
    one = estimate([7.0])
    assert one.mean == 7.0 and math.isnan(one.low) and math.isnan(one.error)
    assert estimate([]).n == 0


def results(values: dict[str, list[float | None]]) -> list[dict]:
    return [
        {"data": "d", "row": row, "seed": seed, **dict.fromkeys(METRICS), "AP": value}
        for row, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]


def test_differences_are_of_the_same_seeds(plan) -> None:
    """The means are far apart from seed to seed, the pairs are not; a seed that one row lacks is in no pair."""
    found = summarise(read_study(plan), results({"one": [0.1, 0.5, 0.9], "two": [0.12, 0.52, 0.92, 0.0]}))
    one, two = found
    assert (one.row, one.difference) == ("one", None)
    assert two.value.n == 4 and two.difference is not None and two.difference.n == 3
    assert two.difference.mean == pytest.approx(0.02) and two.difference.half < 1e-9 < one.value.half
    text = markdown(read_study(plan), found, None)
    assert "| two − one | 3 | +0.020 [+0.020, +0.020] |" in text and "| two | 4 | 0.390 ± " in text


def test_a_row_can_be_compared_with_another_than_the_study_s(tmp_path) -> None:
    rows = {"one": {}, "two": {}, "three": {"compare": "two"}}
    found = summarise(
        read_study(write(tmp_path, rows=rows)), results({"one": [0.1, 0.2], "two": [0.5, 0.5], "three": [0.6, 0.8]})
    )
    assert [row.compare for row in found] == ["one", "one", "two"]
    assert found[2].difference.mean == pytest.approx(0.2)


def test_what_is_not_defined_is_a_dash(plan) -> None:
    found = summarise(read_study(plan), results({"one": [0.1], "two": [None]}))
    assert [row.row for row in found] == ["one"]
    assert interval(None) == interval(estimate([])) == "–" and interval(estimate([0.5])) == "+0.500"


# ---- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_studies())
def test_studies_of_the_package_build_and_have_a_quick_form(name: str) -> None:
    whole, quick = read_study(name), read_study(name, quick=True)
    assert whole.compare in [row.name for row in whole.rows] and len(whole.seeds) >= 3
    assert len(quick.runs()) <= 22 and all(data.is_given for data in quick.data)
    assert quick.name == f"{name}-quick"
    described = [whole.config(row, whole.data[0]).to_dict() for row in whole.rows]
    assert all(described.count(one) == 1 for one in described), "two rows are the same"


def test_the_baselines_are_those_of_the_named_configurations() -> None:
    """On COCO with ResNet-50, each row has the model and the recipe of the configuration of its name."""
    recipe = load_config("gflv2_r50_fpn_1x").to_dict()
    same = {f"data.{key}": recipe["data"][key] for key in ("vertical_flip", "workers", "cache_images")}
    coco = {"coco": ("instances_train2017.json", "instances_val2017.json", "train2017", "val2017")}
    plan = read_study(
        "baselines", base="gflv2_r50_fpn_1x", data=coco, only=["coco"], overrides={**same, "train.epochs": 12}
    )
    assert [data.name for data in plan.data] == ["coco"] and plan.data[0].val_images == "val2017"
    for row in plan.rows:
        wanted = load_config(f"{row.name.lower()}_r50_fpn_1x").to_dict()
        found = plan.config(row, plan.data[0]).to_dict()
        # ATSS has no quality predictor: what the settings say about it means nothing there.
        wanted["model"]["head"]["quality"] = (
            found["model"]["head"]["quality"] if row.name == "ATSS" else (wanted["model"]["head"]["quality"])
        )
        assert {key: found[key] for key in ("model", "data", "train", "test")} == {
            key: wanted[key] for key in ("model", "data", "train", "test")
        }


WRONG = [
    ({"sedes": [1]}, "unknown key sedes; did you mean 'seeds'"),
    ({"seeds": 3}, "seeds: expected a list of integers"),
    ({"seeds": [1, 1]}, "seeds: expected each seed once"),
    ({"rows": {}}, "rows: expected at least one row"),
    ({"rows": {"a/b": {}}, "compare": "a/b"}, "rows: expected a name of letters"),
    ({"rows": {"one": {"setings": {}}}}, "unknown key rows.one.setings; did you mean 'settings'"),
    ({"rows": {"one": {"settings": {"train.epoch": 1}}}}, "rows.one: unknown setting train.epoch"),
    ({"rows": {"one": {"compare": "two"}}}, "rows.one.compare: expected one of 'one', got 'two'"),
    ({"rows": {"one": {}, "a b": {}, "a_b": {}}}, "names that differ in more than spaces"),
    ({"settings": {"train.lr": "fast"}}, "settings: train.lr: expected a number"),
    ({"compare": "three"}, "compare: expected one of 'one', 'two', got 'three'"),
    ({"data": {}}, "data: expected at least one data set"),
    ({"data": {"d": {"train": "x.json"}}}, "data.d: expected both train and val"),
    ({"data": {"d": {"generate": {"size": "big"}}}}, "data.d.generate.size: expected an integer"),
    ({"data": {"d": {"train": "x", "val": "y", "generate": {}}}}, "data.d: expected either generate or files"),
    ({"data": {"d": {"generate": {"size": 1}}}}, "data.d.generate.size: expected an integer ≥ 64, got 1"),
    ({"settings": {"train.seed": 3}}, "settings: train.seed: expected none, since a study's seeds are its own"),
    ({"rows": {"one": {"settings": {"train": {"seed": 3}}}}}, "rows.one.settings: train.seed: expected none"),
    ({"data": {"d": {"train": "mydata", "val": "mydata"}}}, "/mydata"),
    ({"cost_rounds": -1}, "cost_rounds: expected an integer from 0"),
    ({"quick": {"epochs": 1}}, "unknown key quick.epochs"),
    ({"like": "plan.yaml"}, "the file is like itself"),
    ({"base": "nothing_r50"}, "nothing_r50"),
]


@pytest.mark.parametrize("changes, says", WRONG, ids=[says[:30] for _, says in WRONG])
def test_a_mistake_is_one_line_with_file_and_key(changes: dict, says: str, tmp_path, capsys) -> None:
    path = write(tmp_path, **changes)
    options = ["--quick"] * ("quick" in changes)
    assert main(["study", str(path), "--output", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and (str(path) in line or "base" in changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nothing"], "no study of the package 'nothing'"),
        (["PLAN", "--rows", "three"], "rows: expected one of 'one', 'two', got 'three'"),
        (["PLAN", "--only", "coco"], "data: expected one of 'shapes', got 'coco'"),
        (["PLAN", "--seeds", "0", "0"], "seeds: expected each seed once"),
        (["PLAN", "--quick"], "quick: expected a section"),
        (["PLAN", "--data", "coco"], "expected NAME=TRAIN,VAL"),
        (["PLAN", "--devices", "moon"], "devices: expected names like cpu"),
        (["PLAN", "--devices", "77"], "devices: expected one of the"),
        pytest.param(
            ["PLAN", "--devices", "mps"],
            "devices: expected a device that is here, got 'mps'",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one"),
        ),
        (["PLAN", "--model.head.quality", "cls"], "model.head.quality: expected none, since the row 'one'"),
        (
            ["PLAN", "--train.seed", "5"],
            "train.seed: expected none, since a study's seeds are its own (--seeds); got 5",
        ),
        (["PLAN", "--data", "coco=nowhere.json,PLAN"], "data.coco: train: no such file or folder: nowhere.json"),
        (["PLAN", "--train.distill.teacher", "nowhere.pt"], "train.distill.teacher: no such file: nowhere.pt"),
        (["PLAN", "--train.lrr", "1"], "unknown setting --train.lrr"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], says: str, plan, capsys) -> None:
    options = [str(plan) if text == "PLAN" else text for text in arguments]
    assert main(["study", *options, "--output", str(plan.parent / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_data_set_without_files_is_left_out_and_named(tmp_path, caplog) -> None:
    path = write(tmp_path, data={**PLAN["data"], "cells": {"about": "blood cells"}})
    caplog.set_level("INFO", "gflv2")
    found = go(path, seeds=[0], rows=["one"])
    assert [run["data"] for run in found.runs] == ["shapes"]
    assert (
        "data set cells is left out: the study has no files for it; give them with --data cells=TRAIN,VAL (blood"
        in (caplog.text)
    )


def test_paths_of_data_count_from_the_file(tmp_path, monkeypatch) -> None:
    """Plain names of folders too, whatever the working folder has of that name."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "mydata").mkdir()
    files = {name: "mydata" for name in ("train", "val", "train_images", "val_images")}
    path = write(tmp_path / "sub", data={"d": files})
    monkeypatch.chdir(tmp_path)
    (data,) = read_study(path.relative_to(tmp_path)).data
    places = (data.train, data.val, data.train_images, data.val_images)
    assert all(Path(str(place)) == Path("sub/mydata") for place in places)


# ---- runs ----------------------------------------------------------------------------------------


def test_runs_are_made_once_and_a_changed_setting_is_an_error(plan, caplog) -> None:
    caplog.set_level("INFO", "gflv2")
    first = go(plan, cost=False)
    assert [(run["row"], run["seed"]) for run in first.runs] == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert not first.missing and first.costs is None
    times = {path: path.stat().st_mtime_ns for path in first.output.rglob("result.json")}
    assert len(times) == 4 and not list(first.output.rglob("*.ckpt"))
    caplog.clear()
    again = go(plan, cost=False)
    assert "4 runs, 4 of them complete" in caplog.text and "[1/4]" not in caplog.text
    assert again.runs == first.runs
    assert {path: path.stat().st_mtime_ns for path in first.output.rglob("result.json")} == times

    with open(first.output / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score_iou_points"]) for row in rows] == pytest.approx(
        [run["score_iou_points"] for run in first.runs], rel=1e-5
    )
    assert {row["quality_init"] for row in rows if row["row"] == "one"} == {""}, "it has no predictor"
    assert {row["quality_init"] for row in rows if row["row"] == "two"} == {"normal"}
    assert (first.output / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert (first.output / "table.md").read_text().strip() == str(again)

    with pytest.raises(ValueError, match=r"seed0/result.json: train.lr was 0.01, now 0.5; take another output"):
        go(plan, overrides={"train.lr": 0.5})
    with pytest.raises(ValueError, match=r"pretrained was False, now True"):
        go(plan, pretrained=True)
    caplog.clear()
    # It is none for a row that does not have what has changed; the table leaves out those that do, and says so.
    part = go(plan, rows=["one"], cost=False, overrides={"model.head.quality_init": "kaiming"})
    assert [run["row"] for run in part.runs] == ["one", "one"]
    assert "not in the table" in caplog.text and "quality_init was 'normal', now 'kaiming'" in caplog.text


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gflv2", "study", *arguments, "--no-pretrained", "--no-progress"]
    # A shell's background jobs ignore SIGINT, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(process: subprocess.Popen, folder: Path, pattern: str, count: int = 1) -> None:
    limit = time.monotonic() + 300
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit, f"no {count} × {pattern}"
        time.sleep(0.02)


@pytest.mark.slow
def test_the_quick_baselines_are_killed_and_go_on(tmp_path, caplog, capsys) -> None:
    """The command of CI: killed in the middle of a training, it keeps what is complete and ends with everything."""
    folder, command = tmp_path / "quick", (str(ROOT / "configs" / "studies" / "baselines.yaml"), "--quick")
    options = (*command, "--output", str(folder), "--train.save_every_steps", "2")
    process = start(*options)
    wait_for(process, folder, "runs/*/*/*/result.json", 2)
    wait_for(process, folder, "runs/shapes/GFLV2/seed0/train/checkpoints/last.ckpt")
    process.kill()
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert 2 <= len(before) < 6 and not (folder / "runs.csv").exists()

    caplog.set_level("INFO", "gflv2")
    assert main(["study", *options, "--no-pretrained", "--no-progress"]) == 0
    assert f"6 runs, {len(before)} of them complete" in caplog.text
    assert "[2/6]" not in caplog.text and f"[{len(before) + 1}/6]" in caplog.text
    assert "| GFLV2 − GFLV1 | 2 |" in capsys.readouterr().out
    assert before.items() <= {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}.items()
    with open(folder / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [name for name in ("ATSS", "GFLV1", "GFLV2") for _ in range(2)]
    assert all(row["score_iou_points"] for row in rows) and {row["epochs"] for row in rows} == {"2"}
    costs = read_costs(folder / "costs.csv")
    assert [cost.row for cost in costs] == ["ATSS", "GFLV1", "GFLV2", "GFLV1 again"]
    parameters = {cost.row: cost.parameters for cost in costs}
    assert parameters["GFLV2"] - parameters["GFLV1"] == 4 * 5 * 64 + 64 + 64 + 1, "the predictor"


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path) -> None:
    """After one line, which says what to do, the same command gives the same numbers."""
    plan = write(
        tmp_path,
        rows={"one": {}},
        compare="one",
        seeds=[0],
        settings={"train.epochs": 40, "train.batch_size": 2},
        data={"shapes": {"generate": {"train": 8, "val": 2, "size": 64, "seed": 0}}},
    )
    process = start(str(plan), "--output", str(tmp_path / "stopped"), "--no-cost", "--devices", "cpu")
    wait_for(process, tmp_path / "stopped", "runs/shapes/one/seed0/train/checkpoints/last.ckpt")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("SIGINT: stopped in run 1 of 1 (shapes, one, seed 0); the same comm")
    assert "Traceback" not in said and not list((tmp_path / "stopped").rglob("result.json"))
    stopped = go(plan, cost=False, output=tmp_path / "stopped")
    whole = go(plan, cost=False, output=tmp_path / "whole")
    for metric in METRICS:
        assert stopped.runs[0][metric] == whole.runs[0][metric], metric


@pytest.mark.slow
def test_two_devices_share_the_runs(plan, caplog) -> None:
    caplog.set_level("INFO", "gflv2")
    found = go(plan, devices=["cpu", "cpu"], cost=False, seeds=[1])
    assert not found.missing and [run["row"] for run in found.runs] == ["one", "two"]
    assert "[1/2]" not in caplog.text, "this process trains nothing itself"


def leave(plan: Path, *seeds: int) -> Path:
    """A folder with results as these runs would have left them, without a training."""
    found = replace(read_study(plan, pretrained=False), seeds=seeds)
    for one in found.runs():
        place = plan.parent / "out" / one.place
        place.mkdir(parents=True)
        record = {**dict.fromkeys(METRICS, 0.5), "settings": settings_of(found, one)}
        (place / "result.json").write_text(json.dumps(record))
    return plan.parent / "out"


def test_other_seeds_of_earlier_calls_stay_in_the_table(plan, caplog) -> None:
    folder = leave(plan, 0, 1, 7)
    strange = folder / "runs" / "shapes" / "gone" / "seed0"
    strange.mkdir(parents=True)
    (strange / "result.json").write_text("{}")
    assert [run["seed"] for run in go(plan, cost=False).runs] == [0, 1, 7, 0, 1, 7]
    assert f"not in the table, since the study has no such row or data: {strange}" in caplog.text


def test_tables_are_there_where_costs_fail(plan, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    folder = leave(plan, 0, 1)
    (folder / "costs.csv").write_text("of other settings")
    monkeypatch.setattr(sys.modules[study.__module__], "costs", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        go(plan)
    for name in ("runs.csv", "summary.csv", "table.md", "plot.png"):
        assert (folder / name).is_file(), name
    assert not (folder / "costs.csv").exists() and (folder / "costs.earlier.csv").is_file()


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"settings": 1}'])
@pytest.mark.parametrize("keys", [(*METRICS, "settings"), ("settings",)], ids=["result", "started"])
def test_a_broken_record_is_named(text: str, keys: tuple[str, ...], tmp_path) -> None:
    file = tmp_path / "record.json"
    file.write_text(text)
    expected = r"record.json is no record of a run: expected a JSON mapping with .*settings.*, got .*; remove it"
    with pytest.raises(ValueError, match=expected):
        run._record(file, keys)


@pytest.mark.parametrize("codes, goes_on", [([1, 0], True), ([2, 1], False)])
def test_after_bad_input_nothing_is_promised(codes, goes_on, plan, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[study.__module__], "_in_processes", lambda *_: codes)
    with pytest.raises(RuntimeError, match="4 runs are not complete; exit status of cpu") as caught:
        go(plan, devices=["cpu", "cpu"])
    assert ("the same command goes on" in str(caught.value)) == goes_on


def test_a_run_that_another_process_has_is_left_to_it(plan, caplog) -> None:
    from gflv2.engine.run_folder import held

    caplog.set_level("INFO", "gflv2")
    run = replace(read_study(plan), seeds=(0,)).runs()[0]
    place = plan.parent / "out" / run.place
    place.mkdir(parents=True)
    with held(place):
        found = go(plan, seeds=[0])
    assert [missing.row.name for missing in found.missing] == ["one"] and found.costs is None
    assert "another process is at it" in caplog.text


def test_interrupted_between_runs_says_where(plan, monkeypatch) -> None:
    from gflv2.engine.study import study as module

    def stop(*_, **__):
        raise Interrupted("inside", signal.SIGTERM)

    monkeypatch.setattr(sys.modules[module.__module__], "run_once", stop)
    with pytest.raises(Interrupted, match=r"SIGTERM: stopped in run 1 of 4 .* goes on from here") as caught:
        go(plan)
    assert caught.value.code == 143


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["run_once", "costs", "raw_csv"])
def test_signals_outside_a_training_say_what_goes_on(signum, stage, plan, monkeypatch) -> None:
    """While a detector is looked at, while costs are measured and after that no training listens to them."""

    def killed(*_, **__):
        signal.raise_signal(signum)  # to this thread

    module, before = sys.modules[study.__module__], signal.getsignal(signal.SIGTERM)
    if stage != "run_once":
        monkeypatch.setattr(module, "read_result", lambda *_: {})
        monkeypatch.setattr(module, "_collect", lambda *_: [])
        monkeypatch.setattr(module, "costs", lambda *_, **__: [])
    monkeypatch.setattr(module, stage, killed)
    where = " in run 1 of 4 " if stage == "run_once" else "; the same command goes on"
    with pytest.raises(Interrupted, match=f"{signal.Signals(signum).name}: stopped{where}") as caught:
        go(plan, cost=stage == "costs")
    assert caught.value.code == 128 + signum and signal.getsignal(signal.SIGTERM) == before


def taught(plan: Path, seed: int = 0) -> Study:
    """A study whose second row has a teacher, from a file beside it."""
    file = plan.parent / "teacher.pt"
    torch.manual_seed(seed)
    checkpoint.save(SingleStageDetector(load_config(plan.parent / "tiny.yaml")), file)
    rows = {"one": {}, "two": {"settings": {"train.distill.teacher": str(file)}}}
    return read_study(write(plan.parent, rows=rows))


def test_other_weights_of_a_teacher_are_a_change(plan) -> None:
    one, two = ([settings_of(found, run) for run in found.runs()[:2]] for found in (taught(plan, n) for n in (0, 1)))
    assert one[0] == two[0] and one[1] != two[1]
    assert {key for key in one[1] if one[1][key] != two[1][key]} == {"teacher"}


def test_the_cost_of_a_step_has_the_teacher_in_it(plan) -> None:
    study, batch = taught(plan), None
    data = data_paths(study.data[0], plan.parent / "out")
    losses = []
    for row in study.rows:
        config = study.config(row, study.data[0])
        torch.manual_seed(1)
        one = _Candidate(row.name, SingleStageDetector(config).train(), "cpu")
        if batch is None:
            dataset = CocoDetection(data["train"], data["train_images"], config=config.data, train=True)
            batch = next(iter(make_loader(dataset, 4, train=True, config=config.data, workers=0)))
        losses.append(float(one.loss(batch).detach()))
    assert losses[1] > losses[0]


def test_costs_of_other_settings_are_measured_again(plan, monkeypatch) -> None:
    def mark(**options) -> str:
        study = read_study(plan, **options)
        return _fingerprint(study, study.data[0], cost._where("cpu"))

    first = mark()
    assert mark() == first
    assert mark(overrides={"train.channels_last": True}) != first
    assert mark(data={"shapes": (plan, plan)}) != first
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert mark() != first


def test_costs_are_measured_in_turns_and_once(plan) -> None:
    found = go(plan, seeds=[0])
    costs = {cost.row: cost for cost in found.costs}
    assert list(costs) == ["one", "two", "one again"]
    assert costs["one"].step_ratio == costs["one"].detect_ratio == 1
    assert costs["one again"].saved_bytes == costs["one"].saved_bytes <= costs["two"].saved_bytes
    assert costs["two"].parameters - costs["one"].parameters == 4 * 5 * 64 + 64 + 64 + 1
    assert all(cost.step > 0 and cost.detect > 0 and cost.clock == "processor" for cost in costs.values())
    assert all(cost.rounds == 2 and (cost.height, cost.width) == (64, 64) for cost in costs.values())
    for one, other in zip(read_costs(found.output / "costs.csv"), found.costs, strict=True):
        assert one.step == pytest.approx(other.step, rel=1e-5) and one.row == other.row
    assert go(plan, seeds=[0]).costs == found.costs, "they are kept"
    content = json.loads((found.output / "costs.json").read_text())
    assert len(content["rows"]) == 3
    assert "| one again |" in str(found)


def test_generated_data_of_other_settings_is_refused(tmp_path) -> None:
    """Before any run: results in the folder may be of what lies there."""
    data = {"shapes": {"generate": {"train": 1, "val": 1, "size": 64, "seed": 0}}}
    plan, folder = write(tmp_path, data=data), tmp_path / "out"
    train = Path(data_paths(read_study(plan).data[0], folder)["train"])
    before = train.read_bytes()
    data["shapes"]["generate"]["seed"] = 1
    expected = (
        r"out/data/shapes: expected the data set 'shapes' of .*'seed': 1.*, found .*'seed': 0.*; take another output"
    )
    with pytest.raises(ValueError, match=expected):
        go(write(tmp_path, data=data))
    assert train.read_bytes() == before and not (folder / "runs").exists()


def test_data_that_another_process_has_made_meanwhile_stays(tmp_path, monkeypatch) -> None:
    """Between the look and the lock: somebody may train on it already."""
    data = read_study(write(tmp_path, data={"shapes": {"generate": {"train": 1, "val": 1, "size": 64}}})).data[0]
    made, lock = [], run.held
    monkeypatch.setattr(run.shapes, "generate", lambda place, **_: made.append(place))

    @contextlib.contextmanager
    def late(place):
        monkeypatch.setattr(run, "held", lock)
        data_paths(data, tmp_path)
        with lock(place):
            yield

    monkeypatch.setattr(run, "held", late)
    data_paths(data, tmp_path)
    assert len(made) == 1


def measured(study: Study, folder: Path, *, device: str = "cpu", threads: int = 1) -> Path:
    """A folder with costs, as a call of ``costs`` there would have left it, and their table."""
    names = ("one", "two", "one again")
    numbers = {field.name: 1 for field in fields(Cost)} | {"device": device, "threads": threads}
    record = {
        "of": _fingerprint(study, study.data[0], (device, threads)),
        "rows": [numbers | {"row": row} for row in names],
    }
    folder.mkdir()
    (folder / "costs.json").write_text(json.dumps(record))
    (folder / "costs.csv").write_text("old")
    return folder / "costs.csv"


def test_a_table_of_other_costs_does_not_lie_beside_new_ones(plan, caplog) -> None:
    table = measured(read_study(plan), plan.parent / "out")
    put_aside(table.parent, [read_study(plan, overrides={"train.channels_last": True})])
    assert not table.exists() and table.with_name("costs.earlier.csv").read_text() == "old"
    assert "it is costs.earlier.csv now" in caplog.text


@pytest.mark.parametrize("where", [{}, {"threads": 3}, {"device": "NVIDIA H200"}], ids=str)
def test_a_table_of_the_same_costs_stays(plan, where, caplog) -> None:
    """On whatever it was measured: that stands in it, and nobody measures anything else."""
    study = read_study(plan)
    table = measured(study, plan.parent / "out", **where)
    put_aside(table.parent, [study])
    assert table.read_text() == "old" and not caplog.text


def test_a_table_that_another_process_puts_aside(plan, monkeypatch, caplog) -> None:
    """Processes of one study come to its end at the same time."""
    table = measured(read_study(plan), plan.parent / "out")
    other = [read_study(plan, overrides={"train.channels_last": True})]
    known = cost._known

    def slow(study: Study, folder: Path) -> list[Cost]:
        monkeypatch.setattr(cost, "_known", known)
        put_aside(folder, other)
        return known(study, folder)

    monkeypatch.setattr(cost, "_known", slow)
    put_aside(table.parent, other)
    assert table.with_name("costs.earlier.csv").read_text() == "old"
    assert caplog.text.count("it is costs.earlier.csv now") == 1
