"""Training a detector: one call that builds data, model and trainer, and leaves a folder with logs and weights."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gflv2 import checkpoint
from gflv2.config import Config, load_config
from gflv2.engine.memory import keep_freed_memory
from gflv2.engine.schedule import scaled_lr
from gflv2.extras import missing_package
from gflv2.models.detector import SingleStageDetector
from gflv2.ops.checks import check_choice

try:
    import lightning
    from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger
except ModuleNotFoundError as error:
    raise missing_package(error, "Training") from error

from gflv2.data import CocoDetection, make_loader
from gflv2.data.checking import quick_notes
from gflv2.engine.callbacks import AverageWeights, EpochLines, ProgressBar, StopAtNonFiniteLoss
from gflv2.engine.evaluate import CocoEvaluator
from gflv2.engine.lightning_module import DetectorModule

_log = logging.getLogger("gflv2")

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class TrainResult:
    """What a training run leaves.

    Attributes:
        output: folder of the run, with ``config.yaml``, ``checkpoints/`` (to resume from), ``weights/``,
            ``metrics.json`` and TensorBoard's event files.
        best_weights: our own file of the weights with the best AP (without validation: the last ones).
        last_weights: those after the last iteration.
        metrics: the evaluation of ``best_weights`` on the validation set; empty without validation.
        best_epoch: epoch of ``best_weights``, counted from 1; None without validation.
        seconds: wall time of the training loop, evaluation included.
    """

    output: Path
    best_weights: Path
    last_weights: Path
    metrics: dict[str, Any]
    best_epoch: int | None
    seconds: float


def train(
    config: str | Path | Mapping | Config | None = None,
    *,
    train_data: str | Path | None = None,
    val_data: str | Path | None = None,
    train_images: str | Path | None = None,
    val_images: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    resume: str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    num_nodes: int = 1,
    max_steps: int | None = None,
    limit_train_batches: int | None = None,
    limit_val_batches: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a detector on COCO, YOLO or Pascal VOC data.

    Args:
        config: a named configuration, a YAML file, a mapping or a ``Config``. With ``resume`` it may be left out: then
            the run's own configuration is taken.
        train_data, val_data: COCO JSON files, or what else docs/data.md lists; None: ``config.data.train`` and
            ``config.data.val``. Without validation data nothing is evaluated. The classes are those of the training
            data.
        train_images, val_images: their image folders; None: looked for beside them.
        overrides: dotted keys, e.g. ``{"train.epochs": 3}``.
        weights: a checkpoint to start from (see ``GFLV2``).
        pretrained: without ``weights``, start the backbone from ImageNet weights.
        resume: folder of an earlier run, or a checkpoint file in it; continues it exactly where it stopped.
        output: folder of the run. None: ``runs/NAME``, numbered where that exists.
        overwrite: allow an ``output`` that already holds a run.
        accelerator, devices, num_nodes: Lightning's; several devices train with DDP. Under ``torchrun``, ``devices`` is
            the number of processes of one machine.
        max_steps: stop after this many iterations.
        limit_train_batches, limit_val_batches: batches per epoch, for trying things out.
        progress: show a progress bar on a terminal and one line per epoch.
        callbacks: further Lightning callbacks.

    Raises:
        FileNotFoundError, FileExistsError, ValueError, TypeError: what the arguments or the configuration get wrong.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    checkpoint_file, resume_folder = _resume_point(resume)
    if config is None:
        if resume_folder is None:
            raise ValueError("config: expected a named configuration or a YAML file, got None")
        config = resume_folder / "config.yaml"
    config = _apply_data(config, overrides, train_data, val_data, train_images, val_images)
    start = None
    if checkpoint_file is None and weights is not None:
        start, config = _start_from(weights, config)
    precision = _PRECISIONS[check_choice(config.train.precision, "train.precision", tuple(_PRECISIONS))]
    folder = _output_folder(config, output, resume_folder, overwrite)

    train_set = CocoDetection(config.data.train, config.data.train_images, config=config.data, train=True)
    config.model.num_classes = train_set.num_classes
    val_set = None
    if config.data.val is not None:
        names = train_set.class_names
        val_set = CocoDetection(config.data.val, config.data.val_images, config=config.data, class_names=names)

    with _quiet_lightning(progress):
        lightning.seed_everything(config.train.seed)
        model = SingleStageDetector(
            config,
            class_names=train_set.class_names,
            pretrained=pretrained and start is None and checkpoint_file is None,
        )
        if start is not None:
            checkpoint.load_weights(model, start)
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            max_epochs=config.train.epochs,
            max_steps=-1 if max_steps is None else max_steps,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            gradient_clip_val=config.train.clip_grad_norm,
            check_val_every_n_epoch=config.train.evaluate_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our samplers share out the data themselves
            enable_progress_bar=progress and sys.stderr.isatty(),
            enable_model_summary=False,
            logger=TensorBoardLogger(folder, name=None, version=""),
            log_every_n_steps=10,
            callbacks=[*_callbacks(config, folder, val_set is not None, progress), *callbacks],
        )
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        per_device = _batch_per_device(config, trainer.world_size)
        train_loader = make_loader(
            train_set,
            per_device,
            train=True,
            config=config.data,
            seed=config.train.seed,
            group_by_aspect=config.train.group_by_aspect,
        )
        val_loader = make_loader(val_set, per_device, train=False, config=config.data) if val_set is not None else None
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            _write_config(config, folder / "config.yaml")
            _describe(config, trainer, train_set, val_set, len(train_loader), folder, checkpoint_file)
            for note in quick_notes(config, train_set, val_set):
                _log.warning("data: %s", note)
        module = DetectorModule(
            model,
            CocoEvaluator(val_set, max_detections=max(config.test.max_detections, 100))
            if val_set is not None
            else None,
        )
        model.train()
        if config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        begin = time.monotonic()
        best = trainer.checkpoint_callbacks[0] if val_set is not None else None
        try:
            trainer.fit(module, train_loader, val_loader, ckpt_path=checkpoint_file, weights_only=True)
        except BaseException:
            # Keep the best weights so far; the current ones may be NaN.
            if trainer.is_global_zero and best is not None and best.best_model_path:
                _export_best(model, best.best_model_path, folder)
            raise
        seconds = time.monotonic() - begin
        result = _export(
            model, best.best_model_path if best is not None else "", folder, trainer.is_global_zero, seconds
        )
        if trainer.is_global_zero:
            _finish(result)
    return result


def _apply_data(config: Any, overrides: Mapping[str, Any] | None, *data: str | Path | None) -> Config:
    keys = ("data.train", "data.val", "data.train_images", "data.val_images")
    given = {key: str(value) for key, value in zip(keys, data, strict=True) if value is not None}
    config = load_config(config, {**(overrides or {}), **given})
    if config.data.train is None:
        raise ValueError(
            "data.train: expected the COCO JSON file of the training set, got None (command line: --train)"
        )
    if config.train.epochs < 1 or config.train.batch_size < 1:
        raise ValueError(
            "train.epochs, train.batch_size: expected at least 1 each, "
            f"got {config.train.epochs} and {config.train.batch_size}"
        )
    return config


def _start_from(weights: str | Path, config: Config) -> tuple[Any, Config]:
    """The file to start from, read once, and the configuration with the pixel normalisation that its weights expect.

    The data sets are made before the detector; without this they would keep another mean than the detector's.
    """
    start = checkpoint.read(weights)
    _, _, settings = checkpoint.resolve(start, config)
    return start, load_config(config, {key: settings[key] for key in settings if key.startswith("data.")})


def _resume_point(resume: str | Path | None) -> tuple[Path | None, Path | None]:
    """Checkpoint file and folder of the run to continue."""
    if resume is None:
        return None, None
    path = Path(resume)
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"resume: no checkpoint {str(file)!r}; expected the folder of a run or a .ckpt file in it"
        )
    folder = file.parent.parent
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"resume: {str(file)!r} does not lie in the folder of a run: {str(folder)!r} has no config.yaml"
        )
    return file, folder


def _output_folder(config: Config, output: str | Path | None, resumed: Path | None, overwrite: bool) -> Path:
    if output is None:
        if resumed is not None:
            return resumed
        folder, number = Path("runs") / config.name, 1
        # Only the first process chooses: the others would find its folder and choose the next one.
        while _rank() == 0 and folder.exists():
            number += 1
            folder = Path("runs") / f"{config.name}-{number}"
        return folder
    folder = Path(output)
    taken = (folder / "checkpoints").exists() and folder.resolve() != (resumed.resolve() if resumed else None)
    if taken and not overwrite and _rank() == 0:
        raise FileExistsError(
            f"output: {str(folder)!r} already holds a run; choose another folder, "
            "continue it (resume) or allow overwriting it"
        )
    return folder


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _batch_per_device(config: Config, devices: int) -> int:
    total = config.train.batch_size
    if total % devices:
        raise ValueError(
            f"train.batch_size: expected a multiple of the {devices} devices, got {total} (it is the total)"
        )
    return total // devices


def _callbacks(config: Config, folder: Path, validated: bool, progress: bool) -> list[Callback]:
    checkpoints = folder / "checkpoints"
    made: list[Callback] = [StopAtNonFiniteLoss(), LearningRateMonitor("step")]
    if config.train.ema_decay is not None:
        made.append(AverageWeights(config.train.ema_decay))
    if progress:
        made.append(EpochLines())
        if sys.stderr.isatty():
            made.append(ProgressBar(refresh_rate=10 if torch.cuda.is_available() else 1))
    if validated:
        made.append(ModelCheckpoint(checkpoints, "best", monitor="AP", mode="max", enable_version_counter=False))
    # One file, replaced at the end of each epoch; `resume` starts from it.
    made.append(ModelCheckpoint(checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False))
    return made


def _write_config(config: Config, path: Path) -> None:
    import yaml

    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))


def _describe(
    config: Config, trainer: Any, train_set: Any, val_set: Any, batches: int, folder: Path, resumed: Path | None
) -> None:
    options = config.train
    evaluated = f"; {len(val_set)} for validation" if val_set is not None else "; no validation data"
    _log.info("%s: %d training images, %d classes%s", config.name, len(train_set), train_set.num_classes, evaluated)
    lr = scaled_lr(options)
    scaled = f" = {options.lr:g} × {options.batch_size} / {options.base_batch_size} (scaled with the batch)"
    _log.info(
        "batch %d on %d × %s, %s, %d epochs of %d iterations; learning rate %g%s",
        options.batch_size,
        trainer.world_size,
        trainer.strategy.root_device.type,
        trainer.precision,
        options.epochs,
        batches,
        lr,
        scaled if lr != options.lr else "",
    )
    if options.warmup_iterations > 0.5 * batches * options.epochs:
        _log.warning(
            "the warm-up (%d iterations) takes more than half of the run (%d): lower --train.warmup_iterations",
            options.warmup_iterations,
            batches * options.epochs,
        )
    if resumed is not None:
        _log.info("continuing from %s", resumed)
    _log.info("writing to %s", folder)


def _export(model: Any, best_checkpoint: str, folder: Path, is_first: bool, seconds: float) -> TrainResult:
    """Write ``weights/last.pt`` and, from the best checkpoint, ``weights/best.pt``."""
    last = folder / "weights" / "last.pt"
    if is_first:
        last.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(model, last)
    if not best_checkpoint:
        return TrainResult(folder, last, last, {}, None, seconds)
    metrics, epoch = _export_best(model, best_checkpoint, folder if is_first else None)
    return TrainResult(folder, folder / "weights" / "best.pt", last, metrics, epoch, seconds)


def _export_best(model: Any, best_checkpoint: str, folder: Path | None) -> tuple[dict[str, Any], int]:
    content = torch.load(best_checkpoint, map_location="cpu", weights_only=True)
    # With averaged weights, "state_dict" holds the average.
    model.load_state_dict({key.removeprefix("model."): value for key, value in content["state_dict"].items()})
    if folder is not None:
        path = folder / "weights" / "best.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(model, path)
    return content["metrics"], int(content["epoch"]) + 1


def _finish(result: TrainResult) -> None:
    numbers = {name: value for name, value in result.metrics.items() if isinstance(value, (int, float))}
    report = {
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds, 1),
        "metrics": result.metrics,
    }
    (result.output / "metrics.json").write_text(json.dumps(report, indent=2))
    if numbers:
        shown = ", ".join(f"{name} {numbers[name]:.3f}" for name in ("AP", "AP50", "AP75") if name in numbers)
        _log.info("best epoch %s on the validation data: %s", result.best_epoch, shown)
    _log.info("trained for %.1f min; weights: %s", result.seconds / 60, result.best_weights)


# Lightning warns of what is intended here.
_IGNORED_WARNINGS = (
    r".*does not have many workers.*",  # `data.workers` is the user's choice
    r".*module\(s\) in eval mode at the start of training.*",  # BatchNorm with its running statistics
    r".*Checkpoint directory .* exists and is not empty.*",  # asked about before, by `overwrite`
    r".*You defined a `validation_step` but have no `val_dataloader`.*",  # said in our own words
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",  # in Lightning itself
)


@contextlib.contextmanager
def _quiet_lightning(progress: bool) -> Iterator[None]:
    """Lightning logs warnings only; our own lines are shown unless ``progress`` is off."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    own_level, handler = _log.level, None
    if progress and not _log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
    _log.setLevel(logging.INFO if progress else logging.WARNING)
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for pattern in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        _log.setLevel(own_level)
        if handler is not None:
            _log.removeHandler(handler)
