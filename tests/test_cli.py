"""The command line: settings with their types, one line for an error of the user, and what each verb hands on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from gflv2 import GFLV2
from gflv2.cli import UsageError, main, parse_overrides
from gflv2.config import list_models, load_config
from gflv2.data import shapes


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=5, train=2, val=2, size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    changes = {"data__test_short_side": 64, "data__short_side": [64, 64], "data__long_side": 64, "data__workers": 0}
    model = GFLV2("gflv2_lite0", class_names=list(shapes.CLASS_NAMES), **changes)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    model.save(path)
    return path


def failure(capsys, *arguments: str) -> str:
    """The one line that a wrong command line ends with."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) <= 2 and all(line == "(--traceback shows where)" for line in lines[1:]), captured.err
    return lines[0]


# ---- settings ----------------------------------------------------------------


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("train.epochs", "3", 3),
        ("train.lr", "1e-3", 0.001),
        ("train.lr", "1", 1.0),
        ("train.precision", "16", "16"),
        ("train.clip_grad_norm", "null", None),
        ("train.clip_grad_norm", "10", 10.0),
        ("train.scale_lr", "false", False),
        ("data.short_side", "[480,960]", [480, 960]),
        ("data.mean", "[0,0.5,1]", [0.0, 0.5, 1.0]),
        ("train.milestones", "[]", []),
        ("model.head.quality", "null", None),
        ("model.head.quality", "both", "both"),
        ("model.backbone.deform.stages", "[3,4,5]", [3, 4, 5]),
        ("data.train", "a b=c.json", "a b=c.json"),
    ],
)
def test_settings_get_the_type_of_their_field(key, text, value) -> None:
    (found,) = parse_overrides({key: text}).values()
    assert found == value and type(found) is type(value)
    load_config(None, {key: found})


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("train.epochs", "3.5", "--train.epochs: expected an integer, got '3.5'"),
        ("train.epochs", "null", "--train.epochs: expected an integer, got 'null'"),
        ("train.lr", "fast", "--train.lr: expected a number, got 'fast'"),
        ("train.scale_lr", "2", "--train.scale_lr: expected true or false, got '2'"),
        ("train.clip_grad_norm", "x", "--train.clip_grad_norm: expected a number or null, got 'x'"),
        ("data.short_side", "480", "--data.short_side: expected a list of integers, for example [480,640], got '480'"),
        ("train.epoch", "3", "unknown setting --train.epoch; did you mean --train.epochs?"),
        ("model.head", "3", "unknown setting --model.head: it is a section, of model.head.kind"),
    ],
)
def test_wrong_settings_are_named(key, text, message) -> None:
    with pytest.raises(UsageError) as caught:
        parse_overrides({key: text})
    assert str(caught.value).startswith(message)


# ---- errors of the user ----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "gflv2_lite1"], "gflv2 train: error: config: no file and no named configuration 'gflv2_lite1'. Did"),
        (["train", "gflv2_lite0"], "gflv2 train: error: data.train: expected the training set"),
        (
            ["train", "gflv2_lite0", "--train", "no.json"],
            "gflv2 train: error: annotation file 'no.json' does not exist",
        ),
        (["train", "gflv2_lite0", "--train"], "gflv2 train: error: argument --train: expected one argument"),
        (["train", "gflv2_lite0", "--train.epochs"], "gflv2 train: error: --train.epochs: expected a value, got none"),
        (["train", "gflv2_lite0", "--train.epocs", "3"], "gflv2 train: error: unknown setting --train.epocs; did you"),
        (["train", "gflv2_lite0", "--epochs", "3"], "gflv2 train: error: unrecognized arguments: --epochs 3"),
        (
            ["train", "gflv2_lite0", "--max-steps", "0"],
            "gflv2 train: error: argument --max-steps: expected an integer ≥ 1",
        ),
        (["train", "--resume", "nowhere"], "gflv2 train: error: resume: no checkpoint 'nowhere'"),
        (["val", "gflv2_lite0", "--data", "x.json"], "gflv2 val: error: --weights: expected a checkpoint for"),
        (
            ["val", "missing.pt", "--data", "x.json"],
            "gflv2 val: error: 'missing.pt' is neither a file of weights nor a",
        ),
        (["val", "gflv2_lite", "--data", "x.json"], "gflv2 val: error: 'gflv2_lite' is neither a file of weights nor"),
        (["val", "missing.pt"], "gflv2 val: error: the following arguments are required: --data"),
        (["predict", "a.jpg", "--weights", "missing.pt"], "gflv2 predict: error: 'missing.pt' is neither"),
        (["convert", "missing.pth", "b.pth"], "gflv2 convert: error: weights: no such file: missing.pth"),
        (["configs", "nothing"], "gflv2 configs: error: config: no file and no named configuration 'nothing'"),
        (["configs", "--train.lr", "1"], "gflv2 configs: error: unrecognized argument --train.lr"),
        (["learn"], "gflv2 learn: error: argument VERB: invalid choice: 'learn'"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert failure(capsys, *arguments).startswith(message)
    assert not list(tmp_path.iterdir())


def test_the_traceback_is_shown_on_request(monkeypatch) -> None:
    with pytest.raises(FileNotFoundError):
        main(["configs", "nothing", "--traceback"])
    monkeypatch.setenv("GFLV2_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["configs", "nothing"])


def test_a_failure_while_running_is_exit_code_1(monkeypatch, capsys) -> None:
    def fail(*args, **options):
        raise RuntimeError("the loss is NaN\nat iteration 3")

    monkeypatch.setattr("gflv2.engine.train.train", fail)
    assert main(["train", "gflv2_lite0"]) == 1
    assert capsys.readouterr().err.startswith("gflv2 train: error: the loss is NaN at iteration 3\n")


def test_an_interruption_is_exit_code_130(monkeypatch, capsys) -> None:
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("gflv2.engine.train.train", interrupt)
    assert main(["train", "gflv2_lite0"]) == 130


# ---- verbs ----------------------------------------------------------------


def test_help_of_every_verb_is_complete(capsys) -> None:
    for verb in ("train", "val", "predict", "convert", "configs", "models", "data", "study"):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: gflv2 {verb}" in text and "--traceback" in text
        if verb == "train":
            for key in ("--train.epochs", "--model.head.reg_topk", "--data.short_side", "--test.iou_thr"):
                assert key in text
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(
        verb in text
        for verb in ("train", "val", "predict", "convert", "configs", "models", "data", "study", "demo", "env")
    )


def test_the_help_needs_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "from gflv2.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'lightning', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_configs_lists_the_authors_numbers_as_theirs(capsys) -> None:
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("gflv2_r50_fpn_1x"))
    assert line.split() == ["gflv2_r50_fpn_1x", "resnet50", "41.0", "41.1", "19.4"]
    assert all(name in text for name in list_models())
    assert "authors" in text and "not measured here" in text


def test_configs_prints_one_configuration_as_yaml(capsys, tmp_path) -> None:
    assert main(["configs", "gflv2_lite0"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config("gflv2_lite0")


def test_train_hands_every_argument_on(monkeypatch) -> None:
    seen = {}
    monkeypatch.setattr("gflv2.engine.train.train", lambda config, **options: seen.update(config=config, **options))
    line = "train --train.epochs 3 gflv2_lite0 --train a.json --val b.json --train-images i --val-images j --output o "
    line += "--overwrite --weights w.pt --no-pretrained --devices 0,2 --accelerator gpu --num-nodes 2 --max-steps 5 "
    line += "--teacher t.pt --limit-train-batches 6 --limit-val-batches 7 --no-progress --data.short_side=[320,384] "
    line += "--model.head.reg_topk 8 --train.clip_grad_norm null"
    assert main(line.split()) == 0
    assert seen == {
        "config": "gflv2_lite0",
        "train_data": "a.json",
        "val_data": "b.json",
        "train_images": "i",
        "val_images": "j",
        "overrides": {
            "train.epochs": 3,
            "data.short_side": [320, 384],
            "model.head.reg_topk": 8,
            "train.clip_grad_norm": None,
        },
        "weights": "w.pt",
        "pretrained": False,
        "teacher": "t.pt",
        "resume": None,
        "output": "o",
        "overwrite": True,
        "accelerator": "gpu",
        "devices": [0, 2],
        "num_nodes": 2,
        "max_steps": 5,
        "limit_train_batches": 6,
        "limit_val_batches": 7,
        "progress": False,
    }


def test_train_runs(sample_set, tmp_path, capsys) -> None:
    arguments = ["train", "gflv2_lite0", "--train", str(sample_set.train), "--val", str(sample_set.val)]
    arguments += ["--output", str(tmp_path / "run"), "--no-pretrained", "--accelerator", "cpu", "--max-steps", "1"]
    for setting in ("data.long_side=64", "data.short_side=[64,64]", "data.test_short_side=64", "data.workers=0"):
        arguments.append(f"--{setting}")
    assert main([*arguments, "--train.epochs", "1", "--train.batch_size", "2", "--model.neck.channels", "16"]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["neck"]["channels"] == 16 and saved["model"]["num_classes"] == len(shapes.CLASS_NAMES)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["images"] == 2
    capsys.readouterr()
    # A second run must not write over the first.
    assert "already holds a run" in failure(capsys, *arguments)


def test_data_reports_and_writes_json_and_a_page(sample_set, tmp_path, capsys) -> None:
    out, page = tmp_path / "sub" / "out.json", tmp_path / "page.png"
    arguments = ["data", str(sample_set.val), "--config", "gflv2_lite0", "--json", str(out), "--page", str(page)]
    assert main([*arguments, "--data.short_side", "[64,64]"]) == 0
    text = capsys.readouterr().out
    numbers = json.loads(out.read_text())
    assert "2 images" in text and "points and boxes at short side 64, reg_max 16" in text and page.is_file()
    assert numbers["images"] == 2 and numbers["short_side"] == 64 and all(name in text for name in shapes.CLASS_NAMES)
    assert "error: annotation file 'no.json' does not exist" in failure(capsys, "data", "no.json")


def test_val_prints_the_table_and_writes_json(sample_set, weights, tmp_path, capsys) -> None:
    out, found = tmp_path / "sub" / "out.json", tmp_path / "found.json"
    arguments = ["val", str(weights), "--data", str(sample_set.val), "--json", str(out), "--detections", str(found)]
    assert main([*arguments, "--device", "cpu", "--no-progress", "--test.score_thr", "0.001"]) == 0
    text = capsys.readouterr().out
    numbers = json.loads(out.read_text())
    assert "2 images" in text and "AP   IoU .50–.95" in text and "AR   100 per image" in text
    assert all(name in text and name in numbers["per_class"] for name in shapes.CLASS_NAMES)
    assert numbers["images"] == 2 and 0 <= numbers["AP"] <= 1 and "AP_small" in numbers
    # The initial scores are near 0.005, so these detections are there because the override arrived.
    records = json.loads(found.read_text())
    assert records and numbers["detections"] == len(records) and all(r["score"] < 0.05 for r in records)


def test_val_shows_several_views_and_writes_curves(sample_set, weights, tmp_path, capsys) -> None:
    arguments = ["val", str(weights), "--data", str(sample_set.val), "--output", str(tmp_path / "report")]
    arguments += ["--confusion-score", "0.001", "--confusion-iou", "0.3", "--test.score_thr", "0.001"]
    views = ["--test.tta.flip", "true", "--test.tta.scales", "[1,1.5]"]
    matrices = []
    for more in ([], views):
        assert main([*arguments, *more, "--device", "cpu", "--no-progress"]) == 0
        assert f"curves and confusion matrix: {tmp_path / 'report'}" in capsys.readouterr().out
        matrices.append(json.loads((tmp_path / "report" / "confusion_matrix.json").read_text()))
    assert matrices[0]["score_thr"] == 0.001 and matrices[0]["iou_thr"] == 0.3
    assert matrices[0]["labels"] == [*shapes.CLASS_NAMES, "background"] and matrices[0] != matrices[1]
    assert len(list((tmp_path / "report").iterdir())) == 6


def test_val_takes_a_configuration_with_weights(sample_set, weights, capsys) -> None:
    arguments = ["val", "gflv2_lite0", "--weights", str(weights), "--data", str(sample_set.val), "--device", "cpu"]
    small = ["--data.test_short_side", "64", "--data.long_side", "64", "--data.workers", "0"]
    assert main([*arguments, *small, "--no-progress"]) == 0
    assert "2 images" in capsys.readouterr().out


def test_predict_writes_pictures_and_json(sample_set, weights, tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    arguments = ["predict", str(sample_set.val_images), "--weights", str(weights), "--output", str(folder)]
    assert main([*arguments, "--device", "cpu", "--no-progress", "--test.score_thr", "0.001"]) == 0
    assert "2 images" in capsys.readouterr().out
    assert len(list(folder.glob("*.jpg"))) == 2
    content = json.loads((folder / "detections.json").read_text())
    assert len(content["images"]) == 2 and content["annotations"]


def test_convert_writes_another_layout(weights, tmp_path, capsys) -> None:
    path = tmp_path / "plain.pt"
    assert main(["convert", str(weights), str(path), "--layout", "state_dict"]) == 0
    assert str(path) in capsys.readouterr().out
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["bbox_head.gfl_cls.bias"], GFLV2(weights=weights).bbox_head.gfl_cls.bias.detach())
    # The authors' code knows no such backbone.
    assert "authors' code has no backbone" in failure(capsys, "convert", str(weights), str(tmp_path / "x.pth"))


def test_module_and_demo_and_env_are_reachable(capsys) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for arguments in (["--version"], ["demo", "--help"], ["env", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "gflv2", *arguments], capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert "gflv2" in done.stdout


def test_images_that_cannot_be_used_are_left_out_by_a_flag_of_every_verb(sample_set, weights, tmp_path, capsys) -> None:
    for name, file in (("train", sample_set.train), ("val", sample_set.val)):
        images = tmp_path / name
        shutil.copytree(getattr(sample_set, f"{name}_images"), images)
        shutil.copy(file, tmp_path / f"{name}.json")
        first = sorted(images.iterdir())[0]
        first.write_bytes(first.read_bytes()[:200])
    small = ["--data.test_short_side", "64", "--data.short_side", "[64,64]", "--data.long_side", "64"]
    val = ["--data", str(tmp_path / "val.json"), "--images", str(tmp_path / "val")]
    train = ["--train", str(tmp_path / "train.json"), "--train-images", str(tmp_path / "train"), "--accelerator", "cpu"]
    train += ["--output", str(tmp_path / "run"), "--no-pretrained", "--max-steps", "1", "--no-progress"]
    commands = (
        ["data", str(tmp_path / "train.json"), "--images", str(tmp_path / "train")],
        ["val", str(weights), *val, "--device", "cpu", "--no-progress"],
        ["train", "gflv2_lite0", *train],
    )
    for command in commands:
        arguments = [*command, *small, "--data.workers", "0"]
        assert main(arguments) == 2
        assert "1 of 2 images of" in (said := capsys.readouterr().err) and "--skip-bad" in said
        assert main([*arguments, "--skip-bad"]) == 0
        captured = capsys.readouterr()
        assert "images that cannot be used, left out (data.skip_bad): 1; first: image 1" in captured.err
