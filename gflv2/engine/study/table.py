"""The numbers of a study as a table, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gflv2.engine.study.cost import Cost
from gflv2.engine.study.plan import Study
from gflv2.engine.study.run import FACTS, METRICS
from gflv2.engine.study.statistics import Estimate, estimate

SHOWN = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "score_iou_points": "r points",
    "score_iou_near": "r detections",
}
"""Numbers of the table in text → their headings. r: Pearson's coefficient of score and IoU, at positive points and of
detections near an object."""


@dataclass(frozen=True)
class Summary:
    """One number of one row on one data set.

    Attributes:
        value: over the seeds.
        compare: the row that this one is compared with. difference: from it, seed by seed; None for that row itself.
    """

    data: str
    row: str
    metric: str
    value: Estimate
    compare: str
    difference: Estimate | None


def summarise(study: Study, runs: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Of every data set, row and number that has values; a difference is of seeds that both rows have."""
    found = []
    for data in dict.fromkeys(run["data"] for run in runs):
        for metric in METRICS:
            values = {
                row.name: {
                    run["seed"]: math.nan if run[metric] is None else float(run[metric])
                    for run in runs
                    if (run["data"], run["row"]) == (data, row.name)
                }
                for row in study.rows
            }
            for row in study.rows:
                by_seed, compare = values[row.name], row.compare or study.compare
                value = estimate(list(by_seed.values()))
                if value.n == 0:
                    continue
                against = values.get(compare, {})
                pairs = [by_seed[seed] - against[seed] for seed in by_seed if seed in against]
                difference = None if row.name == compare else estimate(pairs)
                found.append(Summary(data, row.name, metric, value, compare, difference))
    return found


def raw_csv(runs: Sequence[Mapping[str, Any]]) -> str:
    """One line a run: names, numbers, and under what they were measured."""
    names = ("data", "row", "seed", *METRICS, *FACTS)
    return _csv([names, *([_cell(run.get(name)) for name in names] for run in runs)])


def summary_csv(rows: Sequence[Summary]) -> str:
    """One line a number: mean, standard error, 95 % interval; and the same of the paired difference."""
    head = "data row metric seeds mean standard_error low high compared_with pairs difference difference_error"
    lines: list[Sequence[Any]] = [(*head.split(), "difference_low", "difference_high")]
    for row in rows:
        lines.append((row.data, row.row, row.metric, *_cells(row.value), row.compare, *_cells(row.difference)))
    return _csv(lines)


def costs_csv(costs: Sequence[Cost]) -> str:
    """One line a row; seconds and bytes."""
    names = [field.name for field in fields(Cost)]
    return _csv([names, *([_cell(getattr(cost, name)) for name in names] for cost in costs)])


def _cells(value: Estimate | None) -> list[Any]:
    if value is None:
        return [""] * 5
    return [value.n, *map(_cell, (value.mean, value.error, value.low, value.high))]


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---- text ----------------------------------------------------------------------------------------


def markdown(study: Study, summary: Sequence[Summary], costs: Sequence[Cost] | None) -> str:
    """The tables: each data set's rows, their differences, and what the rows cost."""
    lines = [f"# {study.title}"]
    for data in dict.fromkeys(row.data for row in summary):
        lines += ["", f"## {data}", "", *accuracy_table([row for row in summary if row.data == data])]
    if summary:
        lines += ["", NOTE]
    else:
        lines += ["", "No run is complete."]
    if costs:
        lines += ["", "## Cost", "", *cost_table(costs)]
    return "\n".join(lines)


NOTE = (
    "Mean ± standard error over the seeds; below it the difference from another row, paired by seed; in brackets the "
    "95 % t intervals. r: Pearson's coefficient of score and IoU, at positive points and of detections near an "
    "object. –: not defined, or one seed alone."
)


def accuracy_table(rows: Sequence[Summary]) -> list[str]:
    """Two lines of Markdown a row: the means, and the differences."""
    lines = [
        "| row | seeds | " + " | ".join(SHOWN.values()) + " |",
        "|---|---|" + "---|" * len(SHOWN),
    ]
    for name in dict.fromkeys(row.row for row in rows):
        by_metric = {row.metric: row for row in rows if row.row == name}
        seeds = max(row.value.n for row in by_metric.values())
        cells = [_mean(by_metric[metric].value) if metric in by_metric else "–" for metric in SHOWN]
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
        differences = [by_metric[metric].difference if metric in by_metric else None for metric in SHOWN]
        if any(difference is not None and difference.n for difference in differences):
            compare = next(iter(by_metric.values())).compare
            shown = " | ".join(map(interval, differences))
            lines.append(f"| {name} − {compare} | {max(d.n for d in differences if d is not None)} | {shown} |")
    return lines


def _mean(value: Estimate) -> str:
    shown = f"{value.mean:.3f}".replace("-", "−")
    if math.isnan(value.error):
        return shown
    return f"{shown} ± {value.error:.3f} [{value.low:.3f}, {value.high:.3f}]".replace("-", "−")


def interval(value: Estimate | None) -> str:
    """A difference with its interval: "+0.012 [−0.003, +0.027]"."""
    if value is None or value.n == 0:
        return "–"
    if math.isnan(value.low):
        return signed(value.mean)
    return f"{signed(value.mean)} [{signed(value.low)}, {signed(value.high)}]"


def signed(value: float) -> str:
    """Three digits with a sign, and the sign that print has for a minus."""
    return f"{value:+.3f}".replace("-", "−")


def cost_table(costs: Sequence[Cost]) -> list[str]:
    """A line of Markdown a row."""
    first = costs[0]
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    gpu = first.peak_bytes is not None
    memory = "peak MB | kept for backward, MB" if gpu else "kept for backward, MB"
    lines = [
        f"{first.device}, {threads}, {first.clock} time, data {first.data}: training batches of "
        f"{first.batch_size} at {first.height} × {first.width}, inference of one image; {first.rounds} rounds in turns "
        "in one process. Ratios are to the row that all are compared with, with 95 % intervals; that of the row named "
        "“again” is the noise.",
        "",
        f"| row | parameters, M | iterations/s | time of a step | {memory} | images/s | time of an image |",
        "|---|---|---|---|---|---|---|" + "---|" * gpu,
    ]
    for cost in costs:
        peak = f"{cost.peak_bytes / 1e6:.0f} | " if cost.peak_bytes is not None else ""
        lines.append(
            f"| {cost.row} | {cost.parameters / 1e6:.3f} | {1 / cost.step:.3g} | "
            f"{_factor(cost.step_ratio, cost.step_low, cost.step_high)} | {peak}{cost.saved_bytes / 1e6:.1f} | "
            f"{1 / cost.detect:.3g} | {_factor(cost.detect_ratio, cost.detect_low, cost.detect_high)} |"
        )
    return lines


def _factor(value: float, low: float, high: float) -> str:
    if value == low == high:
        return "1"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")
