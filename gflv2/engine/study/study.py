"""``study``: all runs of a study, on one device or on several, and the table, the plot and the numbers of them."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gflv2 import checkpoint
from gflv2.engine.interruption import Interrupted, Signals
from gflv2.engine.study.cost import Cost, costs, put_aside
from gflv2.engine.study.plan import Run, Study, read_study
from gflv2.engine.study.plot import draw
from gflv2.engine.study.run import is_generated, read_result, run_once
from gflv2.engine.study.table import Summary, costs_csv, markdown, raw_csv, summarise, summary_csv
from gflv2.files import write_whole

_log = logging.getLogger("gflv2")


@dataclass
class StudyResult:
    """What a study found.

    Attributes:
        study: what was asked. output: its folder.
        runs: of each complete run ``data``, ``row``, ``seed`` and its numbers.
        summary: of each data set, row and number the mean over the seeds, and the difference from the row that all are
            compared with.
        costs: of each row; None where they were not measured.
        missing: runs that are not complete.
    """

    study: Study
    output: Path
    runs: list[dict[str, Any]]
    summary: list[Summary]
    costs: list[Cost] | None
    missing: list[Run]

    def __str__(self) -> str:
        return markdown(self.study, self.summary, self.costs)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM end what stands inside with `Interrupted`, also where no training listens to them."""

    def stop(signum: int, frame: Any) -> None:
        raise Interrupted("", signum)

    before = signal.getsignal(signal.SIGTERM)
    takes = threading.current_thread() is threading.main_thread() and before == signal.SIG_DFL
    if takes:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):
            raise
        signum = _signum(error)
        raise Interrupted(
            f"{signal.Signals(signum).name}: stopped; the same command goes on from here", signum
        ) from None
    finally:
        if takes:
            signal.signal(signal.SIGTERM, before)


def _signum(stop: KeyboardInterrupt) -> int:
    return stop.code - 128 if isinstance(stop, Interrupted) else signal.SIGINT


@_stoppable()
def study(
    source: str | Path,
    *,
    quick: bool = False,
    output: str | Path | None = None,
    data: Mapping[str, Sequence[str | Path]] | None = None,
    seeds: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    base: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    devices: Sequence[str] | None = None,
    pretrained: bool = True,
    cost: bool = True,
    progress: bool = True,
) -> StudyResult:
    """Train every row of a study on every data set from every seed, and compare the rows.

    A run that is complete is skipped, and one that was stopped goes on where it was. Several processes may work on the
    same folder at the same time: each takes a run that no other one has.

    Args:
        source, quick, data, seeds, rows, only, base, overrides: what is studied, see `gflv2.engine.study.read_study`.
        output: folder; None: ``studies/NAME``. It gets ``runs.csv`` (one line a run), ``summary.csv``, ``costs.csv``,
            ``table.md`` and ``plot.png``, which are of all runs of the study in it, those of earlier calls and of
            other seeds too. What does not belong there (other settings, rows or data) is left out, and
            named in a warning.
        devices: for example ``["cpu"]`` or ``["cuda:0", "cuda:1"]``, where each takes the next run; None: one GPU if
            there is one, else the CPU.
        pretrained: start backbones from ImageNet weights.
        cost: also measure what the rows cost.
        progress: show the lines of each training, not those of the study alone.

    Raises:
        FileNotFoundError, ValueError, TypeError: what the study or the arguments get wrong.
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    common: dict[str, Any] = {
        "quick": quick,
        "data": data,
        "base": base,
        "overrides": overrides,
        "pretrained": pretrained,
    }
    plan = read_study(source, seeds=seeds, rows=rows, only=only, **common)
    # All seeds, rows and data that have a result belong into the table, and not those of this call alone.
    whole = read_study(source, **common)
    folder = Path(output) if output is not None else Path("studies") / plan.name
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output: {str(folder)!r} is a file; expected a folder")
    places = _devices(devices)
    absent = [one for one in plan.data if not one.is_given]
    for one in absent:
        _log.info(
            "data set %s is left out: the study has no files for it; give them with --data %s=TRAIN,VAL%s",
            one.name,
            one.name,
            f" ({one.about})" if one.about else "",
        )
    todo = [run for run in plan.runs() if run.data not in absent]
    if not todo:
        names = ", ".join(one.name for one in absent)
        raise ValueError(f"data: {plan.source} has files for none of its data sets; expected some for {names}")
    _check_files(plan, todo, folder)
    left = sum(read_result(plan, run, folder) is None for run in todo)
    _log.info("study %s: %d runs, %d of them complete; writing to %s", plan.name, len(todo), len(todo) - left, folder)
    folder.mkdir(parents=True, exist_ok=True)
    codes: list[int] = []
    if left and len(places) > 1:
        command = _again(source, folder, {**common, "seeds": seeds, "rows": rows, "only": only}, progress)
        codes = _in_processes(places, command)
    elif left:
        _in_turn(plan, todo, folder, places[0], progress)
    found = _collect(whole, plan, folder)
    missing = [run for run in todo if read_result(plan, run, folder) is None]
    if missing and any(codes):
        ends = ", ".join(f"{place}: {code}" for place, code in zip(places, codes, strict=True))
        # 2 is bad input, with which the same command ends in the same way.
        then = "what they said is to be mended first" if 2 in codes else "the same command goes on"
        raise RuntimeError(f"{len(missing)} runs are not complete; exit status of {ends}; {then}")
    result = StudyResult(whole, folder, found, summarise(whole, found), None, missing)
    write_whole(folder / "runs.csv", raw_csv(found))
    write_whole(folder / "summary.csv", summary_csv(result.summary))
    # Once before the costs: where measuring them fails, the table of what is complete is there.
    write_whole(folder / "table.md", str(result) + "\n")
    if found:
        write_whole(folder / "plot.png", draw(whole, found, result.summary))
    if cost and plan.cost_rounds and not missing and plan.compare in [row.name for row in plan.rows]:
        try:
            result.costs = costs(plan, folder, device=places[0])
        except BaseException:
            put_aside(folder, (plan, whole))  # as where nothing is measured
            raise
        write_whole(folder / "costs.csv", costs_csv(result.costs))
        write_whole(folder / "table.md", str(result) + "\n")
    else:
        put_aside(folder, (plan, whole))
    for run in missing:
        _log.warning("not complete, another process may be at it: %s", run)
    return result


def _check_files(plan: Study, todo: Sequence[Run], folder: Path) -> None:
    """Data and teachers are there: what the last of many runs needs is missed before the first one."""
    for data in dict.fromkeys(run.data.name for run in todo):
        one = next(one for one in plan.data if one.name == data)
        is_generated(one, folder)  # raises where the folder holds another one
        for name in ("train", "val", "train_images", "val_images"):
            path = getattr(one, name)
            if path is not None and not Path(path).exists():
                raise FileNotFoundError(f"study: {plan.source}: data.{data}: {name}: no such file or folder: {path}")
        for row in plan.rows:
            teacher = plan.config(row, one).train.distill.teacher
            if teacher is not None and checkpoint.find_weights(teacher) is None and not Path(teacher).is_file():
                raise FileNotFoundError(
                    f"study: {plan.source}: rows.{row.name}: train.distill.teacher: no such file: {teacher}"
                )


def _collect(whole: Study, plan: Study, folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, of whatever seed: those of the study and of this call first.

    Those beyond this call that were made with other settings than its are left out, and named; so are those of rows and
    data that the study does not have.
    """
    there = {file.parent.relative_to(folder) for file in folder.glob("runs/*/*/seed*/result.json")}
    numbers = sorted(int(text) for text in {place.name[4:] for place in there} if text.isdecimal())
    seeds = dict.fromkeys((*whole.seeds, *plan.seeds, *numbers))
    asked = [str(run) for run in plan.runs()]
    found = []
    for data in whole.data:
        for row in whole.rows:
            for seed in seeds:
                run = Run(row, data, seed)
                if not data.is_given:
                    continue
                there.discard(run.place)
                try:
                    result = read_result(whole, run, folder)
                except ValueError as error:
                    if str(run) in asked:
                        raise
                    _log.warning("not in the table: %s", error)
                    continue
                if result is not None:
                    found.append({"data": data.name, "row": row.name, "seed": seed, **result})
    for place in sorted(there):
        _log.warning("not in the table, since the study has no such row or data: %s", folder / place)
    return found


def _in_turn(plan: Study, todo: list[Run], folder: Path, device: str, progress: bool) -> None:
    times: list[float] = []
    for number, run in enumerate(todo, 1):
        if read_result(plan, run, folder) is not None:
            continue
        _log.info("[%d/%d] %s", number, len(todo), run)
        start = time.monotonic()
        try:
            result = run_once(plan, run, folder, device=device, progress=progress)
        except FileExistsError:
            _log.info("[%d/%d] another process is at it", number, len(todo))
            continue
        except KeyboardInterrupt as stop:
            signum = _signum(stop)
            raise Interrupted(
                f"{signal.Signals(signum).name}: stopped in run {number} of {len(todo)} ({run}); "
                "the same command goes on from here",
                signum,
            ) from None
        times.append(time.monotonic() - start)
        left = sum(read_result(plan, other, folder) is None for other in todo[number:])
        _log.info(
            "[%d/%d] %s: AP %s, Pearson of score and IoU %s; %.0f s%s",
            number,
            len(todo),
            run,
            _shown(result["AP"]),
            _shown(result["score_iou_points"]),
            times[-1],
            f", about {left * sum(times) / len(times) / 60:.0f} min left" if left else "",
        )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# ---- several devices -----------------------------------------------------------------------------


def _devices(given: Sequence[str] | None) -> list[str]:
    if given is None:
        return ["cuda:0" if torch.cuda.is_available() else "cpu"]
    found = []
    for name in given:
        name = f"cuda:{name}" if name.isdigit() else name
        try:
            kind = torch.device(name).type
        except RuntimeError:
            kind = "unknown"
        if kind not in ("cpu", "cuda", "mps"):
            raise ValueError(f"devices: expected names like cpu, cuda:0 or 0, got {name!r}")
        if kind == "cuda" and (torch.device(name).index or 0) >= torch.cuda.device_count():
            raise ValueError(f"devices: expected one of the {torch.cuda.device_count()} GPUs here, got {name!r}")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise ValueError(f"devices: expected a device that is here, got {name!r}: torch finds no MPS")
        found.append(name)
    if not found:
        raise ValueError("devices: expected at least one, got none")
    return found


def _again(source: str | Path, folder: Path, given: Mapping[str, Any], progress: bool) -> list[str]:
    """The command line of this study, without its devices and what comes after its runs."""
    command = [sys.executable, "-m", "gflv2", "study", str(source), "--output", str(folder), "--no-cost"]
    command += ["--quick"] * given["quick"]
    for name, files in (given["data"] or {}).items():
        command += ["--data", f"{name}={','.join(map(str, files))}"]
    for name in ("seeds", "rows", "only"):
        if given[name] is not None:
            command += [f"--{name}", *map(str, given[name])]
    if given["base"] is not None:
        command += ["--base", str(given["base"])]
    for key, value in (given["overrides"] or {}).items():
        command += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return [*command, *["--no-pretrained"] * (not given["pretrained"]), *["--no-progress"] * (not progress)]


def _in_processes(places: list[str], command: list[str]) -> list[int]:
    """One process a device, each of which takes runs until none is left; the exit status of each."""
    processes: list[subprocess.Popen] = []
    try:
        with Signals() as signals:
            for place in places:
                processes.append(subprocess.Popen([*command, "--devices", place], stdout=subprocess.DEVNULL))
            while any(process.poll() is None for process in processes) and signals.received is None:
                time.sleep(0.2)
    finally:
        # Each saves its run. On a terminal they have SIGINT already; SIGTERM after it changes nothing.
        for process in processes:
            if process.poll() is None:
                process.terminate()
        codes = [process.wait() for process in processes]
    if signals.received is not None:
        name = signal.Signals(signals.received).name
        raise Interrupted(f"{name}: stopped; the same command goes on from here", signals.received)
    return codes
