"""Several processes: what they compute is what one process computes, they start within a bound, and they end together.

They are forked and take the place of those that Lightning or torchrun would start.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import select
import signal
import socket
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from gflv2 import checkpoint, cli
from gflv2.config import load_config
from gflv2.data import shapes
from gflv2.engine import group
from gflv2.engine.callbacks import StopEarly
from gflv2.engine.group import GroupError, ended_together
from gflv2.engine.train import _quiet_lightning, train
from gflv2.models.detector import SingleStageDetector
from gflv2.ops import backends
from tests.engine.test_train import TINY

FORK = multiprocessing.get_context("fork")
# The first backward of a process decides whether its children may have one. Here it is an ordinary one: if it were that
# of a compiled function, in another file's test, the answer would be no.
torch.ones(1, requires_grad=True).sum().backward()
# SGD: Adam's first steps have the same size for any gradient, rounding included. Scores of any height are evaluated,
# and with four bins the untrained boxes of the first level have the size of an object: AP is not 0.
CONFIG = {
    **TINY,
    "model": {**TINY["model"], "head": {**TINY["model"]["head"], "reg_max": 3}},
    "train": {**TINY["train"], "optimizer": "sgd", "lr": 0.05, "epochs": 1},
    "test": {"score_thr": 0.0},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 images to train on, and an odd number to evaluate on."""
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=8, val=5, size=64)


class Watch(Callback):
    """What each iteration saw: loss, number of boxes; and, in the end, the time limit of the group."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.boxes: list[int] = []
        self.timeout: float | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        self.boxes.append(sum(len(boxes) for boxes in batch.boxes))

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.world_size > 1:
            options = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options
            self.timeout = options._timeout.total_seconds()


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(data, output: Path, *, devices: int = 1, callbacks=(), **overrides: Any) -> dict[str, Any]:
    """Train, and what was seen."""
    watch, lines, log = Watch(), Lines(), logging.getLogger("gflv2")
    max_steps = overrides.pop("max_steps", None)
    log.addHandler(lines)
    try:
        result = train(
            CONFIG,
            train_data=data.train,
            val_data=data.val,
            output=output,
            overrides=overrides,
            pretrained=False,
            accelerator="cpu",
            devices=devices,
            max_steps=max_steps,
            callbacks=[watch, *callbacks],
        )
    finally:
        log.removeHandler(lines)
    seen = {"losses": watch.losses, "boxes": watch.boxes, "timeout": watch.timeout}
    return {"metrics": result.metrics, "lines": lines.lines, **seen}


def _member(rank: int, world: int, port: int, answer: Path, work: Any, arguments: tuple, options: dict) -> None:
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        said: Any = work(*arguments, devices=world, **options)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    answer.write_text(json.dumps(said))
    os._exit(0)


def together(work: Any, *arguments: Any, world: int = 2, ranks: tuple[int, ...] = (0, 1), wait: float = 60, **options):
    """The answers of the ranks that gave one, or the text of what they raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answers = {rank: Path(folder) / str(rank) for rank in ranks}
        members = [
            FORK.Process(target=_member, args=(rank, world, port, file, work, arguments, options))
            for rank, file in answers.items()
        ]
        for member in members:
            member.start()
        limit = time.monotonic() + wait
        for member in members:
            member.join(max(limit - time.monotonic(), 0.1))
        late = [member for member in members if member.is_alive()]
        for member in late:
            member.kill()
        assert not late, f"{len(late)} of {len(members)} processes did not end within {wait} s"
        return {rank: json.loads(file.read_text()) for rank, file in answers.items() if file.exists()}


def part_of(data, folder: Path, *, boxes_of: set[int] | None = None, images: int = 8):
    """The data set with fewer images, or with the boxes of some images alone."""
    content = json.loads(Path(data.train).read_text())
    content["images"] = content["images"][:images]
    kept = {image["id"] for image in content["images"]} & (boxes_of or {image["id"] for image in content["images"]})
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    file = Path(data.train).with_name(f"part_{folder.name}_train.json")
    file.write_text(json.dumps(content))
    return SimpleNamespace(train=file, val=data.val)


# ---- the same numbers ----------------------------------------------------------------


def check_same(one: dict, two: dict[int, dict]) -> None:
    assert len(one["losses"]) == len(two[0]["losses"]) == len(two[1]["losses"]) > 1
    means = [sum(pair) / 2 for pair in zip(two[0]["losses"], two[1]["losses"], strict=True)]
    assert means == pytest.approx(one["losses"], rel=2e-5)
    assert [sum(pair) for pair in zip(two[0]["boxes"], two[1]["boxes"], strict=True)] == one["boxes"]
    assert two[0]["metrics"] == two[1]["metrics"]
    assert two[0]["metrics"]["images"] == one["metrics"]["images"] == 5
    assert two[0]["metrics"]["AP"] == pytest.approx(one["metrics"]["AP"], rel=1e-3) and one["metrics"]["AP"] > 0
    assert two[0]["metrics"]["detections"] == one["metrics"]["detections"] > 5
    told = [next(line for line in seen["lines"] if "iterations; learning rate" in line) for seen in (one, two[0])]
    assert "2 × cpu" in told[1] and all(f"1 epochs of {len(one['losses'])} iterations" in line for line in told)


def test_two_processes_are_one_of_the_doubled_batch(data, tmp_path) -> None:
    """In parts of one image each, and although a process has a batch without a box."""
    some = part_of(data, tmp_path, boxes_of={2, 3, 4})
    options = {"data.keep_empty": True}
    one = run(some, tmp_path / "one", **options)
    two = together(run, some, tmp_path / "two", **options, **{"train.accumulate": 2})
    check_same(one, two)
    pairs = list(zip(two[0]["boxes"], two[1]["boxes"], strict=True))
    assert any(0 in pair and sum(pair) > 0 for pair in pairs) and any(min(pair) > 0 for pair in pairs), pairs
    assert two[0]["timeout"] == 1800  # not that of the start
    saved = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == len(one["losses"]) == 2


def test_what_is_announced_is_trained(data, tmp_path) -> None:
    """7 images: one is shown twice, so that both processes have as many. A run stops at the step that was asked for."""
    few = part_of(data, tmp_path, images=7)
    two = together(run, few, tmp_path / "two", **{"train.batch_size": 2, "train.save_every_steps": 2}, max_steps=3)
    assert any("1 epochs of 4 iterations" in line for line in two[0]["lines"])
    assert len(two[0]["losses"]) == len(two[1]["losses"]) == 3
    saved = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3 and saved["run"]["plan"]["batches of an epoch"] == 4
    before = torch.load(tmp_path / "two" / "checkpoints" / "previous.ckpt", weights_only=True)
    assert before["global_step"] == 2


class NaNInOne(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 0:
            batch.images.fill_(float("nan"))


def test_all_processes_stop_at_the_nan_of_one(data, tmp_path) -> None:
    answers = together(run, data, tmp_path / "run", callbacks=[NaNInOne()])
    assert set(answers) == {0, 1}
    for answer in answers.values():
        assert answer.startswith("NonFiniteLoss: the loss is NaN or infinite at iteration 0 (epoch 1)"), answer


# ---- the start ----------------------------------------------------------------


@pytest.mark.parametrize("present", [0, 1])
def test_a_process_that_never_comes_is_waited_for_so_long(data, tmp_path, present) -> None:
    begin = time.monotonic()
    answers = together(run, data, tmp_path / "run", ranks=(present,), **{"train.start_timeout": 2})
    assert time.monotonic() - begin < 30
    said = answers[present]
    assert said.startswith("GroupError: the 2 processes of the run did not come together within 2 s"), said
    assert f"(--train.start_timeout): process {present} got: " in said and "\n" not in said
    assert not list(tmp_path.glob("run/checkpoints/*"))


# ---- the end ----------------------------------------------------------------


class Die(Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other(data, tmp_path, rank) -> None:
    begin = time.monotonic()
    answers = together(run, data, tmp_path / "run", callbacks=[Die(rank)])
    assert time.monotonic() - begin < 30
    assert set(answers) == {1 - rank} and "Error" in answers[1 - rank], answers


def test_whoever_was_started_by_a_process_that_is_gone_ends(capfd) -> None:
    """Where it waits for something else than a collective, or between GPUs."""
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        gone = os.getpid()  # the child may ask who started it when nobody is left
        if os.fork() == 0:
            group._LOOK = 0.01
            group._watch(gone, 3, threading.Event())
        time.sleep(0.2)
        os._exit(0)
    os.close(writing)
    os.waitpid(first, 0)
    with os.fdopen(reading) as pipe:
        assert select.select([pipe], [], [], 60)[0], "the last process waits on"
        assert pipe.read() == ""  # the other end is closed: it is gone
    assert capfd.readouterr().err == "process 3 of the run ends: the first process is gone\n"


def test_after_the_training_the_first_process_may_go() -> None:
    over = threading.Event()
    over.set()
    group._watch(os.getppid(), 1, over)


def test_after_an_error_those_that_were_started_end(monkeypatch) -> None:
    import subprocess
    import sys

    monkeypatch.setattr(group, "_GRACE", 0.2)
    sleeping, gone = (
        subprocess.Popen([sys.executable, "-c", code]) for code in ("import time; time.sleep(600)", "pass")
    )
    children = [sleeping, gone]
    gone.wait(60)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=children)))
    with pytest.raises(GroupError), ended_together(trainer):
        raise GroupError("one line")
    assert sleeping.wait(10) == -signal.SIGKILL and gone.returncode == 0
    assert children == []  # what Lightning looks at before it kills the first process


def test_what_all_processes_would_say_the_first_says(monkeypatch, capsys, caplog) -> None:
    said, warned = [], []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with warnings.catch_warnings(record=True) as caught, cli._log_on_stderr(), _quiet_lightning(True):
            logging.getLogger("gflv2").info("from here on")
            logging.getLogger("gflv2").warning("beware")
            monkeypatch.setattr(backends, "_warned", False)
            monkeypatch.setattr(backends, "unavailable", lambda *_: "the library is not there")
            backends._tell_fallback("dfl", SimpleNamespace(device=torch.device("cpu")))
        warned.append(len(caught))
        said.append(capsys.readouterr().err)
    assert warned == [1, 0]
    assert said == ["from here on\nbeware\n", "beware\n"]
    # Under several machines each has a process 0, and one of them is the first of all.
    caplog.set_level(logging.INFO, "gflv2")
    stop = StopEarly(1)
    stop.wait_count, stop.best_score = 1, torch.tensor(0.5)
    monkeypatch.setattr(EarlyStopping, "on_validation_end", lambda *arguments: None)
    for first in (False, True):
        caplog.clear()
        stop.on_validation_end(SimpleNamespace(is_global_zero=first, current_epoch=0, max_epochs=3), None)
        assert ("stopped early after epoch 1 of 3" in caplog.text) == first


def start_from(data, output: Path, weights: Path, *, devices: int) -> dict[str, Any]:
    """What a process says of weights that have other classes than the data; the run itself is the other tests'."""
    lines, log = Lines(), logging.getLogger("gflv2")
    log.addHandler(lines)
    options = {"config": CONFIG, "train_data": data.train, "output": output, "accelerator": "cpu", "devices": devices}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(**options, weights=weights, max_steps=1, callbacks=[SpeaksInTraining()])
    return {"warnings": [str(one.message) for one in caught], "lines": lines.lines}


class SpeaksInTraining(Callback):
    def on_train_start(self, trainer, pl_module) -> None:
        logging.getLogger("gflv2").warning("of process %d alone", trainer.global_rank)


def test_what_all_find_while_a_run_is_set_up_the_first_says(data, tmp_path) -> None:
    """Classes that do not fit, once and not from every process; afterwards each speaks for itself."""
    weights = tmp_path / "weights.pt"
    config = load_config(CONFIG, {"model.num_classes": 3})
    checkpoint.save(SingleStageDetector(config, class_names=["a", "b", "c"], pretrained=False), weights)
    answers = together(start_from, data, tmp_path / "run", weights)
    said = [[text for text in answers[rank]["warnings"] if "classes" in text] for rank in (0, 1)]
    assert len(said[0]) == 1 and "has 3 classes, the model 5" in said[0][0] and said[1] == []
    for rank in (0, 1):
        assert f"of process {rank} alone" in answers[rank]["lines"]
