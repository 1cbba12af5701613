"""What happens beside the training step: averaged weights, a stop at NaN, progress for people and for log files."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar, WeightAveraging
from torch import Tensor

from gflv2.engine.checkpoints import remedies

_log = logging.getLogger("gflv2")


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message says where and what to try."""


class StopAtNonFiniteLoss(Callback):
    """Raise ``NonFiniteLoss`` and name the first iteration whose loss is NaN or infinite.

    On a GPU the losses are read every ``every`` iterations only, because reading waits for the device. Several
    processes read at the same iterations, and all of them stop where one met such a loss.
    """

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self._first: Tensor | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        iteration = trainer.fit_loop.total_batch_idx
        if self._first is None:
            self._first = torch.full((), -1, dtype=torch.int64, device=loss.device)
        new = ~torch.isfinite(loss) & (self._first < 0)
        self._first = torch.where(new, torch.full_like(self._first, iteration), self._first)
        is_last = batch_idx + 1 == trainer.num_training_batches
        if loss.device.type == "cpu" or is_last or iteration % self.every == self.every - 1:
            first = int(self._first)
            if trainer.world_size > 1:
                first = int(trainer.strategy.reduce(self._first.double(), reduce_op="max"))
            if first >= 0:
                raise NonFiniteLoss(_non_finite_message(trainer, pl_module, first))


def _non_finite_message(trainer: Any, pl_module: Any, iteration: int) -> str:
    tries = ", or ".join(remedies(trainer, pl_module))
    return f"the loss is NaN or infinite at iteration {iteration} (epoch {trainer.current_epoch + 1}). Try {tries}"


class AverageWeights(WeightAveraging):
    """Exponential moving average of the trained weights, used for validation and in the exported files.

    The decay of iteration t is min(decay, (1 + t) / (10 + t)): a short run is not dominated by its first weights.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"train.ema_decay: expected a number between 0 and 1, got {decay!r}")
        # Buffers are copied: averaging would round the integer counters of BatchNorm.
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay = decay
        self._iteration = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None:
            return False
        self._iteration = step_idx
        return True

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], count: Any) -> None:
        decay = min(self.decay, (1 + self._iteration) / (10 + self._iteration))
        # Interpolation leaves frozen parameters as they are to the last bit; decay·a + (1 − decay)·b would not.
        torch._foreach_lerp_(averaged, current, 1.0 - decay)


class StopEarly(EarlyStopping):
    """Lightning's early stopping on the validation's AP: after so many evaluations in a row without a better one.

    The count is part of the run's checkpoints; the limit is that of the present settings.
    """

    def __init__(self, evaluations: int) -> None:
        super().__init__(
            "AP", mode="max", patience=evaluations, check_finite=False, check_on_train_epoch_end=False, strict=True
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        stopped = self.wait_count >= self.patience and trainer.current_epoch + 1 < trainer.max_epochs
        if stopped and trainer.is_global_zero:
            _log.info(
                "stopped early after epoch %d of %d: no better AP than %.3f in %d evaluations (--train.early_stopping)",
                trainer.current_epoch + 1,
                trainer.max_epochs,
                float(self.best_score),
                self.wait_count,
            )


class _Clock:
    """Time left of a run, from the mean time of the iterations since its start, evaluation included."""

    def __init__(self, trainer: Any) -> None:
        self.begin, self.first = time.monotonic(), trainer.fit_loop.total_batch_idx + 1

    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    def left(self, trainer: Any) -> float | None:
        total = trainer.estimated_stepping_batches
        done = trainer.fit_loop.total_batch_idx + 1
        if done <= self.first or total == float("inf"):
            return None
        return self.elapsed() / (done - self.first) * max(total - done, 0)


def _duration(seconds: float | None) -> str:
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the losses and the time left of the whole run instead of the logger's version number."""

    def on_train_start(self, trainer: Any, *args: Any) -> None:
        self._clock = _Clock(trainer)
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning starts no epoch then
            self.on_train_epoch_start(trainer, *args)

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {**metrics, "left": _duration(self._clock.left(trainer))}


class EpochLines(Callback):
    """One line per epoch: mean losses, AP, time taken and left. For log files, and above the progress bar."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._clock = _Clock(trainer)
        self.on_train_epoch_start(trainer, pl_module)  # a run that is resumed inside an epoch does not start it

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._evaluated = ""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        numbers = ((name, pl_module.metrics.get(name)) for name in ("AP", "AP50", "AP75"))
        self._evaluated = " | " + ", ".join(f"{name} {value:.3f}" for name, value in numbers if value is not None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name in ("loss", "qfl", "giou", "dfl", "ld", "ld_region"):
            value = trainer.callback_metrics.get(name)
            if value is not None:
                self._sums[name] = self._sums.get(name, 0) + value.detach().to(torch.float32)
        self._count += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Of all processes: each has the losses of its own images.
        sums = {name: trainer.strategy.reduce(value, reduce_op="mean") for name, value in self._sums.items()}
        clamped = pl_module.clamped_share()
        if not trainer.is_global_zero:
            return
        means = ", ".join(f"{name} {float(value) / max(self._count, 1):.3f}" for name, value in sums.items())
        if clamped is not None and float(clamped) > 0:
            means += f", {float(clamped):.1%} of the targets clamped"
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {means}"
        text += (
            f"{self._evaluated} | {_duration(self._clock.elapsed())} gone, {_duration(self._clock.left(trainer))} left"
        )
        bar = trainer.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(text)
        else:
            _log.info("%s", text)
