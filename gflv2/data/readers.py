"""The readers of annotation files: each brings its format into COCO's form, and everything after them is the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gflv2.data.coco import read_json
from gflv2.data.files import completer, find_image_folder
from gflv2.data.folder import FolderReader
from gflv2.data.problems import Problems
from gflv2.data.text import read_text
from gflv2.data.voc import VocReader, split_folders, xml_folders
from gflv2.data.yolo import YoloReader

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What a reader offers. ``content`` is called first, then ``complete``.

    Attributes:
        problems: counts what was mended or left out; its name is the source's, for messages.
        image_dir: the folder that file names begin in; known after ``complete``.
    """

    problems: Problems
    image_dir: Path

    def content(self) -> Any:
        """Images, annotations and categories in COCO's form, not yet checked."""

    def complete(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The images that can be used, with their sizes (see ``check_records``)."""


class CocoReader:
    """A COCO annotation file."""

    def __init__(self, source: Path, image_dir: Path | None, *, skip_bad: bool) -> None:
        self.problems = Problems(str(source))
        self._source, self._given, self._skip_bad = source, image_dir, skip_bad

    def content(self) -> Any:
        return read_json(self._source)

    def complete(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not images:
            raise ValueError(f"{self.problems.name}: holds no images")
        self.image_dir = find_image_folder(self._source, self._given, [image["file_name"] for image in images])
        return completer(self.image_dir, self.problems, self._skip_bad)(images)


def reader_of(
    source: str | Path,
    image_dir: str | Path | None,
    *,
    split: str,
    skip_bad: bool = False,
    class_names: Sequence[str] | None = None,
) -> Reader:
    """The reader of a data set.

    Args:
        source: a COCO JSON file; the YAML file of a YOLO data set; a folder of Pascal VOC (or a list in its
            ``ImageSets/Main``); a folder that holds one of these as exports lay it out; or a folder of images.
        image_dir: folder of the images; None: found beside the source.
        split: the part of a data set that has several: "train", "val", "test" or another name.
        skip_bad: leave out images that cannot be used. False: refuse.
        class_names: the model's, for the order of classes where the source has none.

    Raises:
        FileNotFoundError, ValueError: no such source, or more than one in the folder.
    """
    path = Path(source)
    images = Path(image_dir) if image_dir is not None else None
    if path.is_dir():
        path = _in_folder(path, split)
    if path.is_dir():
        if _is_voc(path, split):
            return VocReader(path, images, split=split, skip_bad=skip_bad, class_names=class_names)
        return FolderReader(path, skip_bad=skip_bad)
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return YoloReader(path, images, split=split, skip_bad=skip_bad)
    if suffix == ".txt" and path.parent.name == "Main":
        return VocReader(path, images, split=split, skip_bad=skip_bad, class_names=class_names)
    if suffix in (".txt", ".xml"):
        hint = "the YAML file that has its list and the class names" if suffix == ".txt" else "its folder"
        raise ValueError(f"{str(path)}: expected a COCO JSON file, a YAML file or a folder; give {hint}")
    return CocoReader(path, images, skip_bad=skip_bad)


def _in_folder(folder: Path, split: str) -> Path:
    """The file in a folder that describes the data set, as exports lay it out; the folder itself without one."""
    found = sorted({f for pattern in ("*.yaml", "*.yml") for f in folder.glob(pattern) if _has_names(f)})
    for place in (*split_folders(folder, split), folder):
        found += sorted(place.glob("_annotations.coco.json"))
    found += sorted(folder.glob(f"annotations/instances_{split}*.json"))
    if len(found) > 1:
        raise ValueError(
            f"{folder}: holds {', '.join(str(f.relative_to(folder)) for f in found[:5])}; name one of them"
        )
    if found:
        _log.info("%s: read as %s says", folder, found[0].name)
    return found[0] if found else folder


def _has_names(file: Path) -> bool:
    """Whether this looks like the YAML file of a YOLO data set, and not like settings of something else."""
    return any(line.startswith("names:") for line in read_text(file, "YAML file").splitlines())


def _is_voc(folder: Path, split: str) -> bool:
    places = (folder, *split_folders(folder, split))
    return bool(xml_folders(folder)) or any(next(place.glob("*.xml"), None) for place in places)
