"""The report's section of ``light_step``: remedies with what they do to numbers and AP, kinds of work, floors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import light_step
from benchmarks.harness import table
from benchmarks.harness.table import Row
from benchmarks.light_floors import COPY
from benchmarks.light_remedies import PLAIN, REMEDIES
from gflv2.engine.study.statistics import estimate

AP_COLUMNS = ("option", "seed", "ap")
NONE = "none"  # the option that the others are compared with
ROUNDING, ROUNDED = "rounding", "as plain, from start weights multiplied by 1 ± 1e-7"

_RATIOS = ("times as fast as plain", "least", "most")

Scores = dict[str, dict[str, float]]  # option → seed → AP


def scores(path: Path) -> Scores:
    """AP of each option and seed; nothing where there is no such file.

    Raises:
        ValueError: another table, or one that has a seed of an option twice.
    """
    found: Scores = {}
    for row in table.read(path, AP_COLUMNS) if path.exists() else []:
        own = found.setdefault(row["option"], {})
        if row["seed"] in own:
            again = f"seed {row['seed']} of {row['option']} again"
            raise ValueError(f"{path}: expected each seed of an option once, got {again}")
        own[row["seed"]] = float(row["ap"])
    return found


def ap_text(option: str, known: Scores) -> str:
    """Mean ± standard error, number of seeds; the difference from no option, paired by seed, with its 95 % interval."""
    own, none = known.get(option, {}), known.get(NONE, {})
    if not own:
        return "not measured"
    mean = estimate(list(own.values()))
    text = f"{mean.mean:.4f}" + (f" ± {mean.error:.4f}" if mean.n > 1 else "") + f" ({mean.n})"
    gap = estimate([value - none[seed] for seed, value in own.items() if seed in none])
    if option == NONE or gap.n < 2:
        return text
    return f"{text}; {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]".replace("-", "−")


def section(path: Path) -> Iterator[str]:
    """Lines of the report for one table."""
    rows = table.read(path, light_step.COLUMNS)
    known = scores(path.parent / f"{table.LIGHT_AP}.csv")
    for threads in dict.fromkeys(row["threads"] for row in rows):
        own = [row for row in rows if row["threads"] == threads]
        first = own[0]
        yield f"### {first['config']}, {first['device']}, {threads} thread{'s' * (threads != '1')}\n"
        about = f"Batch {first['batch']} at {first['size']}, {first['rounds']} rounds, load {first['load']}"
        yield f"{about}; torch {first['torch']}, commit {first['commit'] or 'unknown'}.\n"
        parts = {part: [row for row in own if row["part"] == part] for part in (*light_step.PARTS, "kinds", COPY)}
        others = [row for row in own if row["part"] not in parts]
        if parts["step"]:
            yield from _steps(parts["step"], known)
        if parts["compile"]:
            yield from _compile(parts["compile"])
        if parts["loader"]:
            yield from _loader(parts["loader"])
        if parts["kinds"]:
            yield from _kinds(parts["kinds"])
        if others:
            yield from _floors(others, parts[COPY][0], parts["step"])
    rest = [option for option in known if option not in {remedy.ap for remedy in REMEDIES.values()}]
    for option in rest:
        what = f" ({ROUNDED})" if option == ROUNDING else ""
        yield f"AP of `{option}`{what}: {ap_text(option, known)}.\n"


def _ratios(row: Row) -> str:
    return " | ".join(f"{float(row[name]):.3f}" for name in ("ratio", "low", "high"))


def _table(*heads: str) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)


def _steps(rows: Sequence[Row], known: Scores) -> Iterator[str]:
    ap = "AP ± standard error (seeds); paired difference [95 %]"
    yield from _table("step", "ms", *_RATIOS, "gradient differs by", ap)
    for row in rows:
        remedy = REMEDIES.get(row["name"])
        same = row["numbers"] == light_step.SAME and row["name"] != PLAIN
        if same or remedy is None or not remedy.ap:
            ap = "same numbers" if same else ""
        else:
            ap = ap_text(remedy.ap, known)
        gradient = {light_step.SAME: "0", "0": "0, weights by rounding", "": ""}.get(row["numbers"])
        if gradient is None:
            gradient = f"{float(row['numbers']):.1e}"
        yield f"| {row['name']} | {table.shown(float(row['ms']))} | {_ratios(row)} | {gradient} | {ap} |"
    yield ""


def _compile(rows: Sequence[Row]) -> Iterator[str]:
    yield from _table("step", "ms", *_RATIOS, "seconds of the first step")
    for row in rows:
        seconds = table.shown(float(row["seconds"])) if row["seconds"] else ""
        yield f"| {row['name']} | {table.shown(float(row['ms']))} | {_ratios(row)} | {seconds} |"
    yield ""


def _loader(rows: Sequence[Row]) -> Iterator[str]:
    yield from _table(
        "loader", "ms of a step and its images", "share that waits", "times as fast as the first", "least", "most"
    )
    for row in rows:
        share = f"{100 * float(row['share']):.1f} %"
        yield f"| {row['name']} | {table.shown(float(row['ms']))} | {share} | {_ratios(row)} |"
    yield ""


def _kinds(rows: Sequence[Row]) -> Iterator[str]:
    yield from _table("kind of work in a plain step", "share", "the step without it would be as fast as ×")
    for row in rows:
        share = float(row["share"])
        yield f"| {row['name']} | {100 * share:.1f} % | {1 / (1 - share):.2f} |"
    yield ""


def _floors(rows: Sequence[Row], copy: Row, steps: Sequence[Row]) -> Iterator[str]:
    """Convolutions against the fastest kind of them and against the bytes that they must move."""
    best = max(float(row["gflop"]) / float(row["ms"]) for row in rows)  # GFLOP a millisecond
    bandwidth = float(copy["gbyte"]) / float(copy["ms"])  # half of it read, half written
    floors = [max(float(row["gflop"]) / best, float(row["gbyte"]) / bandwidth) for row in rows]
    yield (
        f"Convolutions of a plain step. The floor is the time at {1e3 * best:.0f} GFLOP/s, that of the fastest kind, "
        f"or that of its bytes at {1e3 * bandwidth:.0f} GB/s, a copy's rate, whichever is longer.\n"
    )
    by_option = "ms by `train.fast_convolutions`"
    yield from _table("kernels", "pass", "layers", "GFLOP", "ms", "GFLOP/s", by_option, "floor in ms")
    for row, floor in zip(rows, floors, strict=True):
        gflop, took, fast = (float(row[name]) for name in ("gflop", "ms", "fast_ms"))
        cells = f"{gflop:.2f} | {took:.1f} | {1e3 * gflop / took:.0f} | {fast:.1f} | {floor:.1f}"
        yield f"| {row['part']} | {row['name']} | {row['count']} | {cells} |"
    plain, fast = (sum(float(row[name]) for row in rows) for name in ("ms", "fast_ms"))
    yield f"| all | | | | {plain:.1f} | | {fast:.1f} | {sum(floors):.1f} |\n"
    step = next((float(row["ms"]) for row in steps if row["name"] == PLAIN), None)
    if step is not None:
        ratios = [step / (step - plain + other) for other in (fast, sum(floors))]
        yield (
            f"With the rest of the plain step ({step - plain:.0f} of {step:.0f} ms) as it is, the faster paths give "
            f"{ratios[0]:.2f} times its speed, and convolutions at their floors would give {ratios[1]:.2f}.\n"
        )
