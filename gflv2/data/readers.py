"""The readers of annotation files: each brings its format into COCO's form, and everything after them is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from gflv2.data.coco import read_json
from gflv2.data.files import completer, find_image_folder
from gflv2.data.problems import Problems


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


def reader_of(source: str | Path, image_dir: str | Path | None, *, split: str, skip_bad: bool = False) -> Reader:
    """The reader of a data set.

    Args:
        source: a COCO JSON file.
        image_dir: folder of the images; None: found beside the source.
        split: the part of a data set that has several.
        skip_bad: leave out images that cannot be used. False: refuse.
    """
    folder = Path(image_dir) if image_dir is not None else None
    return CocoReader(Path(source), folder, skip_bad=skip_bad)
