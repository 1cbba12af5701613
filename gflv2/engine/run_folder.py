"""The folder of a run: whose it is, what in it can be continued, and what a run leaves in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gflv2 import checkpoint as files
from gflv2.checkpoint.errors import shorten
from gflv2.config import Config
from gflv2.engine.callbacks import StopEarly
from gflv2.engine.checkpoints import place_in_run
from gflv2.files import write_whole

_log = logging.getLogger("gflv2")


# ---- one run, one folder -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(config: Config, output: str | Path | None, resumed: Path | None, overwrite: bool) -> Iterator[Path]:
    """The folder to write to, held against every other process until the end of the block.

    It is made where it does not exist, and taken away again where nothing was written into it. Processes other than
    the first of a distributed run hold nothing: they learn the folder from the first.

    Raises:
        FileExistsError: it holds a run, or another process writes to it. NotADirectoryError: it is a file.
        OSError: it cannot be written to.
    """
    if output is None and resumed is None:
        _check_name(config.name)
    if process_rank() != 0:
        yield Path(output or resumed or Path("runs") / config.name)
        return
    folder, made = _make(config, output, resumed)
    try:
        with held(folder):
            if resumed is None or folder.resolve() != resumed.resolve():
                if any((folder / "checkpoints").glob("*.ckpt")) and not overwrite:
                    raise FileExistsError(
                        f"output: {str(folder)!r} already holds a run; choose another folder, "
                        "continue it (resume) or allow overwriting it"
                    )
            yield folder
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: it stays
                folder.rmdir()


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or any(letter in "/\\" or ord(letter) < 32 for letter in name) or len(name) > 200:
        raise ValueError(f"name: expected a plain name, from which the folder runs/NAME is made, got {name[:200]!r}")


def _make(config: Config, output: str | Path | None, resumed: Path | None) -> tuple[Path, bool]:
    """The folder, and whether it is new."""
    if output is None and resumed is not None:
        return resumed, False
    if output is not None:
        folder = Path(output)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"output: {str(folder)!r} is a file; expected a folder")
        existed = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        return folder, not existed
    folder, number = Path("runs") / config.name, 1
    folder.parent.mkdir(exist_ok=True)
    while True:
        try:
            folder.mkdir()  # fails where somebody else has just made it
            return folder, True
        except FileExistsError:
            number += 1
            folder = Path("runs") / f"{config.name}-{number}"


_HELD: set[tuple[int, int]] = set()  # device and inode of the lock files of this process


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """A lock that ends with the process, however that ends."""
    path = folder / ".lock"
    busy = FileExistsError(f"output: another process is writing to {str(folder)!r}")
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        identity = _identity(os.fstat(handle))
        if identity in _HELD:  # closing the file would end the lock of this process, too: leave it open
            raise busy
        try:
            # Not flock: the data workers would inherit it, and outlive a killed run by seconds.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(handle)
                raise busy from None
            break  # a file system without locks
        # Whoever held it before may have removed the file between our two calls.
        with contextlib.suppress(FileNotFoundError):
            if _identity(os.stat(path)) == identity:
                break
        os.close(handle)
    _HELD.add(identity)
    try:
        yield
    finally:
        _HELD.discard(identity)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def process_rank() -> int:
    """Number of this process in a run, before the group is there: of torchrun, Lightning's own processes, srun."""
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0"))


# ---- what can be continued -----------------------------------------------------------------------------------------


@dataclass
class ResumePoint:
    """A checkpoint of a run, whole and read.

    Attributes:
        file, folder: of the checkpoint and of the run.
        content: what the file holds.
        epoch, batch: what is to be trained next, both from 0.
        iteration: how many iterations are done.
    """

    file: Path
    folder: Path
    content: dict[str, Any]

    def __post_init__(self) -> None:
        run = place_in_run(self.content)
        self.epoch, self.batch, self.plan = int(run["epoch"]), int(run["batch"]), run["plan"]
        self.seconds = float(run["seconds"])
        self.iteration = int(self.content["global_step"])

    @property
    def evaluations_without_gain(self) -> int:
        """The latest in a row that gave no better AP; 0 where the run does not count them."""
        state = (self.content.get("callbacks") or {}).get(StopEarly(1).state_key) or {}
        return int(state.get("wait_count", 0))

    def stopped_early(self, early_stopping: int | None) -> bool:
        between_epochs = self.batch == 0
        return between_epochs and early_stopping is not None and self.evaluations_without_gain >= early_stopping

    def is_complete(self, epochs: int, max_steps: int | None, early_stopping: int | None = None) -> bool:
        if self.stopped_early(early_stopping):
            return True
        return (self.epoch == epochs and self.batch == 0) or (max_steps is not None and self.iteration >= max_steps)


def find_resume_point(resume: str | Path) -> ResumePoint:
    """The state to continue from: of a folder its ``last.ckpt`` or, where that is torn, its newest whole one.

    Raises:
        FileNotFoundError: nothing to continue there. CheckpointError: no file of it is whole.
    """
    path = Path(resume)
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    folder = file.parent.parent
    others = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda other: other.stat().st_mtime, reverse=True)
    others = [other for other in others if other != file]
    if not file.is_file() and not (path.is_dir() and others):
        raise FileNotFoundError(
            f"resume: no checkpoint {str(file)!r}; expected the folder of a run or a .ckpt file in it"
        )
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"resume: {str(file)!r} does not lie in the folder of a run: {str(folder)!r} has no config.yaml"
        )
    try:
        return ResumePoint(file, folder, _read(file))
    except (files.CheckpointError, FileNotFoundError) as error:
        for other in others:
            with contextlib.suppress(files.CheckpointError):
                point = ResumePoint(other, folder, _read(other))
                break
        else:
            raise
        if not path.is_dir():
            if file.parent != other.parent:
                raise
            raise files.CheckpointError(f"{error} The newest whole checkpoint of the run is {str(other)!r}.") from error
        if process_rank() == 0:  # all processes of the run find the same
            _log.warning("%s", error)
            _log.warning(
                "continuing from the newest whole checkpoint instead: %s, iteration %d", other, point.iteration
            )
        return point


def _read(file: Path) -> dict[str, Any]:
    content = files.read_content(file)
    if not isinstance(content, Mapping) or not {"loops", "state_dict", "optimizer_states", "global_step"} <= set(
        content
    ):
        raise files.CheckpointError(
            f"resume: {file} holds weights, not the state of a run; to start from them: weights (--weights {file})"
        )
    return dict(content)


def check_resumable(point: ResumePoint, config: Config, class_names: list[str]) -> None:
    """Name what a run cannot change while it goes on.

    Raises:
        ValueError
    """
    description = point.content.get("gflv2") or {}
    before = description.get("config") or {}
    trained = point.epoch + (1 if point.batch else 0)
    if config.train.epochs < trained:
        inside = f" and {point.batch} iterations of epoch {point.epoch + 1}" if point.batch else ""
        raise ValueError(
            f"train.epochs: the run has trained {point.epoch} epochs{inside}; "
            f"expected at least {trained}, got {config.train.epochs}"
        )
    theirs = description.get("class_names")
    if theirs is not None and list(theirs) != list(class_names):
        raise ValueError(
            f"resume: the classes of the training file are not those of the run: {_difference(theirs, class_names)}"
        )
    changed = []
    for key in ("optimizer", "ema_decay"):
        was, now = before.get("train", {}).get(key), getattr(config.train, key)
        # Another decay is fine; an average that begins or ends in the middle is not.
        if was != now and (key == "optimizer" or (was is None) != (now is None)):
            changed.append(f"train.{key} was {_shown(was)}, now {_shown(now)}")
    if changed:
        raise ValueError(
            f"resume: {', '.join(changed)}; a run keeps it. To begin anew from the weights: --weights {point.file}"
        )


def check_model(point: ResumePoint, state: Mapping[str, Any], config: Config) -> None:
    """Name the settings that make the model another than the checkpoint's.

    Args:
        state: ``state_dict`` of the model that is to go on.

    Raises:
        ValueError
    """
    saved = {key.removeprefix("model."): value.shape for key, value in point.content["state_dict"].items()}
    if saved == {key: value.shape for key, value in state.items()}:
        return
    before = _flat((point.content.get("gflv2") or {}).get("config", {}).get("model", {}))
    now = _flat(config.to_dict()["model"])
    changed = [
        f"model.{key} was {_shown(before.get(key))}, now {_shown(now[key])}"
        for key in now
        if before.get(key) != now[key]
    ]
    wrong = [key for key in {**saved, **state} if saved.get(key) != getattr(state.get(key), "shape", None)]
    what = ", ".join(changed) or f"{len(wrong)} tensors differ, first {wrong[0]}"
    raise ValueError(f"resume: the model is not that of the run: {what}")


def check_plan(point: ResumePoint, plan: Mapping[str, Any]) -> None:
    """Inside an epoch the order of the batches must be the one in which the run began it.

    Raises:
        ValueError
    """
    if point.batch == 0 or point.plan is None:
        return
    changed = _changes(point.plan, plan)
    if changed:
        raise ValueError(
            f"resume: {', '.join(changed)}; the run stopped inside epoch {point.epoch + 1}, which ends with the "
            "batches that it began with"
        )


def _difference(before: list[str], now: list[str]) -> str:
    lost = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    parts = [f"missing {shorten(map(repr, lost))}"] if lost else []
    parts += [f"new {shorten(map(repr, new))}"] if new else []
    return "; ".join(parts) or f"the order was {shorten(map(repr, before))}, now {shorten(map(repr, now))}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    changed = (key for key in now if before.get(key) != now[key])
    return [f"{prefix}{key} was {_shown(before.get(key))}, now {_shown(now[key])}" for key in changed]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return {key: value for key, value in flat.items() if key != "backbone.pretrained"}


# ---- what stands in it ---------------------------------------------------------------------------------------------


def begin(folder: Path, config: Config, point: ResumePoint | None) -> None:
    """Write the configuration, once the run can start; clear away what belongs to a run that is overwritten."""
    import yaml

    same = point is not None and point.folder.resolve() == folder.resolve()
    if not same:
        for old in [*folder.glob("checkpoints/*.ckpt"), *folder.glob("weights/*.pt"), folder / "metrics.json"]:
            old.unlink(missing_ok=True)
    for rest in [*folder.glob("checkpoints/*.part"), *folder.glob("weights/*.part"), *folder.glob("*.part")]:
        rest.unlink(missing_ok=True)  # of a process that was killed while it wrote
    if point is not None and not same and (best := point.folder / "checkpoints" / "best.ckpt").is_file():
        (folder / "checkpoints").mkdir(exist_ok=True)
        shutil.copy2(best, folder / "checkpoints" / "best.ckpt")
    write_whole(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))


def write_metrics(folder: Path, report: Mapping[str, Any]) -> None:
    write_whole(folder / "metrics.json", json.dumps(report, indent=2))


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """What ``write_metrics`` wrote; None where there is nothing of the kind."""
    try:
        report = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None
