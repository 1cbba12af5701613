"""Detections of many images in the formats of other programs: YOLO and Pascal VOC label files, one CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from gflv2.engine.results import Result
from gflv2.files import write_whole
from gflv2.ops.checks import check_choice

FORMATS = ("yolo", "voc", "csv")
CSV_COLUMNS = ("file", "class", "score", "x1", "y1", "x2", "y2")


class LabelFiles:
    """Writes each image's detections as they come, in some formats, below a folder.

    * ``yolo``: ``yolo/labels/NAME.txt``, a line ``class cx cy width height score`` with sides relative to the image's,
      and ``yolo/data.yaml`` with the names of the classes.
    * ``voc``: ``voc/NAME.xml`` with a ``score`` in each object; pixels from 0, as ``gflv2.data`` reads such files.
    * ``csv``: ``detections.csv``, a line for each detection, x1 y1 x2 y2 in pixels.

    Args:
        folder: made where missing.
        formats: of ``FORMATS``; may be empty.
        class_names: of the model.
    """

    def __init__(self, folder: str | Path, formats: Sequence[str], class_names: Sequence[str]) -> None:
        for name in formats:
            check_choice(name, "formats", FORMATS)
        self.folder, self.formats = Path(folder), tuple(dict.fromkeys(formats))
        self._taken: set[str] = set()
        if "yolo" in self.formats:
            names = "".join(f"  {number}: {_quoted(name)}\n" for number, name in enumerate(class_names))
            write_whole(self.folder / "yolo" / "data.yaml", f"names:\n{names}")
        if "csv" in self.formats:
            write_whole(self.folder / "detections.csv", ",".join(CSV_COLUMNS) + "\n")

    def add(self, result: Result) -> None:
        """Write one image's detections; of images with equal names the further ones are numbered."""
        stem = result.path.stem if result.path is not None else "image"
        name, number = stem, 2
        while name in self._taken:
            name, number = f"{stem}_{number}", number + 1
        self._taken.add(name)
        if "yolo" in self.formats:
            write_whole(self.folder / "yolo" / "labels" / f"{name}.txt", yolo_lines(result))
        if "voc" in self.formats:
            write_whole(self.folder / "voc" / f"{name}.xml", voc_xml(result))
        if "csv" in self.formats:
            with open(self.folder / "detections.csv", "a", newline="", encoding="utf-8") as file:
                file.write(csv_lines(result))


def yolo_lines(result: Result) -> str:
    """``class cx cy width height score`` of each detection, sides relative to those of the image."""
    height, width = result.size
    lines = []
    for (x1, y1, x2, y2), score, label in _rows(result):
        sides = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(label), *(f"{side:.6f}" for side in sides), f"{score:.5f}"]) + "\n")
    return "".join(lines)


def voc_xml(result: Result) -> str:
    """An annotation file of Pascal VOC, with pixels from 0 and fractions of them."""
    height, width = result.size
    root = ElementTree.Element("annotation")
    name = result.path.name if result.path is not None else ""
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    for box, score, label in _rows(result):
        found = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(found, "name").text = result.class_names[label]
        ElementTree.SubElement(found, "difficult").text = "0"
        ElementTree.SubElement(found, "score").text = f"{score:.5f}"
        sides = ElementTree.SubElement(found, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(sides, side).text = f"{value:.3f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def csv_lines(result: Result) -> str:
    """``CSV_COLUMNS`` of each detection, without the heading."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for box, score, label in _rows(result):
        writer.writerow(
            [result.path or "", result.class_names[label], f"{score:.5f}", *(f"{side:.3f}" for side in box)]
        )
    return buffer.getvalue()


def _rows(result: Result) -> list[tuple[list[float], float, int]]:
    return list(zip(result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True))


def _quoted(name: str) -> str:
    """A text that YAML reads as this text."""
    return "'" + name.replace("'", "''") + "'"
