"""The pictures of the report as small SVG files: scaling curves of one operation, loss curves of a training pair."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.harness import pairs, table
from benchmarks.harness.cases import Case, facts, read
from benchmarks.harness.operation import Operation

_LABELS = {
    "size": "points of an image",
    "batch": "images",
    "boxes": "boxes in each image",
    "classes": "classes",
    "reg_max": "reg_max",
    "rows": "rows",
}
_COLOURS = {"cpu": "tab:blue", "triton": "tab:purple", "cuda": "tab:green", "best": "tab:cyan", "eager": "tab:orange"}
_COLOURS |= {"reference": "tab:orange", "fused": "tab:blue"}

Points = dict[str, list[tuple[float, float]]]


def curve(operation: Operation, axis: str, base: Case, rows: list[table.Row]) -> Points:
    """(value, median ms) of each backend, from the cases that differ from the base in one fact alone."""
    fixed = facts(base.text(operation.axes))
    fixed.pop(axis)
    mode = operation.mode or "both"
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for (_, _, backend, row_mode, case), runs in table.by_key(rows).items():
        given = facts(case)
        if row_mode != mode or axis not in given or any(given.get(name) != value for name, value in fixed.items()):
            continue
        # Which eager form is the fastest changes along a curve: one line for the fastest.
        name = "eager" if backend.startswith("eager") else backend
        here = read(case)
        x = here.points if axis == "size" else getattr(here, axis)
        took = table.median(runs, "ms")
        found[name][x] = min(took, found[name].get(x, took))
    return {name: sorted(points.items()) for name, points in found.items() if len(points) > 1}


def draw(operation: Operation, base: Case, rows: list[table.Row], path: Path) -> bool:
    """Write the picture; False where there is no curve to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {axis: curve(operation, axis, base, rows) for axis in operation.curves}
    curves = {axis: points for axis, points in curves.items() if points}
    if not curves:
        return False
    with pyplot.rc_context(_settings(operation.name)):
        figure, axes = pyplot.subplots(1, len(curves), figsize=(2.6 * len(curves), 2.5), squeeze=False)
        for plot, (axis, points) in zip(axes[0], curves.items(), strict=True):
            for name, line in points.items():
                xs, ys = zip(*line, strict=True)
                plot.plot(xs, ys, marker="o", markersize=3, linewidth=1, label=name, color=_COLOURS.get(name))
            plot.set_xscale("log")
            plot.set_yscale("log")
            plot.set_xlabel(_LABELS[axis])
            plot.grid(True, which="major", linewidth=0.3)
        axes[0][0].set_ylabel("ms")
        axes[0][0].legend(fontsize=7, frameon=False)
        _save(figure, path)
    return True


def draw_pair(steps: dict[str, list[pairs.Row]], path: Path) -> None:
    """The losses of each step, faint, and their moving mean, of each backend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_settings("training pair")):
        figure, plot = pyplot.subplots(figsize=(5.2, 2.8))
        # The curves lie on each other: the second is drawn over the first, thinner and dashed.
        for number, (name, rows) in enumerate(steps.items()):
            xs, losses = pairs.numbers(rows, "step"), pairs.numbers(rows, "loss")
            style = {"color": _COLOURS.get(name), "linestyle": "--" if number else "-"}
            plot.plot(xs, losses, linewidth=0.4, alpha=0.4, **style)
            plot.plot(xs, pairs.smooth(losses), linewidth=1 if number else 2.2, label=name, **style)
        plot.set_xlabel("step")
        plot.set_ylabel("loss")
        plot.grid(True, linewidth=0.3)
        plot.legend(fontsize=7, frameon=False)
        _save(figure, path)


def _settings(salt: str) -> dict[str, Any]:
    """The same table gives the same file."""
    return {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 8}


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
