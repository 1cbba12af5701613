"""Runs that are stopped: by max_steps, a signal, a kill, NaN, a full disk; and what can go on from there."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from gflv2 import GFLV2, checkpoint, files
from gflv2.config import load_config
from gflv2.data import make_loader, shapes
from gflv2.data.loader import GroupedBatchSampler
from gflv2.engine.checkpoints import NonFiniteWeights
from gflv2.engine.interruption import Interrupted
from gflv2.engine.run_folder import claimed
from gflv2.engine.schedule import lr_factor
from gflv2.engine.train import _SAID_AGAIN, _continuation, train
from tests.faults.kill import TINY, differences

ROOT = Path(__file__).parents[2]
EPOCHS, BATCHES = 2, 3  # of 2 images each
CONFIG = {**TINY, "train": {**TINY["train"], "epochs": EPOCHS, "save_every_steps": None}}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=2 * BATCHES, val=2, size=64)


def run(data, output, *, val: bool = True, **options):
    """A run with the default workers, unless told otherwise."""
    if "resume" not in options:
        options.setdefault("config", CONFIG)
        options |= {"train_data": data.train, "val_data": data.val if val else None}
    options.setdefault("progress", False)
    return train(output=output, pretrained=False, accelerator="cpu", **options)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of the run that nobody stops."""
    return run(data, tmp_path_factory.mktemp("whole") / "run").output


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    """The folder of a run of one step, without workers; tests that write copy it."""
    options = {"overrides": {"train.epochs": 1, "data.workers": 0, "train.ema_decay": None}}
    return run(data, tmp_path_factory.mktemp("short") / "run", val=False, limit_train_batches=1, **options).output


def copy_of(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class At(Callback):
    """Does something at one iteration (counted from 0), before its step."""

    def __init__(self, iteration: int, do) -> None:
        self.iteration, self.do = iteration, do

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.iteration:
            self.do(pl_module)


class InValidation(Callback):
    def __init__(self, do) -> None:
        self.do = do

    def on_validation_batch_start(self, *args) -> None:
        self.do()


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


# ---- exact resume ----------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_starts_inside_an_epoch_once(data, workers) -> None:
    from gflv2.data import CocoDetection

    config = load_config(CONFIG).data
    dataset = CocoDetection(data.train, config=config, train=True)
    loader = make_loader(dataset, 2, train=True, config=config, workers=workers, seed=1)
    wanted = {}
    for epoch in (4, 5):
        loader.batch_sampler.set_epoch(epoch)
        wanted[epoch] = [batch.images for batch in loader]
    again = make_loader(dataset, 2, train=True, config=config, workers=workers, seed=1)
    again.batch_sampler.start_at(4, 2)
    assert len(again) == BATCHES
    first = [batch.images for batch in again]
    again.batch_sampler.set_epoch(5)
    second = [batch.images for batch in again]
    for found, expected in ((first, wanted[4][2:]), (second, wanted[5])):
        assert len(found) == len(expected) > 0
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_epoch_without_a_batch_left_does_not_shorten_the_next() -> None:
    sampler = GroupedBatchSampler(torch.zeros(6), 2)
    sampler.start_at(0, 3)
    iter(sampler)  # an iterator that nobody asks for a batch
    sampler.set_epoch(1)
    assert len(list(sampler)) == 3


# After the first step of epoch 1; at the last batch of epoch 1; inside epoch 2.
@pytest.mark.parametrize("steps", [1, BATCHES, BATCHES + 2])
def test_a_run_in_two_parts_has_the_bits_of_one(data, whole, tmp_path, caplog, steps) -> None:
    part = run(data, tmp_path / "run", max_steps=steps)
    assert torch.load(part.output / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps
    assert GFLV2(weights=part.last_weights).class_names == list(shapes.CLASS_NAMES)
    if steps == 1:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="gflv2"):
            run(data, None, resume=part.output, max_steps=1, progress=True)
        assert "is at iteration 1, 0 of 2 epochs: --max-steps 1 is reached; nothing to do" in caplog.text
        assert "is complete" not in caplog.text and "--train.epochs" not in caplog.text
    resumed = run(data, None, resume=part.output)
    assert resumed.output == part.output and resumed.best_epoch is not None
    assert differences(whole, part.output) == []


def test_without_validation_and_workers_too(data, tmp_path) -> None:
    options = {"overrides": {"data.workers": 0, "train.optimizer": "sgd", "train.ema_decay": None}, "val": False}
    one = run(data, tmp_path / "one", **options).output
    two = run(data, tmp_path / "two", max_steps=BATCHES + 1, **options).output
    run(data, None, resume=two)
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_checkpoints_by_steps(data, tmp_path) -> None:
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            file = tmp_path / "run" / "checkpoints" / "last.ckpt"
            seen.append(torch.load(file, weights_only=True)["global_step"] if file.exists() else None)

    overrides = {"train.save_every_steps": 2, "train.epochs": 1, "data.workers": 0}
    run(data, tmp_path / "run", overrides=overrides, callbacks=[Look()], val=False)
    assert seen == [None, None, 2]


def test_a_longer_schedule_starts_on_its_own_rate(data, tmp_path) -> None:
    part = run(data, tmp_path / "run", overrides={"data.workers": 0, "train.epochs": 1}, val=False)
    rates = Rates()
    longer = {"train.epochs": 3, "train.lr": 0.002}
    run(data, None, resume=part.output, overrides=longer, callbacks=[rates], max_steps=BATCHES + 2)
    config = load_config(CONFIG).train
    wanted = [lr_factor(i, config, iterations_per_epoch=BATCHES, iterations=3 * BATCHES) for i in (3, 4)]
    assert rates.seen == pytest.approx([0.002 * factor for factor in wanted])


def test_fewer_epochs_than_trained(short, tmp_path, data) -> None:
    folder = copy_of(short, tmp_path / "run")
    longer = {"train.epochs": 3, "data.workers": 0}
    run(data, None, resume=folder, overrides=longer, max_steps=2, limit_train_batches=1)
    before = contents(folder)
    with pytest.raises(ValueError, match="train.epochs: the run has trained 2 epochs; expected at least 2, got 1"):
        run(data, None, resume=folder, overrides={"train.epochs": 1})
    assert contents(folder) == before


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "faults" / "kill.py"), "--kills", "3", "--each", "3"]
    command += ["--kinds", "written", "validation", "step", "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "3 kills" in done.stdout.splitlines()[-1], done.stdout


# ---- files that are whole ----------------------------------------------------------------


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch) -> None:
    path = files.write_whole(tmp_path / "folder" / "a", b"old")
    synced = []
    real = os.fsync

    def fail(handle: int) -> None:
        synced.append(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'") as caught:
        files.write_whole(path, b"new and longer")
    assert caught.value.errno == errno.ENOSPC and synced
    assert os.listdir(path.parent) == ["a"] and path.read_bytes() == b"old"
    monkeypatch.setattr(os, "fsync", real)
    assert files.write_whole(path, "new", keep_as=path.with_name("b")).read_text() == "new"
    assert sorted(os.listdir(path.parent)) == ["a", "b"] and path.with_name("b").read_bytes() == b"old"


def test_checkpoints_do_not_pass_through_the_temporary_folder(short, data, tmp_path, monkeypatch) -> None:
    folder = copy_of(short, tmp_path / "run")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    run(data, None, resume=folder, overrides={"train.epochs": 2}, limit_train_batches=1)
    assert sorted(os.listdir(folder / "checkpoints")) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("damage", ["empty", "half", "flipped"])
def test_a_torn_checkpoint_leads_to_the_newest_whole_one(short, data, tmp_path, damage, caplog) -> None:
    folder = copy_of(short, tmp_path / "run")
    options = {"overrides": {"train.epochs": 2}, "limit_train_batches": 1}
    whole = copy_of(folder, tmp_path / "whole")
    run(data, None, resume=whole, **options)
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    last.rename(last.with_name("previous.ckpt"))
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    last.write_bytes({"empty": b"", "half": content[: len(content) // 2], "flipped": content}[damage])
    run(data, None, resume=folder, **options)
    assert "last.ckpt" in caplog.text and "previous.ckpt, iteration 1" in caplog.text
    ends = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (folder, whole)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_torn_checkpoint_alone_is_one_line(short, tmp_path, data) -> None:
    folder = copy_of(short, tmp_path / "run")
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match="last.ckpt cannot be read"):
        run(data, None, resume=folder)


# ---- NaN ----------------------------------------------------------------


def poison(module) -> None:
    next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("nan"))


def test_nan_in_the_last_step_never_reaches_a_file(data, tmp_path) -> None:
    wanted = r"after iteration 6 \(epoch 2\), first in backbone\..*iteration 5.*last.ckpt.*--train.lr"
    overrides = {"data.workers": 0, "train.save_every_steps": 5}
    with pytest.raises(NonFiniteWeights, match=wanted):
        run(data, tmp_path / "run", overrides=overrides, callbacks=[At(5, poison)])
    assert (tmp_path / "run" / "weights" / "best.pt").is_file()
    for file in [*(tmp_path / "run").rglob("*.ckpt"), *(tmp_path / "run").rglob("*.pt")]:
        checkpoint.read(file)  # refuses what is not finite


def test_nan_before_anything_is_saved(data, tmp_path) -> None:
    with pytest.raises(NonFiniteWeights, match="after iteration 1 .*nothing was saved before it"):
        run(data, tmp_path / "run", limit_train_batches=1, callbacks=[At(0, poison)], overrides={"data.workers": 0})
    assert not [*(tmp_path / "run").rglob("*.ckpt"), *(tmp_path / "run").rglob("*.pt")]


def test_a_failure_while_training_is_status_1() -> None:
    from gflv2 import cli

    assert issubclass(NonFiniteWeights, RuntimeError) and not issubclass(NonFiniteWeights, cli._USER_ERRORS)


# ---- signals ----------------------------------------------------------------


# One handler takes both signals. What is saved at the last step of an epoch goes on in the test of two parts above.
@pytest.mark.parametrize(
    "name, code, where", [("SIGTERM", 143, "step"), ("SIGINT", 130, "last step"), ("SIGTERM", 143, "validation")]
)
def test_a_signal_saves_and_says_how_to_go_on(data, whole, tmp_path, name, code, where) -> None:
    def send(*_) -> None:
        os.kill(os.getpid(), getattr(signal, name))

    at = {"step": At(1, send), "last step": At(BATCHES - 1, send), "validation": InValidation(send)}[where]
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    done = 2 if where == "step" else 3
    message = f"{name}: stopped; iteration {done} of 6 is saved. Continue with: gflv2 train --resume {tmp_path}/run "
    message += "--no-progress --accelerator cpu$"
    with pytest.raises(Interrupted, match=message) as caught:
        run(data, tmp_path / "run", callbacks=[at])
    assert caught.value.code == code and isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    if name == "SIGTERM":
        run(data, None, resume=tmp_path / "run")
        assert differences(whole, tmp_path / "run") == []


def test_the_command_that_goes_on_says_again_what_the_folder_does_not_hold() -> None:
    from gflv2 import cli

    options = {
        "max_steps": 9,
        "limit_train_batches": 4,
        "limit_val_batches": 5,
        "progress": False,
        "accelerator": "cpu",
        "devices": [1],
        "num_nodes": 2,
    }
    assert options.keys() == set(_SAID_AGAIN)
    command = shlex.split(_continuation(Path("my run"), options))
    read = cli._parser().parse_args(command[1:])
    assert {name: getattr(read, name) for name in options} == options and read.resume == "my run"
    plain = {name: inspect.signature(train).parameters[name].default for name in options}
    assert _continuation(Path("run"), plain) == "gflv2 train --resume run"
    assert _continuation(Path("run"), {**plain, "devices": [0, 2]}) == "gflv2 train --resume run --devices 0,2"


def test_the_exit_code_of_a_stopped_command(monkeypatch, capsys) -> None:
    from gflv2 import cli

    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):

        def stop(config, signum=signum, **options):
            raise Interrupted("Continue with: gflv2 train --resume here", signum)

        monkeypatch.setattr("gflv2.engine.train.train", stop)
        assert cli.main(["train", "gflv2_lite0"]) == code
        assert capsys.readouterr().err == "Continue with: gflv2 train --resume here\n"


def test_a_signal_to_the_whole_group_is_the_same(data, tmp_path) -> None:
    """As ``timeout`` and schedulers send it: to the data workers too."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys\n"
        "from tests.faults.test_runs import At, CONFIG, run\n"
        "from types import SimpleNamespace\n"
        "from gflv2.engine.interruption import Interrupted\n"
        "data = SimpleNamespace(train=sys.argv[1], val=None)\n"
        "try:\n"
        "    run(data, sys.argv[2], val=False, callbacks=[At(1, lambda _: os.killpg(0, signal.SIGTERM))])\n"
        "except Interrupted as error:\n"
        "    sys.exit(error.code)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", str(script), str(data.train), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, start_new_session=True)
    assert done.returncode == 143, done.stderr[-2000:]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


# ---- folders ----------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing(whole, data, caplog) -> None:
    before = contents(whole)
    with caplog.at_level(logging.INFO, logger="gflv2"):
        result = run(data, None, resume=whole, progress=True)
    assert contents(whole) == before
    assert "is complete: iteration 6, 2 epochs; nothing to do. To train longer: --train.epochs" in caplog.text
    assert result.best_weights == whole / "weights" / "best.pt" and result.metrics["images"] == 2 and result.seconds > 0


def test_a_finished_run_gets_the_files_that_it_had_no_time_for(whole, data, tmp_path) -> None:
    folder = copy_of(whole, tmp_path / "run")
    (folder / "metrics.json").unlink()
    (folder / "weights" / "last.pt").unlink()
    run(data, None, resume=folder)
    assert differences(whole, folder) == []


def other_classes(data, tmp_path) -> Path:
    import json

    content = json.loads(Path(data.train).read_text())
    content["categories"][0]["name"] = "hexagon"
    file = Path(data.train).with_name("other_train.json")
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_data": "other classes"}, "classes of the training file.*missing '.*'; new 'hexagon'"),
        ({"overrides": {"train.optimizer": "sgd"}}, "train.optimizer was adamw, now sgd"),
        ({"overrides": {"train.ema_decay": 0.9}}, "train.ema_decay was null, now 0.9"),
        ({"overrides": {"model.neck.channels": 32}}, "model.neck.channels was 16, now 32"),
        ({"weights": "a.pt"}, "weights: a run that is resumed has its own"),
        ({"overrides": {"train.precision": "7"}}, "train.precision"),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(short, data, tmp_path, options, message) -> None:
    folder = copy_of(short, tmp_path / "run")
    before = contents(folder)
    if options.get("train_data"):
        options = {"train_data": other_classes(data, tmp_path)}
    with pytest.raises(ValueError, match=message):
        run(data, None, resume=folder, **{"overrides": {"train.epochs": 2}, **options})
    assert contents(folder) == before
    assert run(data, None, resume=folder, overrides={"train.epochs": 2}, limit_train_batches=1).output == folder


def test_another_batch_inside_an_epoch_is_named(data, tmp_path) -> None:
    folder = run(data, tmp_path / "run", max_steps=1, overrides={"data.workers": 0}, val=False).output
    with pytest.raises(ValueError, match="train.batch_size was 2, now 3; the run stopped inside epoch 1"):
        run(data, None, resume=folder, overrides={"train.batch_size": 3})


def test_weights_are_not_a_run(short, tmp_path, data) -> None:
    folder = copy_of(short, tmp_path / "run")
    with pytest.raises(checkpoint.CheckpointError, match="holds weights, not the state of a run.*--weights"):
        run(data, None, resume=folder / "weights" / "last.pt")


def test_two_runs_never_share_a_folder(tmp_path) -> None:
    config = load_config(CONFIG)
    code = (
        "import sys\nfrom gflv2.config import load_config\nfrom gflv2.engine.run_folder import claimed\n"
        "with claimed(load_config(None), sys.argv[1], None, True):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    output = tmp_path / "run"
    command = [sys.executable, "-c", code, str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="another process is writing to"):
                with claimed(config, output, None, overwrite):
                    pass
        other.kill()  # a lock ends with its process
    with claimed(config, output, None, False):
        with pytest.raises(FileExistsError, match="another process"):
            with claimed(config, output, None, False):
                pass
    assert os.listdir(output) == []
    with claimed(config, tmp_path / "new", None, False):
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_other_processes_of_a_run_hold_no_folder(tmp_path, monkeypatch, name) -> None:
    for other in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    config = load_config(CONFIG)
    with claimed(config, tmp_path / "run", None, False) as folder:
        monkeypatch.setenv(name, "1")
        with claimed(config, tmp_path / "run", None, False) as same:
            assert same == folder
        monkeypatch.setenv(name, "0")
        with pytest.raises(FileExistsError, match="another process"), claimed(config, tmp_path / "run", None, False):
            pass


def test_numbered_folders_are_made_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIG)
    with claimed(config, None, None, False) as one, claimed(config, None, None, False) as two:
        assert (one, two) == (Path("runs/tiny"), Path("runs/tiny-2")) and one.is_dir() and two.is_dir()


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "", "a/b", "a\nb", "x" * 300])
def test_a_name_never_leaves_the_runs(name, data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name: expected a plain name"):
        run(data, None, config={**CONFIG, "name": name})
    assert os.listdir(tmp_path) == []


def test_a_folder_of_images_is_no_validation_data(data, tmp_path) -> None:
    with pytest.raises(ValueError, match="a folder without annotations"):
        run(SimpleNamespace(train=data.train, val=data.val_images), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file(data, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="output: .*file' is a file; expected a folder"):
        run(data, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "number, cause", [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_a_disk_that_takes_no_more(short, data, tmp_path, monkeypatch, number, cause) -> None:
    folder = copy_of(short, tmp_path / "run")
    whole_checkpoints = contents(folder / "checkpoints")
    real = files.tempfile.mkstemp

    def refuse(prefix, **options):
        if prefix == "last.ckpt":
            raise OSError(number, cause)
        return real(prefix=prefix, **options)

    class FailsToo(Callback):
        def on_exception(self, trainer, pl_module, exception) -> None:
            raise RuntimeError("the logger cannot write either")

    monkeypatch.setattr(files, "tempfile", SimpleNamespace(mkstemp=refuse))
    with pytest.raises(OSError, match=f"{cause}: '{folder}/checkpoints/last.ckpt'"):
        run(data, None, resume=folder, overrides={"train.epochs": 2}, limit_train_batches=1, callbacks=[FailsToo()])
    assert contents(folder / "checkpoints").items() >= whole_checkpoints.items()
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["epochs"] == 2


def test_overwriting_leaves_nothing_of_the_old_run(short, data, tmp_path) -> None:
    folder = copy_of(short, tmp_path / "run")
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"of the old run")
    run(data, folder, overwrite=True, val=False, limit_train_batches=1, overrides={"train.epochs": 1})
    assert os.listdir(folder / "checkpoints") == ["last.ckpt"]
