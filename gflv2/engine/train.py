"""Training a detector: one call that builds data, model and trainer, and leaves a folder with logs and weights."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gflv2 import checkpoint
from gflv2.config import Config, TrainConfig, load_config
from gflv2.engine.memory import keep_freed_memory
from gflv2.engine.schedule import scaled_lr
from gflv2.extras import missing_package
from gflv2.models.cpu_convolutions import paths_taken
from gflv2.models.detector import SingleStageDetector
from gflv2.ops.checks import check_choice

try:
    import lightning
    from lightning.pytorch.callbacks import Callback, LearningRateMonitor
    from lightning.pytorch.loggers import TensorBoardLogger
except ModuleNotFoundError as error:
    raise missing_package(error, "Training") from error

from gflv2.data import CocoDetection, make_loader
from gflv2.data.checking import quick_notes
from gflv2.engine.callbacks import AverageWeights, EpochLines, ProgressBar, StopAtNonFiniteLoss, StopEarly
from gflv2.engine.checkpoints import RunCheckpoints, WholeFiles, place_in_run
from gflv2.engine.evaluate import CocoEvaluator
from gflv2.engine.group import bound_start, ended_together, said_by_the_first
from gflv2.engine.interruption import Interrupted, Signals, Stop
from gflv2.engine.lightning_module import DetectorModule
from gflv2.engine.run_folder import (
    ResumePoint,
    begin,
    check_model,
    check_plan,
    check_resumable,
    claimed,
    find_resume_point,
    process_rank,
    read_metrics,
    write_metrics,
)
from gflv2.engine.teacher import Teacher

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
        seconds: wall time of the training loop, evaluation included, over all parts of a resumed run.
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
    teacher: str | Path | None = None,
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
        weights: a checkpoint to start from, or the name of published ones (see ``GFLV2``).
        pretrained: without ``weights``, start the backbone from ImageNet weights.
        teacher: weights of a detector whose box distributions the model learns beside the data's boxes (localisation
            distillation, ``train.distill``): a file, or the name of published ones. As many bins and the same strides.
        resume: folder of an earlier run, or a checkpoint file in it; continues it exactly where it stopped, inside an
            epoch too. A run that is complete stays as it is.
        output: folder of the run. None: ``runs/NAME``, numbered where that exists.
        overwrite: allow an ``output`` that already holds a run.
        accelerator, devices, num_nodes: Lightning's; several devices train with DDP. Under ``torchrun``, ``devices`` is
            the number of processes of one machine.
        max_steps: stop after this many iterations of the whole run, those before ``resume`` included. The learning
            rate follows ``train.epochs`` all the same, so that a run can be trained in parts.
        limit_train_batches, limit_val_batches: batches per epoch, for trying things out.
        progress: show a progress bar on a terminal and one line per epoch.
        callbacks: further Lightning callbacks.

    Raises:
        FileNotFoundError, FileExistsError, ValueError, TypeError: what the arguments or the configuration get wrong.
        NonFiniteLoss, NonFiniteWeights: the loss or the weights became NaN or infinite.
        GroupError: the processes of a run on several devices did not come together.
        Interrupted: SIGINT or SIGTERM came; the run is saved and can be resumed.
    """
    given = dict(locals())  # the arguments: there is no other name yet
    point = None if resume is None else find_resume_point(resume)
    if config is None:
        if point is None:
            raise ValueError("config: expected a named configuration or a YAML file, got None")
        config = point.folder / "config.yaml"
    if point is not None and weights is not None:
        raise ValueError("weights: a run that is resumed has its own; give one of weights and resume")
    if teacher is not None:
        overrides = {**(overrides or {}), "train.distill.teacher": str(teacher)}
    config = _apply_data(config, overrides, train_data, val_data, train_images, val_images)
    if config.train.distill.teacher is not None and Path(config.train.distill.teacher).is_file():
        # `config.yaml` may be read elsewhere.
        config.train.distill.teacher = str(Path(config.train.distill.teacher).resolve())
    start = None
    if weights is not None:
        start, config = _start_from(weights, config)
    elif pretrained and point is None:
        _check_start(config)
    precision = _PRECISIONS[check_choice(config.train.precision, "train.precision", tuple(_PRECISIONS))]

    train_set = CocoDetection(config.data.train, config.data.train_images, config=config.data, train=True)
    config.model.num_classes = train_set.num_classes
    val_set = None
    if config.data.val is not None:
        names = train_set.class_names
        val_set = CocoDetection(config.data.val, config.data.val_images, config=config.data, class_names=names)
        val_set.require_annotations()
    elif config.train.early_stopping is not None:
        raise ValueError(
            f"train.early_stopping: {config.train.early_stopping} evaluations need validation data (command line: "
            "--val); got none"
        )
    if point is not None:
        check_resumable(point, config, train_set.class_names)

    with (
        _quiet_lightning(progress),
        claimed(config, output, point.folder if point is not None else None, overwrite) as folder,
        said_by_the_first(process_rank()) as set_up,
    ):
        lightning.seed_everything(config.train.seed)
        model = SingleStageDetector(
            config,
            class_names=train_set.class_names,
            category_ids=train_set.category_ids,
            pretrained=pretrained and start is None and point is None,
        )
        if start is not None:
            checkpoint.load_weights(model, start)
        if point is not None:
            check_model(point, model.state_dict(), config)
            if point.is_complete(config.train.epochs, max_steps, config.train.early_stopping):
                return _nothing_to_do(model, point, config, max_steps)
        teaching = None if config.train.distill.teacher is None else Teacher(config, model)
        signals = Signals()
        keeper = RunCheckpoints(
            folder,
            signals,
            every_steps=config.train.save_every_steps,
            max_steps=max_steps,
            on_start=lambda: begin(folder, config, point),
        )
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            max_epochs=config.train.epochs,
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
            callbacks=[*_callbacks(config, progress), *callbacks, keeper],
            plugins=[WholeFiles(point.content if point is not None else None)],
        )
        bound_start(trainer, config.train.start_timeout)
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
            world_size=trainer.world_size,  # `torch.distributed` does not run yet
        )
        val_loader = make_loader(val_set, per_device, train=False, config=config.data) if val_set is not None else None
        plan = _plan(config, trainer, train_set, limit_train_batches)
        if point is not None:
            check_plan(point, plan)
        keeper.follow(train_loader.batch_sampler, plan)
        resumed = point.file if point is not None else None
        if trainer.is_global_zero:
            batches = min(len(train_loader), limit_train_batches or len(train_loader))
            _describe(config, trainer, train_set, val_set, batches, folder, resumed)
            for note in quick_notes(config, train_set, val_set):
                _log.warning("data: %s", note)
        module = DetectorModule(
            model,
            CocoEvaluator(val_set, max_detections=max(config.test.max_detections, 100))
            if val_set is not None
            else None,
            teaching,
        )
        model.train()
        if config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        set_up.close()
        try:
            try:
                with signals, ended_together(trainer):
                    trainer.fit(module, train_loader, val_loader, ckpt_path=resumed, weights_only=True)
            finally:
                # Ends the data workers. Left to the garbage collector after an exception, each of them takes 5 s.
                with contextlib.suppress(Exception):
                    trainer.fit_loop.teardown()
        except Stop as stop:
            if stop.signum is not None:
                raise _interrupted(keeper, trainer, stop.signum, given) from None
        except BaseException as error:
            if signals.received is not None and keeper.failure is None:
                # A worker may have died of the same signal before the next step.
                raise _interrupted(keeper, trainer, signals.received, given) from error
            # Keep the best weights so far; the current ones may be NaN.
            if trainer.is_global_zero and keeper.best_epoch is not None:
                with contextlib.suppress(Exception):  # what ended the run is told, not what follows from it
                    _export_best(model, keeper.folder)
            if keeper.failure is not None and keeper.failure is not error:
                raise keeper.failure from None
            raise
        result = _export(model, keeper.folder, trainer.is_global_zero)
        if trainer.is_global_zero:
            _tell(result)
        if train_set.undecoded:
            _log.warning(
                "data: %d training images could not be decoded, others took their places (data.skip_bad); first: %s",
                len(train_set.undecoded),
                train_set.undecoded[0],
            )
    return result


def _plan(config: Config, trainer: Any, train_set: Any, limit: int | None) -> dict[str, Any]:
    """What the batches of an epoch depend on, under the names of the settings."""
    return {
        "train.batch_size": config.train.batch_size,
        "train.seed": config.train.seed,
        "train.group_by_aspect": config.train.group_by_aspect,
        "number of devices": trainer.world_size,
        "number of training images": len(train_set),
        "limit_train_batches": limit,
    }


# What `config.yaml` of the run does not hold, and a command that continues it has to say again.
_SAID_AGAIN = (
    "max_steps",
    "limit_train_batches",
    "limit_val_batches",
    "progress",
    "accelerator",
    "devices",
    "num_nodes",
)


def _continuation(folder: Path, given: Mapping[str, Any]) -> str:
    """The command that goes on with a run as ``train`` was called for it."""
    command = ["gflv2", "train", "--resume", str(folder)]
    parameters = inspect.signature(train).parameters
    for name in _SAID_AGAIN:
        value, option = given[name], name.replace("_", "-")
        if value == parameters[name].default:
            continue
        if value is False:
            command.append(f"--no-{option}")
        elif isinstance(value, list):
            command += [f"--{option}", ",".join(map(str, value)) + ("," if len(value) == 1 else "")]
        else:
            command += [f"--{option}", str(value)]
    return shlex.join(command)


def _interrupted(keeper: RunCheckpoints, trainer: Any, signum: int, given: Mapping[str, Any]) -> Interrupted:
    name = signal.Signals(signum).name
    if keeper.last_saved is None:
        return Interrupted(f"{name}: stopped before the first checkpoint of {keeper.folder}", signum)
    return Interrupted(
        f"{name}: stopped; iteration {keeper.last_saved} of {trainer.estimated_stepping_batches} is saved. "
        f"Continue with: {_continuation(keeper.folder, given)}",
        signum,
    )


def _nothing_to_do(model: Any, point: ResumePoint, config: Config, max_steps: int | None) -> TrainResult:
    """The result of a run that is complete, or as far as ``max_steps`` lets it go.

    Files that it had no time to write are written now, and nothing else.
    """
    folder = point.folder
    report = read_metrics(folder)
    if report is not None and report.get("iteration") == point.iteration and (folder / "weights" / "last.pt").is_file():
        result = _result(folder, report)
    else:
        result = _export(model, folder, is_first=True)
    if point.is_complete(config.train.epochs, None):
        _log.info(
            "%s is complete: iteration %d, %d epochs; nothing to do. To train longer: --train.epochs %d",
            folder,
            point.iteration,
            point.epoch,
            2 * config.train.epochs,
        )
    elif point.stopped_early(config.train.early_stopping):
        _log.info(
            "%s has stopped early: iteration %d, %d of %d epochs, %d evaluations without a better AP; nothing to do. "
            "To train on, give a larger --train.early_stopping, or null",
            folder,
            point.iteration,
            point.epoch,
            config.train.epochs,
            point.evaluations_without_gain,
        )
    else:
        _log.info(
            "%s is at iteration %d, %d of %d epochs: --max-steps %d is reached; nothing to do. To train on, give a "
            "larger one or leave it out",
            folder,
            point.iteration,
            point.epoch,
            config.train.epochs,
            max_steps,
        )
    return result


def _apply_data(config: Any, overrides: Mapping[str, Any] | None, *data: str | Path | None) -> Config:
    keys = ("data.train", "data.val", "data.train_images", "data.val_images")
    given = {key: str(value) for key, value in zip(keys, data, strict=True) if value is not None}
    config = load_config(config, {**(overrides or {}), **given})
    if config.data.train is None:
        raise ValueError(
            "data.train: expected the training set (a COCO JSON or YOLO YAML file, or a folder), got None "
            "(command line: --train)"
        )
    return config


def _start_from(weights: str | Path, config: Config) -> tuple[Any, Config]:
    """The file to start from, read once, and the configuration with the pixel normalisation that its weights expect.

    The data sets are made before the detector; without this they would keep another mean than the detector's.
    """
    start = checkpoint.read(checkpoint.find_weights(weights, config) or weights)
    _, _, settings = checkpoint.resolve(start, config)
    return start, load_config(config, {key: settings[key] for key in settings if key.startswith("data.")})


def _check_start(config: Config) -> None:
    """A model that is published as a whole only needs these weights, or to be told to do without any."""
    if config.model.backbone.pretrained is None and checkpoint.find_weights(config.name) is not None:
        raise ValueError(
            f"weights: there are no start weights for the backbone of {config.name} alone; start from its published "
            "ones with weights='coco' (--weights coco), or from random ones with pretrained=False (--no-pretrained)"
        )


def _batch_per_device(config: Config, devices: int) -> int:
    total = config.train.batch_size
    if total % devices:
        raise ValueError(
            f"train.batch_size: expected a multiple of the {devices} devices, got {total} (it is the total)"
        )
    if config.train.accumulate > total // devices:
        raise ValueError(
            f"train.accumulate: expected at most the {total // devices} images of a device's batch, one a part; "
            f"got {config.train.accumulate}"
        )
    return total // devices


def _callbacks(config: Config, progress: bool) -> list[Callback]:
    made: list[Callback] = [StopAtNonFiniteLoss(), LearningRateMonitor("step")]
    if config.train.ema_decay is not None:
        made.append(AverageWeights(config.train.ema_decay))
    if config.train.early_stopping is not None:
        made.append(StopEarly(config.train.early_stopping))
    if progress:
        made.append(EpochLines())
        if sys.stderr.isatty():
            made.append(ProgressBar(refresh_rate=10 if torch.cuda.is_available() else 1))
    return made


def _describe(
    config: Config, trainer: Any, train_set: Any, val_set: Any, batches: int, folder: Path, resumed: Path | None
) -> None:
    options = config.train
    evaluated = f"; {len(val_set)} for validation" if val_set is not None else "; no validation data"
    _log.info("%s: %d training images, %d classes%s", config.name, len(train_set), train_set.num_classes, evaluated)
    lr = scaled_lr(options)
    scaled = f" = {options.lr:g} × {options.batch_size} / {options.base_batch_size} (scaled with the batch)"
    parts = f" in {options.accumulate} parts" if options.accumulate > 1 else ""
    _log.info(
        "batch %d%s on %d × %s, %s, %d epochs of %d iterations; learning rate %g%s",
        options.batch_size,
        parts,
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
    if options.fast_convolutions:
        describe_convolutions(options, trainer)
    if options.distill.teacher is not None:
        _log.info("distilling from %s, T = %g", options.distill.teacher, options.distill.temperature)
    if resumed is not None:
        _log.info("continuing from %s", resumed)
    _log.info("writing to %s", folder)


def describe_convolutions(options: TrainConfig, trainer: Any) -> None:
    """Say what ``train.fast_convolutions`` does in this run, or that it does nothing."""
    kind = trainer.strategy.root_device.type
    if kind == "cpu" and options.channels_last and options.precision == "32":
        _log.info(paths_taken(math.ceil(options.batch_size / trainer.world_size / options.accumulate)))
        return
    _log.info(  # no warning: a recipe for CPUs may ask for it
        "train.fast_convolutions has no effect: expected a CPU, train.channels_last true and train.precision 32; got "
        "%s, %s and %s",
        kind,
        str(options.channels_last).lower(),
        options.precision,
    )


def _export(model: Any, folder: Path, is_first: bool) -> TrainResult:
    """Write ``weights/last.pt``, ``weights/best.pt`` and ``metrics.json`` from the checkpoints, from nothing else.

    Whoever was killed in between finds the same files after a resume.
    """
    last = _read_checkpoint(folder, "last")
    run = place_in_run(last)
    if is_first:
        _save_weights(model, last, folder / "weights" / "last.pt")
    report = {"best_epoch": None, "seconds": round(run["seconds"], 1), "iteration": last["global_step"], "metrics": {}}
    if run["best_epoch"] is not None:
        report["metrics"], report["best_epoch"] = _export_best(model, folder, write=is_first)
    if is_first:
        write_metrics(folder, report)
    return _result(folder, report)


def _export_best(model: Any, folder: Path, write: bool = True) -> tuple[dict[str, Any], int]:
    best = _read_checkpoint(folder, "best")
    if write:
        _save_weights(model, best, folder / "weights" / "best.pt")
    return best["metrics"], int(best["epoch"]) + 1


def _read_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    return checkpoint.read_content(folder / "checkpoints" / f"{name}.ckpt")


def _save_weights(model: Any, content: dict[str, Any], path: Path) -> None:
    # With averaged weights, "state_dict" holds the average.
    model.load_state_dict({key.removeprefix("model."): value for key, value in content["state_dict"].items()})
    checkpoint.save(model, path)


def _result(folder: Path, report: Mapping[str, Any]) -> TrainResult:
    last, best = folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    epoch = report["best_epoch"]
    return TrainResult(
        folder, last if epoch is None else best, last, report["metrics"], epoch, float(report["seconds"])
    )


def _tell(result: TrainResult) -> None:
    numbers = {name: value for name, value in result.metrics.items() if isinstance(value, (int, float))}
    if numbers:
        shown = ", ".join(f"{name} {numbers[name]:.3f}" for name in ("AP", "AP50", "AP75") if name in numbers)
        _log.info("best epoch %s on the validation data: %s", result.best_epoch, shown)
    _log.info("trained for %.1f min; weights: %s", result.seconds / 60, result.best_weights)


# Lightning warns of what is intended here.
_IGNORED_WARNINGS = (
    r".*does not have many workers.*",  # `data.workers` is the user's choice
    r".*module\(s\) in eval mode at the start of training.*",  # BatchNorm with its running statistics
    r".*ended before the epoch ended and your dataloader is not resumable.*",  # our sampler knows the place
    r".*You defined a `validation_step` but have no `val_dataloader`.*",  # said in our own words
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*callbacks used to create the checkpoint need to be provided.*\['StopEarly[^]]*\].*",  # switched off by the user
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",  # every process has the same number
    r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",  # in Lightning itself
)


@contextlib.contextmanager
def _quiet_lightning(progress: bool) -> Iterator[None]:
    """Lightning logs warnings only; our own lines are shown unless ``progress`` is off."""
    # The last one says that a process failed, before all are killed.
    names = ("lightning.pytorch", "lightning.fabric", "lightning.fabric.strategies.launchers.subprocess_script")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    own_level, handler = _log.level, None
    if progress and not _log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
    _log.setLevel(logging.INFO if progress and process_rank() == 0 else logging.WARNING)
    try:
        for logger in loggers[:2]:
            logger.setLevel(logging.WARNING)
        loggers[2].setLevel(logging.INFO)
        with warnings.catch_warnings():
            for pattern in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=pattern)
            if int(os.environ.get("LOCAL_RANK", "0")):  # the processes of a machine share the library, and one says it
                warnings.filterwarnings("ignore", message="gflv2: .* runs in plain PyTorch", category=RuntimeWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        _log.setLevel(own_level)
        if handler is not None:
            _log.removeHandler(handler)
