"""``python -m benchmarks.report``: REPORT.md and its plots, from the tables in ``results/``; nothing in it is typed.

``--compare OLD.csv NEW.csv`` ends with exit code 1 where this project became slower, or hungrier, beyond the noise.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import compare, formats, host, light_report, loader, plots, predictor_start
from benchmarks.harness import machine, pairs, table
from benchmarks.harness.cases import facts, read
from benchmarks.harness.operation import Operation
from benchmarks.integrations import integrations
from benchmarks.registry import operations
from benchmarks.training_step import WITHOUT_LOSS

HERE = Path(__file__).parent
_MODES = ("forward", "backward", "both")

_HEAD = """# Benchmarks

Written by `python -m benchmarks.report` from the tables in `benchmarks/results`, which `make bench` fills; what the
columns mean, and how everything is measured, stands in [docs/benchmarks.md](../docs/benchmarks.md).
"""

_PAIR = (
    "\n## Same training, faster\n",
    "The same model trained twice from the same weights on the same batches, with plain PyTorch (`reference`) and with",
    "the fused operations; the two take turns, step by step. Written by `python -m benchmarks.training_pair`.",
    "",
)


_HOST = (
    "\n## Host time\n",
    "Microseconds of a call before its kernel runs: batch 16, five levels, ten boxes an image; losses with backward.",
    "Written by `python -m benchmarks.host`, in turns with another commit in one process.",
    "",
)

_LOADER = (
    "\n## Loading\n",
    "Processor time of one batch without data workers, and of the training step with it; ratios to the options off, of",
    "which the second row is the noise. Written by `python -m benchmarks.loader`; all take turns in one process.",
    "",
)

_FORMATS = (
    "\n## One data set, three formats\n",
    "The same images and boxes as COCO, YOLO and Pascal VOC files. Written by `python -m benchmarks.formats`.",
    "",
)

_STARTS = (
    "\n## The quality predictor's start\n",
    "Hidden units of the quality predictor that are silent, or linear, at all points of the validation images, before",
    "and after training with AdamW; mean ± standard error over the seeds. Written by `python -m",
    "benchmarks.predictor_start`.",
    "",
)

_LIGHT = (
    "\n## The light model's step on a CPU\n",
    "What each remedy gains, in turns in one process (the second plain step is the noise), and where a step's time is.",
    "Written by `python -m benchmarks.light_step`, the AP by `python -m benchmarks.light_ap`: all options are compared",
    "with the same trainings without paths, so that their differences are not independent of each other.",
    "",
)


def write(results: Path, output: Path) -> list[Path]:
    """Write the report of all tables of a folder and its plots, and return the files.

    Raises:
        FileNotFoundError: the folder holds no table.
    """
    tables, trained = table.files(results), pairs.files(results)
    if not tables and not trained:
        raise FileNotFoundError(f"no table in {results}: run make bench first")
    rows = [row for path in tables for row in table.read(path)]
    files, parts = [output], [_HEAD]
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        parts.append("\n".join(_device(device, here)))
        for operation in [*operations(), *integrations()]:
            own = [row for row in here if row["operation"] == operation.name]
            if not own:
                continue
            parts.append("\n".join(_operation(operation, own)))
            picture = output.parent / "plots" / f"{machine.slug(device)}-{operation.name}.svg"
            if plots.draw(operation, operation.curve_base(_kind(own)), own, picture):
                parts.append(_picture(operation, own, picture.relative_to(output.parent)))
                files.append(picture)
    if trained:
        parts.append("\n".join(_PAIR))
    for path in trained:
        steps = pairs.by_backend(pairs.read(path))
        picture = output.parent / "plots" / f"{path.stem}.svg"
        plots.draw_pair(steps, picture)
        parts.append("\n".join(_pair(steps, picture.relative_to(output.parent))))
        files.append(picture)
    for prefix, head, section in (
        (table.HOST, _HOST, host.section),
        (table.LOADER, _LOADER, loader.section),
        (table.FORMATS, _FORMATS, formats.section),
        (table.STARTS, _STARTS, predictor_start.section),
        (table.LIGHT, _LIGHT, light_report.section),
    ):
        if found := sorted(results.glob(f"{prefix}*.csv")):
            parts.append("\n".join(head))
            parts += ["\n".join(section(path)) for path in found]
    output.write_text("\n".join(parts))
    return files


def _kind(rows: list[table.Row]) -> torch.device:
    """GPUs have a driver."""
    return torch.device("cuda" if rows[0]["driver"] else "cpu")


def _device(device: str, rows: list[table.Row]) -> Iterator[str]:
    yield f"\n## {device}\n"
    software: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        measured = software[tuple(row[name] for name in ("torch", "triton", "driver", "commit"))]
        if row["operation"] not in measured:
            measured.append(row["operation"])
    for (version, triton, driver, commit), names in software.items():
        parts = [f"torch {version}", f"triton {triton}" * bool(triton), f"driver {driver}" * bool(driver)]
        which = "" if len(software) == 1 else f": {', '.join(names)}"
        yield f"* {', '.join(part for part in parts if part)}, commit {commit or 'unknown'}{which}"
    yield ""


def _operation(operation: Operation, rows: list[table.Row]) -> Iterator[str]:
    """One table a case that is not of a curve alone."""
    yield f"\n### {operation.name}\n"
    device = _kind(rows)
    bases = {case.text(operation.axes) for case in operation.bases(device)}
    curves = {case.text(operation.axes) for case in operation.curve_cases(device)}
    for case in dict.fromkeys(row["case"] for row in rows):
        if case in curves and case not in bases:
            continue
        runs = table.by_key(row for row in rows if row["case"] == case)
        yield from _case(operation, case, runs)


def _case(operation: Operation, case: str, runs: dict[table.Key, list[table.Row]]) -> Iterator[str]:
    modes = [operation.mode] if operation.mode else list(_MODES)
    last = modes[-1]
    moved = operation.moved(read(case)).get(last)
    floor = f"; {moved / 1e6:.4g} MB must move ({last})" if moved else ""
    yield f"{case.replace(' ', ', ')}{floor}\n"
    images = facts(case).get("batch") if operation.name == "inference" else None
    heads = ["candidate", *(f"{mode} ms" for mode in modes), "spread", "× eager", "× compile", "launches", "syncs"]
    heads += ["host µs", "peak MB", "saved MB", "of copy bandwidth", *(["images/s"] if images else [])]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    medians = {}
    for backend in dict.fromkeys(key[2] for key in runs):
        of = {key[3]: found for key, found in runs.items() if key[2] == backend}
        cells = [backend, *(table.shown(table.median(of[mode], "ms")) for mode in modes)]
        cells.append(f"{100 * table.spread(of[last]):.0f} %")
        cells += [table.shown(table.median(of[last], name)) for name in ("vs_eager", "vs_compile", "launches", "syncs")]
        cells.append(table.shown(table.median(of[last], "host_us")))
        cells += [table.shown(table.median(of[last], name), 1e-6) for name in ("peak_bytes", "saved_bytes")]
        share = table.median(of[last], "bandwidth_share")
        cells.append("" if share is None else f"{100 * share:.0f} %")
        medians[backend] = table.median(of[last], "ms")
        if images:
            cells.append(table.shown(int(images) / medians[backend] * 1e3))
        yield f"| {' | '.join(cells)} |"
    yield ""
    if WITHOUT_LOSS in medians:
        yield f"Share of targets, losses and their backward in the step: {_shares(medians)}.\n"


def _shares(medians: dict[str, float]) -> str:
    rest = medians[WITHOUT_LOSS]
    shares = {name: 100 * (1 - rest / took) for name, took in medians.items() if name != WITHOUT_LOSS}
    return ", ".join(f"{name} {share:.0f} %" for name, share in shares.items())


def _picture(operation: Operation, rows: list[table.Row], path: Path) -> str:
    base = operation.curve_base(_kind(rows)).text(operation.axes).replace(" ", ", ")
    mode = operation.mode or "forward and backward"
    return f"![{operation.name}: time over the sizes of its input]({path.as_posix()})\n\n*{mode}, from {base}*\n"


def _pair(steps: dict[str, list[pairs.Row]], picture: Path) -> Iterator[str]:
    """One training pair: what was trained, a table, the curves."""
    first = next(iter(steps.values()))[0]
    yield f"### {first['config']} on {first['data']}, {first['device']}\n"
    software = [f"torch {first['torch']}", f"triton {first['triton']}" * bool(first["triton"])]
    software.append(f"driver {first['driver']}" * bool(first["driver"]))
    start = f"{first['images']} images, batches of {first['batch']}, from {first['start']} weights"
    yield f"{start}; {', '.join(part for part in software if part)}, commit {first['commit'] or 'unknown'}.\n"
    yield "| backend | steps | loss at the end | AP | AP50 | s a step | of it targets, losses, their backward |"
    yield "|---|---|---|---|---|---|---|"
    found = {name: pairs.summarise(rows) for name, rows in steps.items()}
    for name, one in found.items():
        kernels = steps[name][0]["kernels"]
        shown = name if kernels == name else f"{name} ({kernels})"
        metrics = ["" if value is None else f"{value:.3f}" for value in (one.ap, one.ap50)]
        cells = [shown, str(one.steps), f"{one.last_loss:.4f}", *metrics, table.shown(one.seconds)]
        yield f"| {' | '.join([*cells, table.shown(one.head_seconds)])} |"
    yield ""
    if len(found) == 2:
        (first_steps, second_steps), (slow, fast) = steps.values(), found.values()
        difference = pairs.largest_difference(first_steps, second_steps)
        text = f"Largest difference between the losses of one step: {100 * difference:.2g} % of the mean loss."
        text += f" A step is {slow.seconds / fast.seconds:.3g}× as fast"
        if slow.head_seconds and fast.head_seconds:
            text += f", its targets and losses {slow.head_seconds / fast.head_seconds:.3g}×"
        yield f"{text}.\n"
    yield f"![both loss curves]({picture.as_posix()})\n"
    yield f"*Sum of the losses, mean of the last {pairs.SMOOTHED} steps; faint: of each step*\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the tables")
    parser.add_argument("--output", type=Path, default=HERE / "REPORT.md")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD.csv", "NEW.csv"))
    options = parser.parse_args(arguments)
    try:
        if options.compare is None:
            for path in write(options.results, options.output):
                print(f"wrote {path}")
            return 0
        old, new = (table.read(path) for path in options.compare)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    worse = compare.regressions(old, new)
    for line in worse:
        print(line)
    print(f"{compare.compared(old, new)} compared, {len(worse)} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
