"""The detector as Lightning trains it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gflv2.checkpoint import describe_model
from gflv2.engine.evaluate import CocoEvaluator
from gflv2.engine.parts import recomputed, slices
from gflv2.engine.schedule import lr_factor, make_optimizer, optimizer_settings
from gflv2.engine.teacher import Teacher
from gflv2.extras import missing_package
from gflv2.models.detector import SingleStageDetector

try:
    import lightning
except ModuleNotFoundError as error:
    raise missing_package(error, "Training") from error


def share(counts: Tensor) -> Tensor:
    """(2,) number of some and of all → some / all; 0 of none."""
    return counts[0] / counts[1].clamp(min=1)


def _weights(fingerprint: str | None) -> str:
    return "no teacher" if fingerprint is None else f"weights {fingerprint}"


class DetectorModule(lightning.LightningModule):
    """Losses, optimiser, schedule and evaluation of one detector.

    Args:
        model: its ``config.train`` says how it is trained.
        evaluator: collects the detections of each validation epoch; None: no validation.
        teacher: whose distributions the model learns; None: only the data's.

    Attributes:
        metrics: the latest validation's numbers as plain values, ``EvalResult.to_dict()``.
    """

    def __init__(
        self, model: SingleStageDetector, evaluator: CocoEvaluator | None = None, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.evaluator = evaluator
        self.metrics: dict[str, Any] = {}
        self._clamped: Tensor | None = None  # of this epoch: target sides that are clamped, and all of them
        self._clamped_share: Tensor | None = None

    def forward(self, images: Tensor) -> Any:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        total, losses, clamped = self.losses(batch)
        shown = {name.removeprefix("loss_"): value.detach() for name, value in losses.items()}
        self.log_dict({"loss": total.detach(), **shown}, prog_bar=True, batch_size=len(batch))
        if clamped is not None:
            self._clamped = clamped if self._clamped is None else self._clamped + clamped
            self.log("clamped_targets", share(clamped), batch_size=len(batch))
        return total

    def losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """What is minimised for a batch, the losses that it is the sum of, and ``clamped_sides`` of the targets."""
        losses, clamped = self._losses(batch)
        total = sum(value for name, value in losses.items() if name.startswith("loss"))
        return total, losses, clamped

    def _losses(self, batch: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        head, images = self.model.bbox_head, self.images(batch)
        number = self.model.config.train.accumulate
        parts = [slice(None)] if number == 1 else slices(len(batch), number)
        # Before the parts, which are computed twice.
        taught = {}
        if self.teacher is not None:
            taught = {rows.start: {"teaching": self.teacher(images[rows], batch.image_sizes[rows])} for rows in parts}

        def part(rows: slice, losses: Callable[..., Any]) -> tuple[Any, Tensor | None]:
            output = self.model(images[rows])
            boxes, sizes = batch.boxes[rows], batch.padded_sizes[rows]
            ignored = None if batch.ignore_boxes is None else batch.ignore_boxes[rows]
            assignment = head.assign(output, boxes, batch.labels[rows], sizes, ignored)
            found = losses(output, assignment, boxes, sizes, **taught.get(rows.start, {}))
            return found, head.clamped_sides(output, assignment, boxes)

        if number == 1:
            return part(parts[0], head.losses)
        found = recomputed(partial(part, losses=head.loss_sums), parts, self.model)
        clamped = [sides for _, sides in found]
        return head.combine([sums for sums, _ in found]), None if clamped[0] is None else torch.stack(clamped).sum(0)

    def on_train_epoch_start(self) -> None:
        self._clamped = self._clamped_share = None

    def clamped_share(self) -> Tensor | None:
        """Share of the target sides of this epoch that were clamped, of all processes; each has to ask for it."""
        if self._clamped is not None and self._clamped_share is None:
            self._clamped_share = share(self.trainer.strategy.reduce(self._clamped, reduce_op="sum"))
        return self._clamped_share

    def on_train_epoch_end(self) -> None:
        value = self.clamped_share()
        if value is not None:
            self.log("clamped_targets_of_epoch", value, batch_size=1)

    def images(self, batch: Any) -> Tensor:
        """Those of a batch in the memory format that the model is trained in."""
        last = self.model.config.train.channels_last
        return batch.images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        detections = self.model.detect(self.images(batch), batch.image_sizes, batch.scale_factors)
        self.evaluator.update(batch, detections)

    def on_validation_epoch_end(self) -> None:
        # Every process takes part in the gathering and gets the same numbers, so that all agree on the best epoch.
        result = self.evaluator.compute()
        self.metrics = result.to_dict()
        self.log_dict(dict(result), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["metrics"] = self.metrics
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.fingerprint
        checkpoint["gflv2"] = describe_model(self.model)  # makes the file one that `GFLV2(weights=…)` reads

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.metrics = checkpoint.get("metrics", {})
        taught, now = checkpoint.get("teacher"), None if self.teacher is None else self.teacher.fingerprint
        if taught != now:
            raise ValueError(
                f"train.distill.teacher: the run has learnt from {_weights(taught)}, it would go on with "
                f"{_weights(now)}; a run keeps its teacher. To begin anew from its weights: --weights"
            )

    def on_train_start(self) -> None:
        if self.teacher is not None:  # which is no module of this one, so that no checkpoint holds it
            self.teacher.to(self.device)
        # A resumed run goes on under the settings that it has now: the optimiser's file holds those of before.
        scheduler = self.lr_schedulers()
        settings = optimizer_settings(self.model.config.train)
        scheduler.base_lrs = [settings["lr"] for _ in scheduler.base_lrs]
        for group, rate in zip(self.optimizers(use_pl_optimizer=False).param_groups, scheduler.lr_lambdas, strict=True):
            lr = settings["lr"] * rate(scheduler.last_epoch)
            group.update({**settings, "initial_lr": settings["lr"], "lr": lr})
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.model.config.train
        optimizer = make_optimizer(self.model.parameters(), config)
        iterations = int(self.trainer.estimated_stepping_batches)
        per_epoch = int(self.trainer.num_training_batches)

        def factor(iteration: int) -> float:
            return lr_factor(iteration, config, iterations_per_epoch=per_epoch, iterations=iterations)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
