"""``python -m benchmarks.claims``: docs/claims.md, from the tables in ``results/studies``; no figure in it is typed.

A study's tables come from its folder: ``runs.csv`` and ``costs.csv`` of ``gflv2 study``, as
``results/studies/NAME/``; ``statistics_iou.csv`` from ``python -m benchmarks.statistics_iou``.
"""

from __future__ import annotations

import csv
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gflv2.config import load_config
from gflv2.engine.analysis.result import AUTHORS
from gflv2.engine.study import list_studies, read_study
from gflv2.engine.study.cost import AGAIN, Cost, read_costs
from gflv2.engine.study.plan import Study
from gflv2.engine.study.run import METRICS
from gflv2.engine.study.statistics import Estimate
from gflv2.engine.study.table import NOTE, Summary, accuracy_table, cost_table, interval, summarise
from gflv2.models.detector import SingleStageDetector

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "studies"
PAGE = ROOT / "docs" / "claims.md"

COCO_IMAGES, COCO_EPOCHS, COCO_BATCH, COCO_SIZE = 117_266, 12, 16, (800, 1344)
PEAK = 989e12  # dense bf16 operations a second of an H200, by its data sheet
SHARES = (0.2, 0.4)  # of the peak: an assumption

# Row, the row that it is claimed to be above, the number.
CLAIMS = [
    (row, against, metric)
    for metric in ("AP", "AP75", "score_iou_points", "score_iou_near")
    for row, against in (("GFLV1", "ATSS"), ("GFLV2", "ATSS"), ("GFLV2", "GFLV1"))
]
TITLES = {
    "AP": "AP",
    "AP75": "AP75",
    "score_iou_points": "correlation of score and IoU, at positive points",
    "score_iou_near": "correlation of score and IoU, of detections",
}

_HEAD = """# The paper's claims, measured here

Written by `python -m benchmarks.claims` from the tables in `benchmarks/results/studies`; no figure is typed. Every
figure has its number of seeds and a 95 % interval, each for itself: of twenty such intervals one is expected to miss.
[A study](study.md) says how runs, pairs and intervals are made. Small sets and a light network on a CPU, all rows with
the recipe that was made for GFLV2: what is shown here is shown for these, and COCO may differ. The runs were made
without `train.fast_convolutions`, which the recipe takes now: it changes rounding alone
([benchmarks.md](benchmarks.md#the-light-recipe)).

GFLV2 (arXiv 2011.12885) claims, on COCO: 46.2 AP against 43.6 of ATSS (ResNet-101, test-dev) "without sacrificing the
efficiency both in training and inference"; a correlation of predicted and real IoU of {v2:.3f} against {v1:.3f} of
GFLV1; and that the statistics of a box's distributions tell its quality.
"""


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``runs.csv``, with numbers as numbers; an empty number is None."""
    with open(path, newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["seed"] = int(row["seed"])
        for name in METRICS:
            row[name] = float(row[name]) if row[name] else None
    return rows


def page() -> str:
    """The text of docs/claims.md."""
    parts = [_HEAD.format(v2=AUTHORS["GFLV2"], v1=AUTHORS["GFLV1"])]
    ready = [name for name in list_studies() if (RESULTS / name / "runs.csv").is_file()]
    costs: list[Cost] = []
    for name in sorted(ready, key=lambda name: name != "baselines"):
        study, runs = read_study(name), read_runs(RESULTS / name / "runs.csv")
        summary = summarise(study, runs)
        parts.append(_study(study, runs, summary))
        if (RESULTS / name / "costs.csv").is_file():
            found = read_costs(RESULTS / name / "costs.csv")
            parts.append(_cost(study, found))
            costs = costs or found
    parts.append(_statistics(RESULTS / "statistics_iou.csv"))
    parts.append(_not_run([name for name in list_studies() if name not in ready]))
    parts.append(_needs(costs))
    return "\n".join(parts)


def _study(study: Study, runs: Sequence[dict[str, Any]], summary: Sequence[Summary]) -> str:
    first = runs[0]
    seconds = sum(float(run["seconds"]) for run in runs)
    starts = sorted({run["quality_init"] for run in runs if run["quality_init"]})
    lines = [
        f"## {study.title}",
        "",
        f"`{study.base}`, {len(runs)} runs of {first['epochs']} epochs on {first['device']} ({first['threads']} thread"
        f"{'' if first['threads'] == '1' else 's'}), {seconds / 3600:.1f} hours of training in all, gflv2 "
        f"{first['gflv2']}, torch {first['torch']}"
        + (f"; the predictor starts as `model.head.quality_init: {', '.join(starts)}` says." if starts else ".")
        + ("" if study.name == "baselines" else " Rows with the settings of one of the baselines are its runs."),
        "",
        "<!-- not run: it trains for half an hour; tests/engine/test_study.py runs the quick form -->",
        "```bash",
        _command(study, {run["data"] for run in runs}, {run["row"] for run in runs}),
        "```",
    ]
    if study.name == "baselines":
        lines += ["", *claims_table(study, runs)]
    for data in dict.fromkeys(row.data for row in summary):
        chosen = [run for run in runs if run["data"] == data]
        points = sorted({int(run["points"]) for run in chosen})
        count = f"{points[0]:,}" if len(points) == 1 else f"{points[0]:,} to {points[-1]:,}"
        lines += ["", f"### {data}", ""]
        images, objects = (chosen[0][name] for name in ("images", "objects"))
        lines.append(f"Evaluated on {images} images with {objects} objects and {count} positive points.")
        lines += ["", *accuracy_table([row for row in summary if row.data == data]), ""]
        if study.name != "baselines":
            lines += [f"* {text}" for text in beyond_noise([row for row in summary if row.data == data])]
    return "\n".join([*lines, "", NOTE, ""])


def _command(study: Study, sets: set[str], rows: set[str]) -> str:
    """The command line of the runs of some of a study's rows on some of its data sets."""
    chosen = [data for data in study.data if data.name in sets]
    text = f"gflv2 study {study.name}"
    if len(chosen) < len(study.data):
        text += " --only " + " ".join(data.name for data in chosen)
    if len(rows) < len(study.rows):
        text += " --rows " + shlex.join(row.name for row in study.rows if row.name in rows)
    return text + "".join(f" --data {data.name}=TRAIN.json,VAL.json,IMAGES" for data in chosen if not data.is_given)


def claims_table(study: Study, runs: Sequence[dict[str, Any]]) -> list[str]:
    """What the paper claims of the baselines, and what came out on each data set."""
    sets = list(dict.fromkeys(run["data"] for run in runs))
    lines = ["| claim | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for row, against, metric in CLAIMS:
        found = {
            one.data: one.difference
            for one in summarise(replace(study, compare=against), runs)
            if (one.row, one.metric) == (row, metric) and one.difference is not None
        }
        cells = [verdict(found[data]) if data in found else "–" for data in sets]
        lines.append(f"| {row} above {against}: {TITLES[metric]} | " + " | ".join(cells) + " |")
    return lines


def beyond_noise(summary: Sequence[Summary]) -> list[str]:
    """Which rows of a study differ from the one that they are compared with, a sentence for each number."""
    found = []
    for metric in ("AP", "score_iou_points"):
        rows = [row for row in summary if row.metric == metric and row.difference is not None and row.difference.n > 1]
        apart = [f"{row.row} {interval(row.difference)}" for row in rows if not _holds_zero(row.difference)]
        shown = ": " + "; ".join(apart) if apart else ""
        found.append(f"{TITLES[metric]}: {len(apart)} of {len(rows)} differences have an interval without zero{shown}.")
    return found


def _holds_zero(difference: Estimate | None) -> bool:
    return difference is None or difference.low <= 0 <= difference.high


def verdict(difference: Estimate) -> str:
    """ "shown: +0.010 [+0.004, +0.016], 5 seeds"; where zero lies inside, that nothing is."""
    seeds = f"{difference.n} seed" + ("s" if difference.n > 1 else "")
    if math.isnan(difference.low):
        what = "not to be judged"
    elif _holds_zero(difference):
        what = "not shown"
    else:
        what = "shown" if difference.low > 0 else "**the contrary is shown**"
    return f"{what}: {interval(difference)}, {seeds}"


def _cost(study: Study, costs: Sequence[Cost]) -> str:
    by_row = {cost.row: cost for cost in costs}
    noise = by_row[study.compare + AGAIN]
    lines = [f"### What the rows cost ({study.title})", "", *cost_table(costs), ""]
    for name, title in (("step", "a training step"), ("detect", "an image")):
        for cost in costs:
            if cost.row in (study.compare, noise.row):
                continue
            low, high = getattr(cost, f"{name}_low"), getattr(cost, f"{name}_high")
            same = getattr(noise, f"{name}_low"), getattr(noise, f"{name}_high")
            ratio, other = getattr(cost, f"{name}_ratio"), getattr(noise, f"{name}_ratio")
            lines.append(
                f"* {cost.row} against {study.compare}, {title}: {ratio:.3f} [{low:.3f}, {high:.3f}] times as long, "
                f"{pace((low, high), same)}; the same row against itself: {other:.3f} [{same[0]:.3f}, {same[1]:.3f}]; "
                f"{cost.rounds} rounds."
            )
    return "\n".join([*lines, ""])


def pace(ratio: tuple[float, float], noise: tuple[float, float]) -> str:
    """What an interval of a ratio of times shows beside that of the same thing against itself."""
    low, high = min(1.0, noise[0]), max(1.0, noise[1])
    return "slower" if ratio[0] > high else "faster" if ratio[1] < low else "no more than noise"


def _statistics(path: Path) -> str:
    lines = ["## The statistics of real distributions", ""]
    if not path.is_file():
        return "\n".join([*lines, "Not run here.", ""])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    lines += [
        f"NanoDet-m's published COCO weights, a GFLV1 head with 8 bins a side, on {first['images']} COCO validation "
        f"images: {first['points']} positive points. Each statistic is of one side, mean over the four sides; its "
        "Pearson coefficient with the IoU of the point's box has a 95 % interval from "
        f"{int(first['draws']):,} draws of images with replacement. It is one network on few images, so the interval "
        "is of the images alone.",
        "",
        "<!-- not run: it needs COCO images; tests/benchmarks/test_claims.py runs it on small ones -->",
        "```bash",
        "python -m benchmarks.statistics_iou coco instances_val.json --config gflv2_nanodet_m",
        "```",
        "",
        "| statistic | Pearson with IoU | 95 % interval |",
        "|---|---|---|",
    ]
    for row in rows:
        low, high = float(row["low"]), float(row["high"])
        lines.append(f"| {row['statistic']} | {float(row['pearson']):.3f} | {low:.3f} to {high:.3f} |")
    best = max((row for row in rows if row["statistic"] != "score"), key=lambda row: float(row["pearson"]))
    low = min(float(row["low"]) for row in rows)
    lines += [
        "",
        "All of them go together with the IoU: "
        + (f"the lowest end of an interval is {low:.3f}. " if low > 0 else "but some of the intervals hold zero. ")
        + f"The closest statistic is “{best['statistic']}”; where intervals overlap, no order is claimed.",
        "",
    ]
    return "\n".join(lines)


def _not_run(names: Sequence[str]) -> str:
    lines = ["## Not run here", ""]
    if not names:
        return "\n".join([*lines, "Every study that comes with the package was run.", ""])
    lines.append("These studies come with the package and run with `gflv2 study NAME`; nobody has measured them here.")
    lines += [
        "",
        *(f"* `{name}`: {read_study(name).title}, {len(read_study(name).runs())} runs." for name in names),
        "",
    ]
    return "\n".join(lines)


def _needs(costs: Sequence[Cost]) -> str:
    """What the same on COCO would need."""
    forward, both = flops("gflv2_r50_fpn_1x", (1, 3, *COCO_SIZE))
    run = both * COCO_IMAGES * COCO_EPOCHS
    study = read_study("baselines")
    count = len(study.rows) * len(study.seeds)
    hours = [run / (PEAK * share) / 3600 for share in reversed(SHARES)]
    forecast = sum(_forecast(name) for name in ("head forward", "head backward"))
    steps = COCO_IMAGES // COCO_BATCH * COCO_EPOCHS
    lines = [
        "## What COCO and a GPU would need",
        "",
        f"`gflv2_r50_fpn_1x` at {COCO_SIZE[0]} × {COCO_SIZE[1]}: {forward / 1e9:.0f} GFLOP an image forward, "
        f"{both / 1e12:.2f} TFLOP forward and backward (of convolutions and products; a multiplication and an addition "
        f"are two). {COCO_EPOCHS} epochs of {COCO_IMAGES:,} images: {run / 1e18:.2f}·10¹⁸ a run. An H200 does "
        f"{PEAK / 1e12:.0f} TFLOP/s in bfloat16 by its data sheet; at {100 * SHARES[0]:.0f} to {100 * SHARES[1]:.0f} % "
        f"of it, which is an assumption and not measured, a run takes {hours[0]:.1f} to {hours[1]:.1f} hours, and "
        f"`baselines` ({count} runs: {len(study.rows)} rows, {len(study.seeds)} seeds) {hours[0] * count:.0f} to "
        f"{hours[1] * count:.0f} hours of one GPU, loading and evaluation not counted. Assignment, targets and losses "
        f"are predicted to take {forecast / 1e3:.2f} ms of a step ([the forecast](forecast.md)), "
        f"{forecast * 1e-6 * steps:.0f} s of a run.",
    ]
    if costs:
        # A step is about three forwards: the counter takes a depthwise convolution's backward for a dense one.
        first = costs[0]
        light = 3 * flops(study.base, (first.batch_size, 3, first.height, first.width))[0]
        rate = light / first.step
        lines += [
            "",
            f"The step that was measured here ({first.row}, {light / 1e9:.0f} GFLOP in {1e3 * first.step:.0f} ms) is "
            f"{rate / 1e9:.0f} GFLOP/s; at this rate one run on COCO would take "
            f"{run / rate / 86400:.0f} days on this machine.",
        ]
    return "\n".join([*lines, "", "The command is in [a study](study.md).", ""])


def _forecast(operation: str) -> float:
    """Predicted µs on an H200, of the CUDA kernels, as docs/forecast.md has it."""
    for line in (ROOT / "docs" / "forecast.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == [operation, "cuda"]:
            return float(cells[2].replace(",", ""))
    raise ValueError(f"docs/forecast.md: no row of {operation!r}, cuda")


def flops(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Operations of a configuration's network on (B, 3, H, W) images: forward, and forward and backward."""
    model = SingleStageDetector(load_config(name)).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        output = model(torch.empty(shape, device="meta"))
        forward = counter.get_total_flops()
        torch.stack([level.sum() for level in (*output.class_logits, *output.box_logits)]).sum().backward()
        return forward, counter.get_total_flops()


def main() -> int:
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
