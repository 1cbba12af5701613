"""YOLO data sets: a YAML file, folders of images, and one text file of labels beside each image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gflv2.data.boxes import whole
from gflv2.data.files import images_below, sizes_of
from gflv2.data.problems import Problems, kind_of, shown, shown_path
from gflv2.data.records import MOST_UNKNOWN, Where, class_name
from gflv2.data.text import read_text

# Label files have six digits, so that a coordinate of a large image is known to a hundredth of a pixel at best.
# Rounding to that gives boxes in whole pixels back as they were.
DIGITS = 2

TOLERANCE = 0.01  # by which a coordinate may leave 0 … 1: what is outside of the image is cut off

BACKGROUND = "images without a label file, taken as background"
BEYOND = "rows with coordinates beyond 0 to 1, left out"
NO_NAMES = "'names' is missing, so the classes are called by their numbers"
DOTS = "folders that are not where '../' leads, found without it"
PATH = "'path' leads nowhere, so the YAML file's folder is taken"

Box = tuple[float, float, float, float]


class YoloReader:
    """A YOLO data set, described by its YAML file.

    Keys of the file: ``path`` (the root; by default the file's folder); ``train``, ``val``, ``test`` (a folder, a text
    file with one image a line, an image, or a list of these); ``names`` (a list, or a mapping from numbers); ``nc``.
    The labels of ``…/images/a/im1.jpg`` are ``…/labels/a/im1.txt``, or beside the image where no folder is called
    images. A row is ``class cx cy w h`` or ``class x y x y x y …``, a polygon, whose extent is the box. All are
    shares of the image.

    Args:
        source: the YAML file.
        image_dir: a folder of images that takes the place of the split's.
        split: the key that names the images.
        skip_bad: leave out images that cannot be used. False: refuse.
    """

    def __init__(self, source: Path, image_dir: Path | None, *, split: str, skip_bad: bool) -> None:
        self.problems = Problems(str(source))
        self._source, self._given, self._split, self._skip_bad = source, image_dir, split, skip_bad

    def content(self) -> dict[str, Any]:
        settings = self._settings()
        self.image_dir = self._root(settings)
        names = self._names(settings)
        paths = list(dict.fromkeys(self._images(settings)))
        if not paths:
            raise ValueError(f"{self.problems.name}: no image is in {shown(settings.get(self._split))}")
        sizes = sizes_of(paths, self.problems, self._skip_bad)
        images, annotations, rows, labelled = [], [], 0, 0
        for number, path in enumerate((path for path in paths if path in sizes), 1):
            height, width = sizes[path]
            images.append({"id": number, "file_name": self._name(path), "width": width, "height": height})
            file = label_file(path)
            text = self._labels(file, path)
            labelled += text is not None
            for line, row in enumerate((text or "").splitlines(), 1):
                if row.strip():
                    rows += 1
                    annotations += self._annotation(row, f"{shown_path(file)}, line {line}", number, sizes[path], names)
        self._check_labels(paths, labelled, rows)
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        categories = [{"id": number, "name": name} for number, name in names.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def complete(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return images  # their headers had to be read for the boxes

    def _settings(self) -> dict[str, Any]:
        settings = read_yaml(self._source)
        if not isinstance(settings, dict):
            raise ValueError(f"{self.problems.name}: expected keys such as train and names, got {kind_of(settings)}")
        return settings

    def _root(self, settings: dict[str, Any]) -> Path:
        folder, value = self._source.parent, settings.get("path")
        if value is None:
            return folder
        if not isinstance(value, str):
            raise ValueError(f"{self.problems.name}: expected 'path' as a folder, got {shown(value)}")
        root = folder / Path(value).expanduser()
        if not _exists(root):
            self.problems.add(PATH, shown(value))
            return folder
        return root

    def _names(self, settings: dict[str, Any]) -> dict[int, str]:
        """Name of each class number."""
        name, count, names = self.problems.name, settings.get("nc"), settings.get("names")
        if count is not None and (whole(count, 10**6) or 0) < 1:
            raise ValueError(f"{name}: expected 'nc' as a number of classes, got {shown(count)}")
        if names is None and count is not None:
            self.problems.add(NO_NAMES, f"nc: {count}")
            names = [f"class {number}" for number in range(int(count))]
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names:
            raise ValueError(f"{name}: expected 'names' as a list or a mapping from class numbers, got {shown(names)}")
        found = {}
        for key, value in names.items():
            number = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else whole(key, 10**9)
            if number is None or number < 0:
                raise ValueError(f"{name}: expected the keys of 'names' as class numbers from 0, got {shown(key)}")
            found[number] = class_name(value, f"{name}: names, {number}")
        if count is not None and len(found) != int(count):
            raise ValueError(f"{name}: 'nc' is {int(count)}, but 'names' has {len(found)}")
        return found

    def _images(self, settings: dict[str, Any]) -> Iterator[Path]:
        if self._given is not None:
            yield from images_below(self._given)
            return
        name, value = self.problems.name, settings.get(self._split)
        if value is None:
            there = [key for key in ("train", "val", "test") if settings.get(key) is not None]
            raise ValueError(f"{name}: expected the key {self._split!r}, got {', '.join(there) or 'no part at all'}")
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, str) or not part:
                raise ValueError(f"{name}: expected {self._split!r} as a path or a list of paths, got {shown(value)}")
            path = self._place(part)
            if path.is_dir():
                yield from images_below(path)
            elif path.suffix.lower() == ".txt":
                yield from self._listed(path)
            else:
                yield path

    def _place(self, part: str) -> Path:
        part = part.replace("\\", "/")
        path = self.image_dir / Path(part).expanduser()
        if not _exists(path) and part.startswith("../") and _exists(self.image_dir / part[3:]):
            self.problems.add(DOTS, shown(part))  # exports that expect the file in a folder of its own
            return self.image_dir / part[3:]
        if not _exists(path):
            raise FileNotFoundError(
                f"{self.problems.name}: {self._split} {shown(part)} is not there: {shown_path(path)}"
            )
        return path

    def _listed(self, file: Path) -> Iterator[Path]:
        lines = [line.strip().replace("\\", "/") for line in read_text(file, "list of images").splitlines()]
        lines = [line for line in lines if line]
        # One rule for the whole list: names begin in the root, or else beside the list.
        base = self.image_dir
        if lines and not _exists(base / lines[0]) and _exists(file.parent / lines[0]):
            base = file.parent
        yield from (base / line for line in lines)

    def _name(self, path: Path) -> str:
        name = os.path.relpath(path, self.image_dir)
        return str(path.absolute()) if name.startswith("..") else name

    def _labels(self, file: Path, image: Path) -> str | None:
        try:
            return read_text(file, "label file")
        except FileNotFoundError:
            self.problems.add(BACKGROUND, shown_path(image))
            return None

    def _annotation(
        self, row: str, where: str, image: int, size: tuple[int, int], names: dict[int, str]
    ) -> list[dict[str, Any]]:
        try:
            values = [float(value) for value in row.split()]
        except ValueError:
            raise ValueError(f"{where}: expected numbers, got {shown(row)}") from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise ValueError(
                f"{where}: expected a class and four numbers, or a class and the corners of a polygon, got {shown(row)}"
            )
        number = whole(values[0], 10**9)
        if number not in names:
            raise ValueError(f"{where}: class {shown(row.split()[0])} is not among the {len(names)} names")
        if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values[1:]):  # also NaN
            self.problems.add(BEYOND, f"{where}: {shown(row)}")
            return []
        box = _box(values[1:], size)
        return [{"image_id": image, "category_id": number, "bbox": box, "iscrowd": 0, "where": Where(where)}]

    def _check_labels(self, paths: list[Path], labelled: int, rows: int) -> None:
        if not labelled:
            raise FileNotFoundError(
                f"{self.problems.name}: none of its {len(paths)} images has a label file; looked for "
                f"{shown_path(label_file(paths[0]))}"
            )
        beyond = self.problems.counts.get(BEYOND, 0)
        if beyond > MOST_UNKNOWN * rows:
            raise ValueError(
                f"{self.problems.name}: {beyond} of {rows} rows have coordinates beyond 0 to 1, as if they were pixels"
                f"; first: {self.problems.examples[BEYOND][0]}"
            )


def label_file(image: Path) -> Path:
    """Where the labels of an image lie."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _box(values: list[float], size: tuple[int, int]) -> list[float]:
    """(x, y, width, height) in pixels of (centre, sides) or of a polygon's corners, both as shares of the image."""
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        xs, ys = values[::2], values[1::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    height, width = size
    x1, y1, x2, y2 = (round(value * side, DIGITS) for value, side in zip(corners, (width, height) * 2, strict=True))
    return [x1, y1, round(x2 - x1, DIGITS), round(y2 - y1, DIGITS)]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of plain values.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and the place.
    """
    import yaml

    text = read_text(path, "YAML file")
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"YAML file {shown_path(path)} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"YAML file {shown_path(path)} cannot be read{place}: {what}") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
