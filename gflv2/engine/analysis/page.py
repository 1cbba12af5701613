"""The report as one HTML file: no script, no other file, no address that is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from gflv2.engine.analysis.charts import bars_chart, curves_chart, distribution_chart, relation_chart
from gflv2.engine.analysis.crops import crop_of
from gflv2.engine.analysis.observe import UncertainSide
from gflv2.engine.analysis.result import AUTHORS, TITLES, Analysis, shown
from gflv2.version import __version__

if TYPE_CHECKING:
    from gflv2.data import CocoDetection

_STYLE = Path(__file__).with_name("report.css")

_X = {
    "score_iou_points": "predicted IoU (score)",
    "quality_iou_points": "quality alone",
    "top1_iou_points": "mean top-1 probability",
    "score_iou_detections": "score",
    "top1_iou_detections": "mean top-1 probability",
    "score_iou_near": "score",
    "top1_iou_near": "mean top-1 probability",
}


def page(found: Analysis) -> str:
    """The whole page. Names of classes, files and models are escaped, whatever they hold."""
    parts = [_head(found), _knowledge(found), _errors(found), _precision(found), _sides(found), _classes(found)]
    title = escape(f"{found.model} on {found.data}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _head(found: Analysis) -> str:
    counts = f"{found.images} images, {found.objects} objects, {found.detections} detections; gflv2 {__version__}"
    numbers = "".join(f"<div><b>{shown(value)}</b>{_title(name)}</div>" for name, value in found.ap.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return (
        f'<h1>{escape(found.model)}</h1><p class="faint">{escape(found.data)}<br>{counts}</p>'
        f'<div class="big">{numbers}</div>' + (f"<ul>{notes}</ul>" if notes else "")
    )


def _knowledge(found: Analysis) -> str:
    rows: dict[str, list[str]] = {}  # one for each kind of sample
    for name, relation in found.relations.items():
        is_estimate = name.startswith(("score", "quality")) and name != "score_iou_near"
        chart = relation_chart(relation, _X[name], "true IoU", diagonal=is_estimate)
        numbers = f"Pearson <b>{shown(relation.pearson)}</b>, {relation.samples} samples"
        if is_estimate:
            numbers += f"; mean distance from the diagonal {shown(relation.gap)}"
        rows.setdefault(name.rsplit("_", 1)[1], []).append(
            f"<figure><h3>{escape(_first_up(TITLES[name]))}</h3>{chart}<figcaption>{numbers}</figcaption></figure>"
        )
    authors = ", ".join(f"{value:.3f} for {name}" for name, value in AUTHORS.items())
    return (
        "<h2>What the model knows about its boxes</h2>"
        "<p>Blue: where the samples lie, by the logarithm of their number. Red: the mean true IoU of the samples in "
        "each tenth of the axis. Positive points are those that training would teach, before any NMS; detections are "
        "what is left after it; those near an object have an IoU of at least 0.1 with one of their class.</p>"
        f"<p>The authors of GFLV2 published, for COCO: {authors}. They do not say which "
        "samples they took, so compare models on the same data.</p>"
        + "".join(f'<div class="row">{"".join(figures)}</div>' for figures in rows.values())
    )


def _errors(found: Analysis) -> str:
    errors = found.errors
    notes = {kind: f"{errors.counts[kind]} {'objects' if kind == 'missed' else 'detections'}" for kind in errors.gains}
    chart = bars_chart(errors.gains, notes)
    return (
        "<h2>What the errors cost</h2>"
        f"<p>AP50 is {shown(errors.ap50)}. Each bar: what it would gain if the errors of one kind alone were mended. "
        "The gains do not add up: mending one kind changes what the others cost.</p>"
        f'<div class="row"><figure>{chart}</figure></div>'
        "<p><b>classification</b>: on an object (IoU ≥ 0.5) of another class. <b>localisation</b>: near an object of "
        "its class (0.1 ≤ IoU &lt; 0.5). <b>both</b>: near one of another class. <b>duplicate</b>: on an object that a "
        "better detection has. <b>background</b>: near nothing. <b>missed</b>: the objects that are left.</p>"
    )


def _precision(found: Analysis) -> str:
    if not found.recall_curves:
        return ""
    names = {key: f"IoU {key}: {sum(v) / len(v):.3f}" for key, v in found.recall_curves.items()}
    chart = curves_chart(found.recall_curves, names)
    return (
        "<h2>Precision and recall</h2><p>Mean over the classes that have objects, from pycocotools's table.</p>"
        f'<div class="row"><figure>{chart}</figure></div>'
    )


def _classes(found: Analysis) -> str:
    keys = [key for key in (found.classes[0] if found.classes else {}) if key not in ("name", "category_id")]
    head = "".join(f"<th>{_title(key)}</th>" for key in ["class", *keys])
    rows = sorted(found.classes, key=lambda row: -row["objects"])
    lines = [[escape(row["name"]), *(_cell(row[key]) for key in keys)] for row in rows]
    return (
        "<h2>Classes and sizes</h2><p>Mean score and IoU are of the positive points. –: no such object.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{_rows(lines)}</table></div>'
    )


def _rows(lines: Sequence[Sequence[str]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in lines)


def _sides(found: Analysis) -> str:
    if not found.uncertain:
        return ""
    figures = "".join(_figure(side, found.dataset) for side in found.uncertain)
    return (
        "<h2>The most uncertain sides</h2>"
        "<p>The sides whose distributions have the highest entropy. The box is what the model says; the red lines are "
        "the bins of its uncertain side, as opaque as they are probable. Below, the same bins over the position in the "
        f'image; the red line is their expectation.</p><div class="row sides">{figures}</div>'
    )


def _figure(side: UncertainSide, dataset: CocoDetection) -> str:
    name = dataset.class_names[side.label]
    file = dataset.path(dataset.image_ids.index(side.image_id)).name
    about = f"{name} {side.score:.2f}, {side.side} side: {side.entropy:.2f} bits, ±\u00a0{side.spread:.1f}\u00a0px"
    return (
        f"<figure>{crop_of(side, dataset)}{distribution_chart(side.positions, side.probabilities)}"
        f'<figcaption>{escape(about)}<br><span class="faint">{escape(file)}</span></figcaption></figure>'
    )


def _title(key: str) -> str:
    return key.replace("_", " ").replace("iou", "IoU")


def _first_up(words: str) -> str:
    return words[:1].upper() + words[1:]


def _cell(value: float | int) -> str:
    return shown(value) if isinstance(value, float) else str(value)
