"""What a run saves while it trains, so that it can be continued from there as if it had never been stopped.

``checkpoints/last.ckpt`` is written at the end of each epoch, before each validation, every ``train.save_every_steps``
iterations, at ``max_steps`` and after a signal; ``previous.ckpt`` is the one before it; ``best.ckpt`` that of the best
AP. They are Lightning's files with one more entry, ``"run"``: the place in the data, the best score so far, seconds,
and the state of torch's random numbers.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from gflv2.checkpoint.integrity import non_finite
from gflv2.data.loader import GroupedBatchSampler
from gflv2.engine.group import follow_the_first
from gflv2.engine.interruption import Signals, Stop
from gflv2.files import write_whole

RUN = "run"


class NonFiniteWeights(RuntimeError):
    """Weights became NaN or infinite; the message says when, which, and what to try. Nothing of them was written."""


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, which appear whole or not at all, whatever ``TMPDIR`` is.

    Args:
        content: what the checkpoint to resume from holds; it is read and checked before the trainer asks for it.
    """

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self._content = content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        write_whole(
            path, buffer.getbuffer(), keep_as=path.with_name("previous.ckpt") if path.name == "last.ckpt" else None
        )

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        content, self._content = self._content, None
        return content if content is not None else super().load_checkpoint(path, *args, **options)


class RunCheckpoints(Checkpoint):
    """Saves the run, checks the weights before, and stops the run between two steps where that is asked for.

    Args:
        folder: of the run; its ``checkpoints/`` is written to.
        signals: which may ask to stop.
        every_steps: save after each so many iterations; None: not.
        max_steps: stop after so many.
        on_start: called once, in the first process, when nothing that is known can fail any more.

    Attributes:
        best_score, best_epoch: of ``best.ckpt``, the epoch counted from 1; None: none yet.
        failure: the error of a save. What fails after it, such as a logger on the same full disk, matters less.
        last_saved: iteration of ``last.ckpt``; None: none yet.
    """

    def __init__(
        self,
        folder: Path,
        signals: Signals,
        *,
        every_steps: int | None = None,
        max_steps: int | None = None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.failure: BaseException | None = None
        self.last_saved: int | None = None
        self._signals = signals
        self._every_steps, self._max_steps, self._on_start = every_steps, max_steps, on_start
        self._evaluated = False  # in this epoch
        self._place: str | None = None  # "batch", "validation" or "epoch" while this class saves
        self._seconds = 0.0  # of earlier parts of the run
        self._begin: float | None = None
        self._random: Mapping[str, Any] | None = None
        self._over = threading.Event()

    def follow(self, sampler: GroupedBatchSampler, plan: Mapping[str, Any]) -> None:
        """Name the sampler of the training loader, which is told where to go on, and what its order depends on."""
        self._sampler, self._plan = sampler, dict(plan)

    @property
    def seconds(self) -> float:
        """Wall time of the training loop, evaluation included, over all parts of the run."""
        return self._seconds + (time.monotonic() - self._begin if self._begin is not None else 0.0)

    # ---- going on ----

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # The first process chose the folder.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        run = place_in_run(checkpoint)
        self.best_score, self.best_epoch = run["best_score"], run["best_epoch"]
        self._seconds, self._random = run["seconds"], run["random"]
        self.last_saved = int(checkpoint["global_step"])
        # Before the trainer makes the loader's iterator: its workers start to read at once.
        self._sampler.start_at(run["epoch"], run["batch"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            with self._noting_failures():
                self._on_start()
        self._over = follow_the_first(trainer)
        if self._random is not None and trainer.world_size == 1:
            _restore_random_state(self._random, pl_module.device)
        self._begin = time.monotonic()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._over.set()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._over.set()

    # ---- saving and stopping ----

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._evaluated = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # the optimiser has not stepped
            return
        last = loop.batch_progress.current.ready >= trainer.num_training_batches
        validates = last and loop._should_check_val_epoch()
        if last and not validates:
            return  # the end of the epoch follows at once: it saves and stops
        signum = self._asked_to_stop(trainer)
        reached = self._max_steps is not None and trainer.global_step >= self._max_steps
        due = self._every_steps is not None and trainer.global_step % self._every_steps == 0
        if validates or reached or due or signum is not None:
            self._save(trainer, pl_module, "last", "validation" if validates else "batch")
        if signum is not None or (reached and not validates):
            raise Stop(signum)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        signum = self._asked_to_stop(trainer)
        if signum is not None:
            raise Stop(signum)  # saved before the validation began, which will be done anew

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._evaluated = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._evaluated:
            score = float(trainer.callback_metrics.get("AP", math.nan))
            score = -math.inf if math.isnan(score) else score
            if self.best_score is None or score > self.best_score:
                self.best_score, self.best_epoch = score, trainer.current_epoch + 1
                self._save(trainer, pl_module, "best", "epoch")
        self._save(trainer, pl_module, "last", "epoch")
        signum = self._asked_to_stop(trainer)
        reached = self._max_steps is not None and trainer.global_step >= self._max_steps
        if signum is not None or (reached and trainer.current_epoch + 1 < trainer.max_epochs):
            raise Stop(signum)

    def _asked_to_stop(self, trainer: Any) -> int | None:
        """The signal, if any process got one: all of them stop at the same step."""
        signum = self._signals.received or 0
        if trainer.world_size > 1:
            asked = torch.tensor(float(signum), device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(asked, reduce_op="max"))
            self._signals.received = self._signals.received or signum or None
        return signum or None

    def _save(self, trainer: Any, pl_module: Any, name: str, place: str) -> None:
        self._place = place
        try:
            with self._noting_failures():
                self._refuse_non_finite(trainer, pl_module)
                trainer.save_checkpoint(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=False)
        finally:
            self._place = None
        if name == "last":
            self.last_saved = trainer.global_step

    @contextlib.contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.failure = self.failure or error
            raise

    def _refuse_non_finite(self, trainer: Any, pl_module: Any) -> None:
        wrong = non_finite(pl_module.model.state_dict())
        if not wrong:
            return
        before = "nothing was saved before it"
        if self.last_saved is not None:
            file = self.folder / "checkpoints" / "last.ckpt"
            before = f"the last finite state, of iteration {self.last_saved}, is {file}"
        where = f"iteration {trainer.global_step} (epoch {trainer.current_epoch + 1})"
        tries = ", or ".join(remedies(trainer, pl_module))
        raise NonFiniteWeights(
            f"the weights are NaN or infinite after {where}, first in {wrong[0]}; {before}. Try {tries}"
        )

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # Also where somebody else saves: another callback, or Lightning before it is queued again.
        epochs = trainer.fit_loop.epoch_progress.current
        over = epochs.ready == epochs.processed
        checkpoint[RUN] = {
            "epoch": epochs.processed,
            "batch": 0 if over else trainer.fit_loop.epoch_loop.batch_progress.current.processed,
            "plan": {**self._plan, "batches of an epoch": int(trainer.num_training_batches)},
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "random": _random_state(pl_module.device),
        }
        if self._place in ("batch", "validation"):
            _settle(checkpoint["loops"]["fit_loop"], validation_follows=self._place == "validation")


def remedies(trainer: Any, pl_module: Any) -> list[str]:
    """What to try against losses and weights that are not finite, with the present settings."""
    config = pl_module.model.config.train
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    tries = [f"a lower learning rate (--train.lr, now {config.lr:g}; {lr:.2g} in use)"]
    tries.append(f"a longer warm-up (--train.warmup_iterations, now {config.warmup_iterations})")
    if config.clip_grad_norm is None:
        tries.append("gradient clipping (--train.clip_grad_norm 10)")
    if config.precision == "16":
        tries.append("--train.precision bf16 or 32")
    return tries


def place_in_run(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The entry ``"run"``; for a checkpoint without one, the epoch that Lightning counted and nothing else."""
    run = {"plan": None, "best_score": None, "best_epoch": None, "seconds": 0.0, "random": None, "batch": 0}
    run |= checkpoint.get(RUN) or {}
    if "epoch" not in run:
        run["epoch"] = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    return run


def _settle(loop: dict[str, Any], *, validation_follows: bool) -> None:
    """Count the batch as finished, which Lightning does after the hook in which it is saved.

    Otherwise a save at the last batch reads as an epoch that is over, and its validation would never run.
    """
    progress = loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["processed"]
    progress["is_last_batch"] = validation_follows
    if validation_follows:
        # In Lightning's terms a validation that has begun and finished no batch; it starts from its first one.
        loop["epoch_loop.val_loop.batch_progress"] = {
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
            "is_last_batch": False,
        }
    else:
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def _random_state(device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
