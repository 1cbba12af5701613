"""Tried inputs of the command line: settings, checkpoints, runs. Each row is one command in a folder of its own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import yaml

from gflv2 import GFLV2, cli

NAN, INF = float("nan"), float("inf")
TINY = {
    "model": {
        "num_classes": 1,
        "backbone": {"name": "test_efficientnet", "frozen_stages": 0},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 64, "short_side": [48, 48], "test_short_side": 48, "workers": 0},
    "train": {"epochs": 1, "batch_size": 3, "base_batch_size": 3, "warmup_iterations": 0},
}


@dataclass(frozen=True)
class Command:
    """A tried command.

    Attributes:
        tried: what it is, for docs/faults.md.
        arguments: of ``gflv2``; they name files of the folder.
        make: puts the files there.
        status: that it ends with.
        says: a pattern of the one line that refuses, or of the output.
        report: where somebody met it.
    """

    tried: str
    arguments: tuple[str, ...]
    make: Callable[[Path], Any]
    says: str
    status: int = 2
    report: str = ""


def run(row: Command, folder: Path) -> tuple[int, str]:
    """Status, and what was said, without the folder."""
    row.make(folder)
    out, err = io.StringIO(), io.StringIO()
    log = logging.getLogger("gflv2")
    before, handlers = Path.cwd(), list(log.handlers)
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(log, "propagate", False),
            mock.patch.dict(os.environ, {"GFLV2_TRACEBACK": "0"}),
        ):
            status = cli.main(list(row.arguments))
    finally:
        os.chdir(before)
        log.handlers[:] = handlers
    said = err.getvalue() if status == 2 else out.getvalue()
    return status, said.replace(f"{folder}/", "").replace(str(folder), "FOLDER")


def check(row: Command, folder: Path) -> None:
    """Assert that what happens is what the row says."""
    status, said = run(row, folder)
    assert status == row.status, said
    assert re.search(row.says, said), said
    if status == 2:
        lines = said.splitlines()  # before the last one, what was read on the way
        assert lines[-1].startswith("gflv2 ") and lines[-1].isprintable() and len(lines[-1]) < 3100, said
        assert sum(": error: " in line for line in lines) == 1 and "Traceback" not in said, said


def told(row: Command, folder: Path) -> str:
    """What happens, for the document."""
    status, said = run(row, folder)
    line = said.strip().splitlines()[-1] if status else ""
    return f"{'refused' if status == 2 else f'status {status}'}: {_plain(line)}" if status else "read"


def _plain(line: str) -> str:
    """Without what other versions of Python, torch and PyYAML say in other words."""
    line = re.sub(r"^gflv2 \w+: error: ", "", line)
    line = re.sub(r"(cannot be read as a PyTorch checkpoint \().*?(\)\. A )", r"\1…\2", line)
    line = re.sub(r"(\.yaml, line \d+, column \d+: ).*", r"\1…", line)
    line = re.sub(r"(a\.yaml cannot be read: )(?!a section|it is).*", r"\1…", line)
    line = re.sub(r"\(Unsupported operand \d+\)", "(…)", line)
    return re.sub(r"(has )[\d,]+( bytes)", r"\1N\2", re.sub(r"Names: .*", "Names: …", line))


# ---- settings ----------------------------------------------------------------


def text(content: bytes | str) -> Callable[[Path], Any]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "a.yaml").write_bytes(data)


def yaml_row(tried: str, content: bytes | str, says: str, status: int = 2) -> Command:
    return Command(f"YAML: {tried}", ("configs", "a.yaml"), text(content), says, status)


def setting(key: str, value: Any) -> Command:
    section, _, last = key.rpartition(".")
    content: Any = {last: value}
    for part in reversed(section.split(".")):
        content = {part: content}
    shown = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    return yaml_row(f"`{key}: {shown[:40]}`", yaml.safe_dump(content), rf"a.yaml: .*{re.escape(key)}")


SETTINGS = [
    *(
        setting(key, value)
        for key, value in (
            ("model.num_classes", 10**12),
            ("model.num_classes", 0),
            ("model.num_classes", "many"),
            ("model.num_classes", 3.5),
            ("model.num_classes", None),
            ("model.num_classes", True),
            ("model.num_classes", [80]),
            ("model.head.stacked_convs", 10**6),
            ("model.backbone.frozen_stages", 10**9),
            ("model.head.reg_max", 10**9),
            ("model.head.gn_groups", 0),
            ("model.head.strides", [8, 16, 0]),
            ("model.head.strides", [8] * 100),
            ("model.head.loss_weights", [1.0]),
            ("model.head.loss_weights", None),
            ("model.neck.levels", 10**6),
            ("data.pad_divisor", 0),
            ("data.std", [1.0, 1.0, 0.0]),
            ("data.short_side", [800]),
            ("data.workers", -1),
            ("train.lr", NAN),
            ("train.lr", INF),
            ("train.lr", -1.0),
            ("train.lr", {}),
            ("train.epochs", 0),
            ("train.seed", 2**32),
            ("train.momentum", 1e300),
            ("test.score_thr", 50.0),
            ("test.max_detections", 0),
            ("train.epoks", 3),
            ("model.head", 3),
        )
    ),
    yaml_row("a number of 5000 digits", "train: {epochs: " + "9" * 5000 + "}", "a.yaml"),
    yaml_row("empty", "", "^", 0),
    yaml_row("UTF-8 with a byte order mark", "\ufefftrain: {epochs: 3}", "epochs: 3", 0),
    yaml_row("a whole number for a float", "train: {lr: 1}", "lr: 1.0", 0),
    yaml_row("a float as YAML reads no float, 1e-3", "train: {lr: 1e-3}", "lr: 0.001", 0),
    yaml_row("a tab", "train:\n\tlr: 1\n", "a.yaml, line 2"),
    yaml_row("a list that is not closed", "model: {num_classes: [3\n", "a.yaml, line"),
    yaml_row("a tag that would run a program", "model: !!python/object/apply:os.system [ls]", "a.yaml, line 1"),
    yaml_row("Latin-1", b"\xe9: 1", "a.yaml is not UTF-8: byte 0 is 0xe9"),
    yaml_row("a list in place of sections", "- 1", "a.yaml must hold a mapping, got list"),
    yaml_row("a number as a name", "1: 2", "a.yaml: expected a text as a setting's name, got 1"),
    yaml_row("lists nested 5000 deep", "a: " + "[" * 5000, "a.yaml cannot be read"),
    yaml_row("a section that holds itself", "train: &a {lr: *a}", "a.yaml cannot be read: a section that holds itself"),
    yaml_row("a date that is none", "train: 2001-99-99", "a.yaml cannot be read"),
    yaml_row("its own base", "base: a.yaml", "a.yaml is its own base"),
    yaml_row("a base that is not there", "base: gflv2_r50_fpn_1y", "a.yaml: no file .*Did you mean 'gflv2_r50_fpn_1x'"),
    yaml_row("a list as base", "base: [1]", "a.yaml: base: expected the name or the path"),
    Command("a folder as configuration", ("configs", "a.yaml"), lambda f: (f / "a.yaml").mkdir(), "no file"),
    Command("a name with a slip", ("configs", "gflv2_r50_fpn_1y"), lambda f: None, "Did you mean 'gflv2_r50_fpn_1x'"),
    Command(
        "`--train.lr fast`", ("train", "gflv2_lite0", "--train.lr", "fast"), lambda f: None, "--train.lr: expected"
    ),
    Command("`--train.lr` without a value", ("train", "gflv2_lite0", "--train.lr"), lambda f: None, "expected a value"),
    Command("`--lr 1`", ("train", "gflv2_lite0", "--lr", "1"), lambda f: None, "unrecognized arguments: --lr 1"),
]


# ---- checkpoints ----------------------------------------------------------------


@cache
def _content() -> dict[str, Any]:
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        return torch.load(GFLV2(TINY, class_names=["box"]).save(Path(folder) / "a.pt"), weights_only=True)


def weights(change: Callable[[dict], Any]) -> Callable[[Path], Any]:
    """``w.pt``, with another state_dict."""
    return whole(lambda c: {**c, "state_dict": change(dict(c["state_dict"]))})


def whole(change: Callable[[dict], Any]) -> Callable[[Path], Any]:
    return lambda folder: torch.save(change(dict(_content())), folder / "w.pt")


def raw(data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "w.pt").write_bytes(data)


def configured(**model: Any) -> Callable[[Path], Any]:
    return whole(lambda c: {**c, "config": {**c["config"], "model": {**c["config"]["model"], **model}}})


def flipped(folder: Path) -> None:
    whole(lambda c: c)(folder)
    data = bytearray((folder / "w.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "w.pt").write_bytes(data)


def cut(folder: Path) -> None:
    whole(lambda c: c)(folder)
    (folder / "w.pt").write_bytes((folder / "w.pt").read_bytes()[:-1000])


def every(change: Callable[[torch.Tensor], Any]) -> Callable[[Path], Any]:
    return weights(lambda s: {key: change(v) if v.is_floating_point() else v for key, v in s.items()})


def one(key: str, value: torch.Tensor) -> Callable[[Path], Any]:
    return weights(lambda s: {**s, key: value})


def checkpoint(tried: str, make: Callable[[Path], Any], says: str, status: int = 2) -> Command:
    return Command(tried, ("convert", "w.pt", "out.pt", "--layout", "gflv2"), make, says, status)


CLASS = "bbox_head.gfl_cls.weight"
CHECKPOINTS = [
    checkpoint("as it was saved", whole(lambda c: c), "wrote out.pt", 0),
    checkpoint(
        "its state_dict alone, of a backbone whose name does not follow from the keys",
        whole(lambda c: c["state_dict"]),
        ".",
        2,
    ),
    checkpoint("not there", lambda f: None, "w.pt"),
    checkpoint("a folder", lambda f: (f / "w.pt").mkdir(), "w.pt"),
    checkpoint("an empty file", raw(b""), "w.pt is empty"),
    checkpoint("one byte", raw(b"\x80"), "w.pt cannot be read"),
    checkpoint("100 zeros", raw(bytes(100)), "w.pt"),
    checkpoint("the start of a zip file", raw(b"PK\x03\x04"), "w.pt cannot be read"),
    checkpoint("a web page", raw(b"<html>404</html>"), "is a web page"),
    checkpoint("a Git LFS pointer", raw(b"version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
    checkpoint("a plain pickle", raw(b"\x80\x04K\x01."), "is a plain Python pickle"),
    checkpoint("a file without its last 1000 bytes", cut, "w.pt cannot be read"),
    checkpoint("one flipped bit", flipped, "w.pt"),
    checkpoint("a number", lambda f: torch.save(3, f / "w.pt"), "holds a int"),
    checkpoint("a function, `print`", lambda f: torch.save({"a": print}, f / "w.pt"), "is refused"),
    checkpoint("state_dict null", whole(lambda c: {"state_dict": None}), "no state_dict"),
    checkpoint("state_dict empty", weights(lambda s: {}), "no state_dict"),
    checkpoint("every weight NaN", every(lambda v: v * NAN), "hold NaN or infinite values"),
    checkpoint(
        "one infinite weight", one(CLASS, torch.full((1, 16, 3, 3), INF)), "1 of .* tensors hold NaN or infinite"
    ),
    checkpoint("complex weights", every(lambda v: v.to(torch.complex64)), "not plain real ones"),
    checkpoint("a sparse weight", one(CLASS, torch.ones(1, 16, 3, 3).to_sparse()), "sparse"),
    checkpoint("a weight of 2^40 zeros in one byte", one("x", torch.zeros(1).expand(2**40)), "its tensors claim"),
    checkpoint("class names with a terminal escape", whole(lambda c: {**c, "class_names": ["\x1b[31m"]}), "class 0"),
    checkpoint("a class name of a million letters", whole(lambda c: {**c, "class_names": ["a" * 10**6]}), "class 0"),
    checkpoint("format version 99", whole(lambda c: {**c, "version": 99}), "reads up to"),
    checkpoint("format version of 5000 digits", whole(lambda c: {**c, "version": 10**5000}), "reads up to|w.pt"),
    checkpoint("configuration: 10^12 classes", configured(num_classes=10**12), "num_classes: expected"),
    checkpoint("configuration: the class number null", configured(num_classes=None), "num_classes: expected"),
    checkpoint("configuration: an unknown setting", configured(colour=3), "unknown setting model.colour"),
    checkpoint("configuration: the head a list", configured(head=[1]), "model.head"),
]


def loads(tried: str, make: Callable[[Path], Any], says: str) -> Command:
    """A file that can be read, but is no detector."""
    return Command(tried, ("bench", "w.pt", "--seconds", "0.01", "--device", "cpu"), make, says)


CHECKPOINTS += [
    loads("a weight without dimensions", one(CLASS, torch.zeros(())), r"shape \(\)"),
    loads("a weight of another shape", one("neck.fpn_convs.0.conv.bias", torch.zeros(3)), "of another shape"),
    loads(
        "a weight missing",
        weights(lambda s: {k: v for k, v in s.items() if k != "neck.fpn_convs.0.conv.bias"}),
        "1 missing",
    ),
    loads("a weight too many", one("bbox_head.extra.weight", torch.zeros(3)), "1 not in the model"),
    loads(
        "configuration: a backbone that nobody knows", configured(backbone={"name": "é"}), "w.pt describes no detector"
    ),
    loads(
        "configuration: four strides, five levels",
        whole(
            lambda c: {
                **c,
                "config": {
                    **c["config"],
                    "model": {
                        **c["config"]["model"],
                        "head": {**c["config"]["model"]["head"], "strides": [8, 16, 32, 64]},
                    },
                },
            }
        ),
        "w.pt describes no detector: head.strides",
    ),
]


# ---- runs ----------------------------------------------------------------


def data(folder: Path) -> None:
    from tests.faults.base import changed

    changed()(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))


@cache
def _finished() -> Path:
    """A run of one step, made once and copied."""
    folder = Path(_kept.name)
    data(folder)
    done = Command("", train("--output", "run"), lambda f: None, "", 0)
    status, said = run(done, folder)
    assert status == 0, said
    return folder


_kept = TemporaryDirectory()


def finished(*changes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        shutil.copytree(_finished(), folder, dirs_exist_ok=True)
        for change in changes:
            change(folder)

    return make


def train(*more: str) -> tuple[str, ...]:
    return (
        "train",
        "tiny.yaml",
        "--train",
        "train.json",
        "--accelerator",
        "cpu",
        "--no-pretrained",
        "--no-progress",
        *more,
    )


def resume(*more: str) -> tuple[str, ...]:
    return ("train", "--resume", "run", "--accelerator", "cpu", "--no-progress", *more)


def both(*makes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [make(folder) for make in makes]


def other_names(folder: Path) -> None:
    content = json.loads((folder / "train.json").read_text())
    content["categories"][0]["name"] = "crate"
    (folder / "train.json").write_text(json.dumps(content))


LAST = "run/checkpoints/last.ckpt"
RUNS = [
    Command(
        "`--output` is a file", train("--output", "out"), both(data, lambda f: (f / "out").write_text("")), "is a file"
    ),
    Command("`--output` holds a run", train("--output", "run"), finished(), "run"),
    Command("`--output` below a file", train("--output", "tiny.yaml/run"), data, "tiny.yaml"),
    Command(
        "`name: ../../x`",
        train(),
        both(data, lambda f: (f / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "name": "../../x"}))),
        "name: expected a plain name",
    ),
    Command("no training data", ("train", "gflv2_lite0"), lambda f: None, "data.train: expected the training set"),
    Command(
        "training data that is not there", ("train", "gflv2_lite0", "--train", "no.json"), lambda f: None, "no.json"
    ),
    Command("a start from weights that are not there", train("--weights", "no.pt"), data, "no.pt"),
    Command("`--devices 0.5`", train("--devices", "0.5"), data, "--devices"),
    Command("a batch of 3 on two devices", train("--devices", "2", "--output", "o"), data, "multiple of the 2 devices"),
    Command("`--max-steps 0`", train("--max-steps", "0"), data, "--max-steps"),
    Command("`--resume` of a folder that is not there", resume(), data, "run"),
    Command("`--resume` of a folder without a run", resume(), both(data, lambda f: (f / "run").mkdir()), "run"),
    Command(
        "`--resume` of weights",
        ("train", "--resume", "run/weights/last.pt", "--no-progress"),
        finished(),
        "holds weights, not the state of a run",
    ),
    Command("`--resume` with `--weights`", resume("--weights", "w.pt"), finished(), "one of weights and resume"),
    Command("`--resume` of a complete run", resume(), finished(), "^", 0),
    Command(
        "`--resume` with another optimiser",
        resume("--train.epochs", "2", "--train.optimizer", "adamw"),
        finished(),
        "train.optimizer was sgd, now adamw",
    ),
    Command(
        "`--resume` with another class name",
        resume("--train.epochs", "2"),
        finished(other_names),
        "classes of the training file",
    ),
    Command(
        "`--resume` with a wider model",
        resume("--train.epochs", "2", "--model.neck.channels", "32"),
        finished(),
        "model.neck.channels was 16, now 32",
    ),
    Command("`--resume` with `--max-steps 1`, which is done", resume("--max-steps", "1"), finished(), "^", 0),
    Command(
        "`--resume` where last.ckpt is empty, and no other is there",
        resume(),
        finished(lambda f: (f / LAST).write_bytes(b"")),
        "last.ckpt",
    ),
    Command(
        "`--resume` where last.ckpt is a text, and no other is there",
        resume(),
        finished(lambda f: (f / LAST).write_text("x")),
        "last.ckpt",
    ),
    Command(
        "`--resume` where config.yaml is no YAML",
        resume(),
        finished(lambda f: (f / "run/config.yaml").write_text("{")),
        "config.yaml",
    ),
    Command(
        "`--resume` where config.yaml is missing",
        resume(),
        finished(lambda f: (f / "run/config.yaml").unlink()),
        "config.yaml",
    ),
    Command(
        "evaluation without weights",
        ("val", "gflv2_lite0", "--data", "train.json"),
        data,
        "--weights: expected a checkpoint",
    ),
    Command(
        "evaluation of a folder of images",
        ("val", "run/weights/last.pt", "--data", "images", "--no-progress"),
        finished(),
        "without annotations",
    ),
    Command(
        "prediction of nothing",
        ("predict", "*.jpg", "--weights", "run/weights/last.pt"),
        finished(),
        "nothing to predict",
    ),
    Command(
        "prediction with one damaged image",
        ("predict", "images", "--weights", "run/weights/last.pt", "--no-progress"),
        finished(lambda f: (f / "images/im2.png").write_bytes(b"x")),
        "in 2 images.*\n1 could not be read:\n.*im2.png",
        1,
    ),
    Command(
        "prediction of a pipe",
        ("predict", "pipe.png", "--weights", "run/weights/last.pt", "--no-progress"),
        finished(lambda f: os.mkfifo(f / "pipe.png")),
        "in 0 images.*\n1 could not be read:\n.*pipe.png",
        1,
    ),
    Command(
        "a second command line option that nobody knows", ("val", "--colour"), lambda f: None, "required|unrecognized"
    ),
]
