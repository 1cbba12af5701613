"""Pascal VOC data sets: one XML file for each image."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gflv2.data.boxes import is_number
from gflv2.data.files import IMAGE_SUFFIXES, completer
from gflv2.data.problems import Problems, shown, shown_path
from gflv2.data.records import Where, class_name
from gflv2.data.text import read_bytes, read_text

DIFFICULT = "objects marked 'difficult', taken as crowds: neither targets nor missed objects"

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocReader:
    """A folder of Pascal VOC annotations.

    Either the challenge's folders (``Annotations``, ``JPEGImages``, ``ImageSets/Main/train.txt``), or XML files beside
    the images, in the folder or in one named after the split. Without ``ImageSets`` all XML files are the set.

    Coordinates are taken as they are written, floats too: pixels from 0, xmax − xmin is the width. (The files of the
    challenge itself count from 1 and include the last pixel, so that their boxes lie up to a pixel off.) ``difficult``
    objects become crowds. Classes are in the order of ``labels.txt`` or ``classes.txt`` in the folder, or of
    ``class_names``, else of the alphabet.

    Args:
        source: the folder, or a list in ``ImageSets/Main``.
        image_dir: folder of the images. None: ``JPEGImages`` or ``images``, else that of the XML files.
        split: name of the list, or of the folder.
        skip_bad: leave out images that cannot be used. False: refuse.
        class_names: names that are known from elsewhere, for the order.
    """

    def __init__(
        self,
        source: Path,
        image_dir: Path | None,
        *,
        split: str,
        skip_bad: bool,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.problems = Problems(str(source))
        self._list = source if source.is_file() else None
        folder = source if self._list is None else source.parent.parent.parent
        self._given, self._split, self._skip_bad = image_dir, split, skip_bad
        self._known = tuple(class_names or ())
        self._folder = next((f for f in split_folders(folder, split) if next(f.glob("*.xml"), None)), folder)
        self._xml = next((f for f in xml_folders(self._folder)), self._folder)

    def content(self) -> dict[str, Any]:
        self.image_dir = self._image_dir()
        self._by_stem = _images_by_stem(self.image_dir)
        images, annotations, names = [], [], dict.fromkeys(self._stated_names())
        stated = bool(names)
        for number, file in enumerate(self._files(), 1):
            root = _parsed(file)
            images.append({"id": number, "file_name": self._image(file, root), **_size(root)})
            for position, item in enumerate(root.findall("object"), 1):
                where = f"{shown_path(file)}, object {position}"
                name = class_name(_text(item, "name"), where)
                if stated and name not in names:
                    raise ValueError(f"{where}: class {shown(name)} is not among {shown(list(names))}")
                names[name] = None
                difficult = _flag(item, where)
                if difficult:
                    self.problems.add(DIFFICULT, where)
                box = {"bbox": _box(item, where), "iscrowd": int(difficult), "where": Where(where)}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": name, **box})
        if not stated:
            known = [name for name in self._known if name in names]
            names = dict.fromkeys([*known, *sorted(set(names) - set(known))])
        ids = {name: i for i, name in enumerate(names, 1)}
        for annotation in annotations:
            annotation["category_id"] = ids[annotation["category_id"]]
        categories = [{"id": i, "name": name} for name, i in ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def complete(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return completer(self.image_dir, self.problems, self._skip_bad)(images)

    def _files(self) -> list[Path]:
        sets = self._folder / "ImageSets" / "Main"
        chosen = self._list
        if chosen is None and sets.is_dir():
            chosen = sets / f"{self._split}.txt"
            if not chosen.is_file():
                there = ", ".join(sorted(f.stem for f in sets.glob("*.txt"))[:8]) or "none"
                raise FileNotFoundError(f"{self.problems.name}: no list {shown_path(chosen)}; lists there: {there}")
        if chosen is None:
            files = sorted(f for f in self._xml.glob("*.xml") if not f.name.startswith("."))
        else:
            # Lists of one class have a second column; the first is always the image's name.
            lines = read_text(chosen, "list of images").splitlines()
            files = [self._xml / f"{line.split()[0]}.xml" for line in dict.fromkeys(lines) if line.strip()]
        if not files:
            raise ValueError(f"{self.problems.name}: holds no images")
        return files

    def _image_dir(self) -> Path:
        if self._given is not None:
            return self._given
        beside = (self._folder / name for name in ("JPEGImages", "images", "Images"))
        return next((folder for folder in beside if folder.is_dir()), self._xml)

    def _stated_names(self) -> list[str]:
        for file in (self._folder / "labels.txt", self._folder / "classes.txt"):
            if file.is_file():
                lines = [line.strip() for line in read_text(file, "list of classes").splitlines()]
                return [class_name(line, shown_path(file)) for line in lines if line]
        return []

    def _image(self, file: Path, root: ElementTree.Element) -> str:
        """The image of the same name as the XML file; else the one that it names, which may be out of date."""
        return self._by_stem.get(file.stem) or _text(root, "filename") or f"{file.stem}.jpg"


def split_folders(folder: Path, split: str) -> list[Path]:
    """Folders in which a part of a data set may lie."""
    names = {"val": ("val", "valid", "validation"), "train": ("train", "training")}.get(split, (split,))
    return [folder / name for name in names if (folder / name).is_dir()]


def xml_folders(folder: Path) -> list[Path]:
    """Folders in which the XML files of a data set may lie."""
    return [folder / name for name in ("Annotations", "annotations") if next((folder / name).glob("*.xml"), None)]


def _images_by_stem(folder: Path) -> dict[str, str]:
    names = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    return {Path(name).stem: name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}


def _parsed(file: Path) -> ElementTree.Element:
    data = read_bytes(file, "XML file")
    # Entities, which no labelling tool writes, can make a small file expand without end. UTF-16 has zeros between.
    if b"<!DOCTYPE" in data.replace(b"\0", b""):
        raise ValueError(f"XML file {shown_path(file)} declares a document type, which is not read")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also an encoding that Python does not know
        raise ValueError(f"XML file {shown_path(file)} cannot be read: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"XML file {shown_path(file)}: expected the element 'annotation', got {shown(root.tag)}")
    return root


def _text(element: ElementTree.Element, path: str) -> str | None:
    text = element.findtext(path)
    return text.strip() if text is not None else None


def _size(root: ElementTree.Element) -> dict[str, Any]:
    """Width and height as numbers, or as what stands there; nothing where they are left out."""
    size = {}
    for key in ("width", "height"):
        text = _text(root, f"size/{key}")
        if text:
            number = _number(text)
            size[key] = text if number is None else number
    return size


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_number(value) else None


def _flag(item: ElementTree.Element, where: str) -> bool:
    text = _text(item, "difficult") or "0"
    if text.lower() not in ("0", "1", "false", "true"):
        raise ValueError(f"{where}: expected 'difficult' as 0 or 1, got {shown(text)}")
    return text.lower() in ("1", "true")


def _box(item: ElementTree.Element, where: str) -> list[float] | None:
    """(x, y, width, height); None where there is no box."""
    corners = item.find("bndbox")
    if corners is None:
        return None
    texts = [_text(corners, side) for side in _SIDES]
    numbers = [_number(text) if text else None for text in texts]
    if None in numbers:
        raise ValueError(f"{where}: expected 'bndbox' with {', '.join(_SIDES)} as numbers, got {shown(texts)}")
    x1, y1, x2, y2 = numbers
    return [x1, y1, x2 - x1, y2 - y1]
