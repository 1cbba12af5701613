"""A folder of images without labels, which can be looked at; neither training nor evaluation takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gflv2.data.files import completer, images_below
from gflv2.data.problems import Problems


class FolderReader:
    """All images in a folder and the folders in it, without any box.

    Args:
        source: the folder.
        skip_bad: leave out images that cannot be used. False: refuse.
    """

    def __init__(self, source: Path, *, skip_bad: bool) -> None:
        self.problems = Problems(str(source))
        self.image_dir = source
        self._skip_bad = skip_bad

    def content(self) -> dict[str, Any]:
        names = [str(path.relative_to(self.image_dir)) for path in images_below(self.image_dir)]
        if not names:
            raise ValueError(f"{self.problems.name}: holds no images")
        images = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
        return {"images": images, "annotations": [], "categories": []}

    def complete(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return completer(self.image_dir, self.problems, self._skip_bad)(images)
