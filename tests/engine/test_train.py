"""Schedule, losses that fall, exact resuming, stops at NaN, several processes; all on small generated images."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from gflv2 import GFLV2, checkpoint
from gflv2.config import TrainConfig, load_config
from gflv2.data import shapes
from gflv2.engine.callbacks import AverageWeights, NonFiniteLoss
from gflv2.engine.schedule import lr_factor, make_optimizer, scaled_lr, warmup_factor
from gflv2.engine.train import TrainResult, describe_convolutions, train

# The lightest detector that has every part: about 0.2 s for an iteration of 4 images on one core.
TINY = {
    "name": "tiny",
    "model": {
        "backbone": {"name": "tf_efficientnet_lite0", "frozen_stages": 1},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 64, "short_side": [64, 64], "test_short_side": 64, "workers": 0},
    "train": {
        "epochs": 2,
        "batch_size": 4,
        "base_batch_size": 4,
        "optimizer": "adamw",
        "lr": 0.004,
        "schedule": "cosine",
        "warmup_iterations": 2,
    },
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=8, val=4, size=64)


def run(sample_set, output, *, val: bool = True, **options) -> TrainResult:
    return train(
        options.pop("config", TINY),
        train_data=sample_set.train,
        val_data=sample_set.val if val else None,
        output=output,
        pretrained=False,
        accelerator="cpu",
        progress=options.pop("progress", False),
        **options,
    )


class Record(Callback):
    """Loss and learning rate of every iteration."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))


# ---- schedule ----------------------------------------------------------------


def test_the_warm_up_is_linear_from_the_factor_to_one() -> None:
    assert warmup_factor(0, 500, 0.001) == pytest.approx(0.001)
    assert warmup_factor(250, 500, 0.001) == pytest.approx(1 - 0.5 * 0.999)
    assert warmup_factor(499, 500, 0.001) == pytest.approx(1 - 0.002 * 0.999)
    assert warmup_factor(500, 500, 0.001) == 1.0
    assert warmup_factor(0, 0, 0.001) == 1.0


def test_step_schedule_drops_after_the_milestones() -> None:
    config = TrainConfig(epochs=12, milestones=[8, 11], warmup_iterations=0)
    at = [lr_factor(e * 100 + i, config, iterations_per_epoch=100, iterations=1200) for e in range(12) for i in (0, 99)]
    assert at == pytest.approx([1.0] * 16 + [0.1] * 6 + [0.01] * 2)


def test_cosine_schedule_goes_from_one_to_zero() -> None:
    config = TrainConfig(schedule="cosine", warmup_iterations=10)
    factors = [lr_factor(i, config, iterations_per_epoch=10, iterations=100) for i in range(101)]
    assert factors[0] == pytest.approx(0.001)
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_an_unknown_schedule_or_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="train.schedule.*'step', 'cosine'.*'poly'"):
        lr_factor(0, TrainConfig(schedule="poly"), iterations_per_epoch=1, iterations=1)
    with pytest.raises(ValueError, match="train.optimizer.*'sgd', 'adamw'.*'adam'"):
        make_optimizer([torch.nn.Parameter(torch.ones(1))], TrainConfig(optimizer="adam"))


def test_sgd_decays_every_trained_parameter() -> None:
    trained, frozen = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = make_optimizer([trained, frozen], TrainConfig())
    (group,) = optimizer.param_groups
    assert group["params"] == [trained]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 1e-4)
    trained.grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(trained.detach(), torch.full((3,), 1 - 0.01 * 1e-4))


def test_the_learning_rate_follows_the_batch_unless_told_otherwise() -> None:
    assert scaled_lr(TrainConfig(batch_size=4)) == pytest.approx(0.0025)
    assert scaled_lr(TrainConfig(batch_size=4, scale_lr=False)) == 0.01


# ---- whole runs ----------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(sample_set, tmp_path_factory):
    """One run, looked at by several tests: 8 epochs of 2 iterations on 8 images, with an average of the weights."""
    record = Record()
    changes = {"train.epochs": 8, "train.ema_decay": 0.9, "train.evaluate_every": 4, "train.channels_last": True}
    result = run(
        sample_set, tmp_path_factory.mktemp("run") / "a", overrides=changes, callbacks=[record], limit_val_batches=1
    )
    return result, record


def test_the_loss_falls(finished) -> None:
    _, record = finished
    assert len(record.losses) == 16
    first, last = sum(record.losses[:3]) / 3, sum(record.losses[-3:]) / 3
    assert last < 0.85 * first, record.losses


def test_every_iteration_has_the_rate_of_the_schedule(finished) -> None:
    _, record = finished
    config = load_config(TINY).train
    wanted = [0.004 * lr_factor(i, config, iterations_per_epoch=2, iterations=16) for i in range(16)]
    assert record.rates == pytest.approx(wanted)


def test_a_run_leaves_weights_that_carry_classes_and_configuration(finished) -> None:
    result, _ = finished
    model = GFLV2(weights=result.best_weights)
    assert model.class_names == list(shapes.CLASS_NAMES)
    assert model.config.model.neck.channels == 16
    last = GFLV2(weights=result.output / "checkpoints" / "last.ckpt")  # the average, as in weights/last.pt
    for (key, a), b in zip(
        last.state_dict().items(), GFLV2(weights=result.last_weights).state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key


def test_a_run_leaves_metrics_configuration_and_tensorboard_events(finished) -> None:
    result, _ = finished
    report = json.loads((result.output / "metrics.json").read_text())
    assert report["best_epoch"] == result.best_epoch and result.best_epoch in (4, 8)
    assert report["metrics"] == result.metrics
    assert result.metrics["images"] == 4 and set(result.metrics["per_class"]) == set(shapes.CLASS_NAMES)
    assert load_config(result.output / "config.yaml").train.epochs == 8
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(result.output)).Reload()
    assert {"loss", "qfl", "giou", "dfl", "clamped_targets", "AP"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("clamped_targets_of_epoch")) == 8


@pytest.mark.parametrize(
    "kind, settings, told",
    [
        ("cpu", {}, "wider than 3 in columns; 1×1 convolutions as without it, since PyTorch itself takes oneDNN with"),
        ("cpu", {"precision": "bf16"}, "has no effect: .* got cpu, true and bf16"),
        ("cpu", {"channels_last": False}, "has no effect: .* got cpu, false and 32"),
        ("cuda", {}, "has no effect: .* got cuda, true and 32"),
    ],
)
def test_the_log_tells_whether_convolutions_are_faster(kind, settings, told, caplog, monkeypatch) -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)), world_size=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with caplog.at_level(logging.INFO, logger="gflv2"):
        describe_convolutions(TrainConfig(**{"channels_last": True, **settings}), trainer)
    assert re.search(told, caplog.text)


def test_the_log_tells_data_rate_and_folder(sample_set, tmp_path, caplog) -> None:
    changes = {"train.epochs": 1, "train.base_batch_size": 8, "model.head.reg_max": 3, "train.fast_convolutions": True}
    with caplog.at_level(logging.INFO, logger="gflv2"):
        result = run(sample_set, tmp_path / "a", overrides=changes, limit_train_batches=1, progress=True, val=False)
    assert "8 training images, " in caplog.text and "no validation data" in caplog.text
    assert "learning rate 0.002 = 0.004 × 4 / 8 (scaled with the batch)" in caplog.text
    assert "the warm-up (2 iterations) takes more than half of the run (1)" in caplog.text
    assert re.search(r"epoch 1/1: loss .*, [1-9]\d*\.\d% of the targets clamped", caplog.text)
    assert caplog.text.count("train.fast_convolutions") == 1
    assert f"writing to {tmp_path / 'a'}" in caplog.text
    assert result.metrics == {} and result.best_epoch is None and result.best_weights == result.last_weights


class StopAfterFirstEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_ends_with_the_same_bits(sample_set, tmp_path, optimizer) -> None:
    changes = {"train.ema_decay": 0.9, "train.optimizer": optimizer, "data.photometric": 0.5}
    whole = run(sample_set, tmp_path / "whole", overrides=changes)
    stopped = run(sample_set, tmp_path / "parts", overrides=changes, callbacks=[StopAfterFirstEpoch()])
    epoch_one = checkpoint.read(stopped.last_weights).state
    resumed = run(sample_set, None, config=None, resume=tmp_path / "parts")
    assert resumed.output == tmp_path / "parts"
    ends = [torch.load(r.output / "checkpoints" / "last.ckpt", weights_only=True) for r in (whole, resumed)]
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_same(ends[0][part], ends[1][part], part)
    assert whole.metrics == resumed.metrics and whole.best_epoch == resumed.best_epoch
    changed = checkpoint.read(resumed.last_weights).state
    assert any(not torch.equal(epoch_one[key], changed[key]) for key in epoch_one)


def assert_same(a, b, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}.{i}")
    else:
        assert a == b, where


class Poison(Callback):
    """NaN in the images of one iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.iteration:
            batch.images.fill_(float("nan"))


def test_a_nan_stops_and_says_where_and_what_to_try(sample_set, tmp_path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"iteration 3 \(epoch 2\).*--train.lr, now 0.004.*--train.clip_grad_norm"):
        run(sample_set, tmp_path / "a", callbacks=[Poison(3)])
    # The best weights until then are kept; the poisoned ones are not offered.
    assert (tmp_path / "a" / "weights" / "best.pt").is_file()
    assert not (tmp_path / "a" / "weights" / "last.pt").exists()


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_mixed_precision_trains(sample_set, tmp_path, precision) -> None:
    record = Record()
    changes = {"train.precision": precision, "train.epochs": 1}
    # A CPU has no fp16 arithmetic worth the name: Lightning says that it takes bf16 there.
    expected = pytest.warns(UserWarning, match="bf16-mixed") if precision == "16" else contextlib.nullcontext()
    with expected:
        result = run(sample_set, tmp_path / "a", overrides=changes, callbacks=[record], val=False)
    assert len(record.losses) == 2 and all(loss == loss and 0 < loss < 10 for loss in record.losses)
    dtypes = {value.dtype for value in checkpoint.read(result.last_weights).state.values()}
    assert dtypes == {torch.float32, torch.int64}


def test_clipping_bounds_the_step(sample_set, tmp_path) -> None:
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))

    class AtStep(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in self.param_groups[0]["params"]])))
            return loss

    changes = {"train.clip_grad_norm": 0.01, "train.epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.AdamW", lambda p, lr, weight_decay: AtStep(p, lr=lr, weight_decay=weight_decay))
        run(sample_set, tmp_path / "a", overrides=changes, callbacks=[Norms()], limit_train_batches=1, val=False)
    before, after = norms
    assert before > 0.02 and after == pytest.approx(0.01, rel=1e-3)


def test_fine_tuning_shows_the_weights_the_pixels_that_they_know(sample_set, tmp_path) -> None:
    other = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    weights = tmp_path / "start.pt"
    checkpoint.save(GFLV2({**TINY, "data": {**TINY["data"], **other}}, num_classes=5), weights)

    class Look(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            self.data = trainer.train_dataloader.dataset.config
            self.model = pl_module.model.config.data

    look = Look()
    run(sample_set, tmp_path / "a", weights=weights, max_steps=1, callbacks=[look], val=False)
    assert look.data.mean == look.model.mean == other["mean"]
    assert look.data.std == look.model.std == other["std"]


def test_max_steps_ends_the_run(sample_set, tmp_path) -> None:
    record = Record()
    run(sample_set, tmp_path / "a", overrides={"train.epochs": 5}, max_steps=1, callbacks=[record], val=False)
    assert len(record.losses) == 1


# ---- averaged weights ----------------------------------------------------------------


def test_the_average_follows_its_formula_and_leaves_equal_values_alone() -> None:
    average = AverageWeights(0.9)
    mean, value = torch.tensor([1.0, 0.1]), torch.tensor([3.0, 0.1])
    wanted = 1.0
    for step in (0, 1, 500):
        assert average.should_update(step_idx=step)
        average._average([mean], [value], None)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * 3.0
        assert float(mean[0]) == pytest.approx(wanted, rel=1e-6)
    assert float(mean[1]) == float(value[1])
    assert not average.should_update(epoch_idx=1)


def test_a_decay_outside_of_zero_to_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="train.ema_decay.*1.5"):
        AverageWeights(1.5)


# ---- arguments ----------------------------------------------------------------


def test_an_output_that_holds_a_run_is_not_overwritten_unasked(finished, sample_set) -> None:
    result, _ = finished
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(sample_set, result.output)


def test_runs_without_an_output_are_numbered(sample_set, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"overrides": {"train.epochs": 1}, "limit_train_batches": 1, "val": False}
    folders = [run(sample_set, None, **options).output for _ in range(2)]
    assert folders == [Path("runs/tiny"), Path("runs/tiny-2")]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"overrides": {"train.precision": "8"}}, ValueError, "train.precision.*'32', 'bf16', '16'.*'8'"),
        ({"overrides": {"train.epochs": 0}}, ValueError, "train.epochs"),
        ({"overrides": {"train.batch_size": 3}, "devices": 2}, ValueError, "multiple of the 2 devices, got 3"),
        ({"resume": "nowhere"}, FileNotFoundError, "no checkpoint 'nowhere'"),
        ({"config": None}, ValueError, "config"),
        ({"config": "gflv2_r51"}, FileNotFoundError, "gflv2_r51"),
    ],
)
def test_wrong_arguments_are_named(sample_set, tmp_path, options, error, message) -> None:
    with pytest.raises(error, match=message):
        run(sample_set, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_training_data_is_needed(tmp_path) -> None:
    with pytest.raises(ValueError, match="data.train"):
        train(TINY, output=tmp_path / "a")


# ---- several processes ----------------------------------------------------------------

TWO_PROCESSES = """
import sys, torch
from lightning.pytorch.callbacks import Callback
sys.path.insert(0, {tests!r})
from gflv2.engine.train import train

class Boxes(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        count = torch.tensor([sum(len(b) for b in batch.boxes)])
        counts = [torch.zeros_like(count) for _ in range(2)]
        torch.distributed.all_gather(counts, count)
        if trainer.is_global_zero:
            print("boxes", *(int(c) for c in counts), flush=True)

    def on_train_end(self, trainer, pl_module):
        total = torch.cat([p.detach().flatten() for p in pl_module.parameters()]).double().sum().reshape(1)
        totals = [torch.zeros_like(total) for _ in range(2)]
        torch.distributed.all_gather(totals, total)
        if trainer.is_global_zero:
            print("same", bool(totals[0] == totals[1]), flush=True)

torch.set_num_threads(1)
result = train({config!r}, train_data={train!r}, val_data={val!r}, output={output!r}, pretrained=False,
               overrides={{"data.keep_empty": True, "train.batch_size": 2, "train.epochs": 1}},
               accelerator="cpu", devices=2, progress=False, callbacks=[Boxes()])
print("AP", result.metrics["AP"], result.metrics["images"], flush=True)
"""


def test_two_processes_train_although_one_has_no_box(sample_set, tmp_path) -> None:
    content = json.loads(Path(sample_set.train).read_text())
    content["images"] = content["images"][:4]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    boxes = len(content["annotations"])
    file = Path(sample_set.train).with_name("one_with_boxes_train.json")
    file.write_text(json.dumps(content))
    script = tmp_path / "two.py"
    script.write_text(
        TWO_PROCESSES.format(
            tests=str(Path(__file__).parents[2]),
            config=TINY,
            train=str(file),
            val=str(sample_set.val),
            output=str(tmp_path / "out"),
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    counts = [sorted(int(n) for n in line.split()[1:]) for line in lines if line.startswith("boxes")]
    assert sorted(counts) == [[0, 0], [0, boxes]]  # one step without any box, one where a single process has some
    assert "same True" in lines
    results = [line for line in lines if line.startswith("AP")]
    assert len(results) == 2 and results[0] == results[1] and results[0].endswith(" 4")
    assert (tmp_path / "out" / "weights" / "best.pt").is_file()


# ---- the official recipe, small ----------------------------------------------------------------


@pytest.mark.slow
def test_the_resnet18_recipe_starts_steps_and_evaluates(sample_set, tmp_path) -> None:
    record = Record()
    changes = {"train.epochs": 1, "train.batch_size": 2, "data.workers": 0}
    changes |= {"data.long_side": 128, "data.short_side": [96, 128], "data.test_short_side": 96}
    result = run(
        sample_set,
        tmp_path / "a",
        config="gflv2_r18_fpn_1x",
        overrides=changes,
        callbacks=[record],
        limit_train_batches=2,
        limit_val_batches=1,
    )
    assert record.rates == pytest.approx([0.01 * 2 / 16 * (1 - (1 - i / 500) * 0.999) for i in range(2)])
    assert all(0 < loss < 10 for loss in record.losses)
    assert result.metrics["images"] == 2 and 0 <= result.metrics["AP"] <= 1


def test_lightning_is_new_enough() -> None:
    """`WeightAveraging` and ``weights_only`` of ``fit`` came with 2.6."""
    assert tuple(int(part) for part in lightning.__version__.split(".")[:2]) >= (2, 6)
