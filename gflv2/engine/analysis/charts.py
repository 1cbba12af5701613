"""Charts as SVG text, for a page without scripts. Every text that comes from outside is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from gflv2.engine.analysis.relations import CELLS, Relation

_WIDTH, _HEIGHT = 360, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 46
_INK, _FAINT, _GRID = "#212529", "#868e96", "#dee2e6"
COLOURS = ("#1971c2", "#e8590c", "#2f9e44")


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - value * (_HEIGHT - _TOP - _BOTTOM)


def text(x: float, y: float, content: str, *, size: int = 12, anchor: str = "start", colour: str = _INK) -> str:
    """A piece of text, escaped."""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{escape(content)}</text>"


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"' + (
        f' stroke-dasharray="{dash}"/>' if dash else "/>"
    )


def svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """The parts as one picture, which says what it shows to those who do not see it."""
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img"'
    return f'{head} aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _axes(x_name: str, y_name: str) -> list[str]:
    parts = []
    for step in range(6):
        value = step / 5
        parts += [line(_x(value), _y(0), _x(value), _y(1), _GRID), line(_x(0), _y(value), _x(1), _y(value), _GRID)]
        parts.append(text(_x(value), _y(0) + 17, f"{value:.1f}", size=11, anchor="middle", colour=_FAINT))
        parts.append(text(_x(0) - 7, _y(value) + 4, f"{value:.1f}", size=11, anchor="end", colour=_FAINT))
    parts.append(text(_x(0.5), _HEIGHT - 8, x_name, anchor="middle"))
    turned = f'transform="rotate(-90 14 {_y(0.5):.1f})"'
    parts.append(f"<g {turned}>{text(14, _y(0.5), y_name, anchor='middle')}</g>")
    return parts


def relation_chart(found: Relation, x_name: str, y_name: str, *, diagonal: bool) -> str:
    """Where the samples lie, the darker the more of them; on it the means of the bins of x.

    ``diagonal``: draw the line on which x equals y.
    """
    parts = _axes(x_name, y_name)
    most = int(found.counts.max()) if found.samples else 0
    for row, column in zip(*found.counts.nonzero(), strict=True):
        # By the logarithm: one sample is seen beside a thousand.
        share = math.log1p(found.counts[row, column]) / math.log1p(most)
        x, y = _x(column / CELLS), _y((row + 1) / CELLS)
        size = f'width="{_x(1 / CELLS) - _x(0):.2f}" height="{_y(0) - _y(1 / CELLS):.2f}"'
        parts.append(f'<rect x="{x:.2f}" y="{y:.2f}" {size} fill="#4dabf7" fill-opacity="{0.1 + 0.75 * share:.2f}"/>')
    if diagonal:
        parts.append(line(_x(0), _y(0), _x(1), _y(1), _INK, 1, "4 4"))
    places = [(_x(row["mean_x"]), _y(row["mean_y"])) for row in found.bins]
    if places:
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{way}" fill="none" stroke="#c92a2a" stroke-width="2"/>')
    for (x, y), row in zip(places, found.bins, strict=True):
        mean = f"{row['samples']} samples: mean x {row['mean_x']:.3f}, mean y {row['mean_y']:.3f}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#c92a2a"><title>{mean}</title></circle>')
    return svg(_WIDTH, _HEIGHT, parts, f"{y_name} over {x_name}, {found.samples} samples")


def curves_chart(curves: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> str:
    """Precision over recall; ``curves`` at recalls evenly spread from 0 to 1, ``names`` for the legend."""
    parts = _axes("recall", "precision")
    for number, (key, values) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        last = max(len(values) - 1, 1)
        way = " ".join(f"{_x(place / last):.1f},{_y(value):.1f}" for place, value in enumerate(values))
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 16 + 18 * number
        parts.append(line(_WIDTH - 150, y - 4, _WIDTH - 130, y - 4, colour, 3))
        parts.append(text(_WIDTH - 124, y, names[key]))
    return svg(_WIDTH, _HEIGHT, parts, "precision over recall")


def bars_chart(values: Mapping[str, float], notes: Mapping[str, str]) -> str:
    """Horizontal bars from 0, which may be negative; ``notes`` stand behind the numbers."""
    known = [value for value in values.values() if not math.isnan(value)]
    low, high = min([0.0, *known]), max([0.01, *known])
    left, width, step = 120, 230, 34
    unit = width / (high - low)
    zero = left - low * unit
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y = 10 + step * number
        parts.append(text(left - 10, y + 15, name, size=13, anchor="end"))
        if not math.isnan(value):
            x, length = zero + min(value, 0) * unit, abs(value) * unit
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="22" fill="#e8590c" rx="2"/>')
        shown = "–" if math.isnan(value) else f"{value:+.3f}"
        place = left + width + 10
        parts.append(text(place, y + 15, shown, size=13))
        parts.append(text(place + 56, y + 15, notes[name], size=12, colour=_FAINT))
    parts.append(line(zero, 4, zero, 10 + step * len(values), _INK))
    return svg(left + width + 200, 14 + step * len(values), parts, "AP50 gained if errors of a kind are mended")


def distribution_chart(distances: Sequence[float], probabilities: Sequence[float]) -> str:
    """The bins of one side over the position in the image, its expectation as a line."""
    pairs = sorted(zip(distances, probabilities, strict=True))
    count, width, height = len(pairs), 260, 84
    step = width / count
    most = max(probabilities)
    mean = sum(position * share for position, share in pairs)
    parts = []
    for number, (position, share) in enumerate(pairs):
        length = share / most * (height - 6)
        place = f'x="{number * step + 1:.1f}" y="{height - length:.1f}" width="{step - 2:.1f}" height="{length:.1f}"'
        tip = f"<title>{position:.1f} px: {share:.3f}</title>"
        parts.append(f'<rect {place} fill="#4dabf7">{tip}</rect>')
    first, last = pairs[0][0], pairs[-1][0]
    if last > first:
        x = step / 2 + (mean - first) / (last - first) * (width - step)
        parts.append(line(x, 0, x, height, "#c92a2a", 2))
    parts.append(line(0, height, width, height, _FAINT))
    parts.append(text(width / 2, height + 14, f"{mean:.1f} px", size=11, anchor="middle", colour="#c92a2a"))
    parts.append(text(0, height + 14, f"{first:.0f} px", size=11, colour=_FAINT))
    parts.append(text(width, height + 14, f"{last:.0f} px", size=11, anchor="end", colour=_FAINT))
    return svg(width, height + 18, parts, "probability of each bin")
