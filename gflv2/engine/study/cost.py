"""What the rows of a study cost: a training step, the memory that it keeps, and inference, in turns in one process."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflv2.config import Config
from gflv2.data import Batch, CocoDetection, make_loader
from gflv2.engine.lightning_module import DetectorModule
from gflv2.engine.memory import saved_bytes
from gflv2.engine.schedule import make_optimizer
from gflv2.engine.study.plan import DataSet, Run, Study
from gflv2.engine.study.run import data_paths, load, settings_of, validation_set, weights_of
from gflv2.engine.study.statistics import Estimate, estimate
from gflv2.engine.teacher import Teacher
from gflv2.files import write_whole
from gflv2.models.detector import SingleStageDetector

_log = logging.getLogger("gflv2")

FILE = "costs.json"  # what is measured, and of what; ``costs.csv`` is the table of it
AGAIN = " again"  # the row that all are compared with, a second time: how far apart the same thing is measured
_BATCHES = 4  # that rotate
_WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True)
class Cost:
    """What one row costs.

    Attributes:
        row, data: names; the data set's images and settings were used. "NAME again" is the noise.
        parameters: their number.
        step, detect: median seconds of a training step, from a batch on the device to the changed weights; and of one
            image, from the device to detections.
        step_ratio, detect_ratio: to the row that all are compared with, round by round: mean of the logarithms, with
            its 95 % interval, as factors.
        saved_bytes: what forward and losses keep for backward, parameters left out.
        peak_bytes: most memory of a step on a GPU; None on a CPU.
        batch_size: of the step. height, width: of its images. rounds: counted ones.
        clock: "processor" (a CPU with one thread: other programs disturb it little) or "wall".
        device, threads: where.
    """

    row: str
    data: str
    parameters: int
    step: float
    step_ratio: float
    step_low: float
    step_high: float
    detect: float
    detect_ratio: float
    detect_low: float
    detect_high: float
    saved_bytes: int
    peak_bytes: int | None
    batch_size: int
    height: int
    width: int
    rounds: int
    clock: str
    device: str
    threads: int


class _Candidate:
    """A row's detector as its training left it, and what is measured of it."""

    def __init__(self, row: str, model: SingleStageDetector, device: str) -> None:
        self.row, self.device = row, device
        self.model = model.to(device)
        self.config: Config = model.config
        if self.config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)
        teacher = None
        if self.config.train.distill.teacher is not None:
            teacher = Teacher(self.config, self.model)
            teacher.to(device)
        self.module = DetectorModule(self.model, teacher=teacher)
        self.optimizer = make_optimizer(self.model.parameters(), self.config.train)
        self.step_times: list[float] = []
        self.detect_times: list[float] = []

    def mixed(self) -> torch.autocast:
        """The precision that the row trains in."""
        dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(self.config.train.precision)
        return torch.autocast(self.device.split(":")[0], dtype=dtype, enabled=dtype is not None)

    def loss(self, batch: Batch) -> Tensor:
        with self.mixed():
            return self.module.losses(batch)[0]

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        clip = self.config.train.clip_grad_norm
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()

    def measure(self, train: Batch, image: Batch, clock: Callable[[], float]) -> None:
        self.model.eval()
        with torch.inference_mode(), self.mixed():
            start = clock()
            self.model.detect(self.module.images(image), image.image_sizes, image.scale_factors)
            self.detect_times.append(clock() - start)
        self.model.train()
        start = clock()
        self.step(train)
        self.step_times.append(clock() - start)


def costs(study: Study, folder: Path, *, device: str) -> list[Cost]:
    """Measure the rows of a study whose runs are complete, on its first data set; an earlier measurement is kept.

    Every round has each row take one training step and detect one image, another row first each time, so that a busy
    moment of the machine meets all of them.
    """
    where = _where(device)
    known = _known(study, folder, where)
    if known:
        return known
    data = _measured_data(study)
    _log.info("measuring what the rows cost: %d rounds on %s", study.cost_rounds, data.name)
    candidates = [_Candidate(*pair, device) for pair in _models(study, data, folder)]
    config = candidates[0].config
    paths = data_paths(data, folder)
    train_set = CocoDetection(paths["train"], paths["train_images"], config=config.data, train=True)
    loader = make_loader(train_set, config.train.batch_size, train=True, config=config.data, seed=0, workers=0)
    train = [batch.to(device) for batch, _ in zip(loader, range(_BATCHES), strict=False)]
    singles = make_loader(validation_set(config, paths), 1, train=False, config=config.data, workers=0)
    images = [batch.to(device) for batch, _ in zip(singles, range(_BATCHES), strict=False)]
    clock, clock_name = _clock(device)
    for number in range(-_WARM_UP, study.cost_rounds):
        if number == 0:
            for one in candidates:
                one.step_times.clear()
                one.detect_times.clear()
        turn = number % len(candidates)
        for one in (*candidates[turn:], *candidates[:turn]):
            one.measure(train[number % len(train)], images[number % len(images)], clock)
    against = next(one for one in candidates if one.row == study.compare or len(candidates) == 1)
    height, width = train[0].images.shape[-2:]
    found = []
    for one in candidates:
        step, detect = _ratio(one.step_times, against.step_times), _ratio(one.detect_times, against.detect_times)
        found.append(
            Cost(
                row=one.row,
                data=data.name,
                parameters=sum(parameter.numel() for parameter in one.model.parameters()),
                step=statistics.median(one.step_times),
                step_ratio=step[0],
                step_low=step[1],
                step_high=step[2],
                detect=statistics.median(one.detect_times),
                detect_ratio=detect[0],
                detect_low=detect[1],
                detect_high=detect[2],
                saved_bytes=_saved_bytes(one, train[0]),
                peak_bytes=_peak_bytes(one, train[0]),
                batch_size=config.train.batch_size,
                height=height,
                width=width,
                rounds=study.cost_rounds,
                clock=clock_name,
                device=where[0],
                threads=where[1],
            )
        )
    of = _fingerprint(study, data, where)
    write_whole(folder / FILE, json.dumps({"of": of, "rows": [asdict(cost) for cost in found]}, indent=1))
    return found


def read_costs(path: str | Path) -> list[Cost]:
    """The rows of a ``costs.csv``."""
    kinds = {field.name: str(field.type) for field in fields(Cost)}

    def value(name: str, text: str) -> Any:
        if text == "" and "None" in kinds[name]:
            return None
        return {"str": str, "int": int, "int | None": int, "float": float}[kinds[name]](text or "nan")

    with open(path, newline="") as file:
        return [Cost(**{name: value(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]


def put_aside(folder: Path, studies: Iterable[Study]) -> None:
    """Without a measurement: a ``costs.csv`` that is of none of these studies gets a name that says so.

    On which device it was measured does not matter: that stands in it.
    """
    table = folder / "costs.csv"
    if not table.is_file() or any(_known(study, folder) for study in studies):
        return
    with contextlib.suppress(FileNotFoundError):  # another process has done it meanwhile
        earlier = table.replace(table.with_name("costs.earlier.csv"))
        _log.warning("%s is of other rows or settings: it is %s now", table, earlier.name)


def _again(study: Study) -> str:
    return study.compare + AGAIN


def _models(study: Study, data: DataSet, folder: Path) -> Iterator[tuple[str, SingleStageDetector]]:
    seed = study.seeds[0]
    rows = {row.name: row for row in study.rows}
    for name, row in [*rows.items(), (_again(study), rows[study.compare])]:
        yield name, load(weights_of(Run(row, data, seed), folder))


def _fingerprint(study: Study, data: DataSet, where: tuple[str, int]) -> str:
    """Changes with everything that a measurement depends on; ``where`` as `_where` has it."""
    rows = [settings_of(study, Run(row, data, study.seeds[0])) for row in study.rows]
    under = (study.compare, study.cost_rounds, data.name, *where)
    return hashlib.sha256(json.dumps([rows, under]).encode()).hexdigest()


def _measured_data(study: Study) -> DataSet:
    return next(one for one in study.data if one.is_given)


def _known(study: Study, folder: Path, where: tuple[str, int] | None = None) -> list[Cost]:
    """What an earlier call measured of this study, there or (None) anywhere.

    Nothing where it did not, or not all of it, or where its file is of another version.
    """
    try:
        content = json.loads((folder / FILE).read_text())
        of, found = content["of"], [Cost(**row) for row in content["rows"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    if [cost.row for cost in found] != [*(row.name for row in study.rows), _again(study)]:
        return []
    where = where or (found[0].device, found[0].threads)
    return found if of == _fingerprint(study, _measured_data(study), where) else []


def _clock(device: str) -> tuple[Callable[[], float], str]:
    if device.startswith("cuda"):

        def wall() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return wall, "wall"
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor"
    return time.perf_counter, "wall"


def _ratio(times: list[float], against: list[float]) -> tuple[float, float, float]:
    logarithms: Estimate = estimate([math.log(a / b) for a, b in zip(times, against, strict=True)])
    return math.exp(logarithms.mean), math.exp(logarithms.low), math.exp(logarithms.high)


def _saved_bytes(one: _Candidate, batch: Batch) -> int:
    there = (one.model.state_dict(), batch.images, batch.boxes, batch.labels)
    return saved_bytes(lambda: one.loss(batch), there)


def _peak_bytes(one: _Candidate, batch: Batch) -> int | None:
    if not one.device.startswith("cuda"):
        return None
    one.step(batch)
    torch.cuda.reset_peak_memory_stats(one.device)
    one.step(batch)
    return torch.cuda.max_memory_allocated(one.device)


def _where(device: str) -> tuple[str, int]:
    """Name of the device, and threads."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device, torch.get_num_threads()
