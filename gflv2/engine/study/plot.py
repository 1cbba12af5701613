"""The plot of a study: every seed as a point, every mean with its interval."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gflv2.engine.study.plan import Study
from gflv2.engine.study.table import Summary

_SHOWN = {"AP": "AP", "score_iou_points": "Pearson of score and IoU, at positive points"}


def draw(study: Study, runs: Sequence[Mapping[str, Any]], summary: Sequence[Summary]) -> bytes:
    """A PNG with a panel for each data set and number; the runs of a seed are joined by a line."""
    # Without pyplot: no global state, window or thread is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(row.data for row in summary))
    rows = [row.name for row in study.rows if any(found.row == row.name for found in summary)]
    size = (5.5 * len(_SHOWN), (1.2 + 0.45 * len(rows)) * len(sets) + 0.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{study.title}: each seed, and the mean with its 95 % interval", fontsize=10)
    panels = figure.subplots(len(sets), len(_SHOWN), squeeze=False)
    for line, data in zip(panels, sets, strict=True):
        for axes, (metric, title) in zip(line, _SHOWN.items(), strict=True):
            for seed in dict.fromkeys(run["seed"] for run in runs):
                points = [
                    (float(run[metric]), rows.index(run["row"]))
                    for run in runs
                    if (run["data"], run["seed"]) == (data, seed) and run[metric] is not None
                ]
                points.sort(key=lambda point: point[1])
                axes.plot(*zip(*points, strict=True) if points else ((), ()), "o-", color="#adb5bd", ms=4, lw=0.6)
            for found in summary:
                if (found.data, found.metric) == (data, metric):
                    half = 0.0 if math.isnan(found.value.half) else found.value.half
                    place = rows.index(found.row)
                    axes.errorbar(found.value.mean, place, xerr=half, fmt="s", color="#1971c2", ms=6, capsize=4)
            axes.set_yticks(range(len(rows)), rows)
            axes.set(ylim=(len(rows) - 0.5, -0.5), title=f"{data}: {title}")
            axes.title.set_fontsize(9)
            axes.grid(axis="x", alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
