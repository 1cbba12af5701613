"""The image files of a data set: where they are, whether all are there, and whether their headers fit the records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from gflv2.data.image import check_header
from gflv2.data.problems import Problems, shown, shown_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2")

# Reading a header takes about 0.1 ms where the file is in memory. Larger sets are checked at so many places.
MOST_HEADERS = 20_000

RENAMED = "image files found by another spelling of their name (slashes, percent signs, or without the folders before)"
MISSING = "images whose file is missing, left out (data.skip_bad)"
BAD = "images that cannot be used, left out (data.skip_bad)"


def find_image_folder(annotation_file: str | Path, image_dir: str | Path | None, file_names: Sequence[str]) -> Path:
    """Folder below which ``file_names`` lie: ``image_dir`` if given, else looked for beside the annotation file.

    Places tried for ``annotations/instances_val2017.json``, first match wins: ``annotations/images``, ``annotations``,
    ``annotations/val2017``, and the same three in the parent folder. Only the first few names are looked up.

    Raises:
        FileNotFoundError: none of them is there; the message names a file and the folders.
    """
    file = Path(annotation_file)
    if image_dir is not None:
        folders = [Path(image_dir)]
    else:
        split = file.stem.split("_")[-1]
        folders = [
            base / sub for base in (file.parent, file.parent.parent) for sub in ("images", "", split, f"images/{split}")
        ]
    probes = file_names[:8]
    for spelled in (lambda name: [name], spellings):
        for folder in folders:
            if any(_is_file(folder / spelling) for name in probes for spelling in spelled(name)):
                return folder
    tried = ", ".join(shown_path(folder) for folder in folders)
    hint = "" if image_dir is not None else "; give the folder of the images"
    raise FileNotFoundError(
        f"image file {shown(probes[0])} of {shown_path(file)} is in none of the folders {tried}{hint}"
    )


def spellings(name: str) -> list[str]:
    """Ways to write a file name, in the order in which they are tried.

    As it is; with %20 and the like decoded; and where it has backslashes, a drive or a leading slash, its parts without
    those before: ``C:\\data\\im1.jpg`` is also data/im1.jpg and im1.jpg.
    """
    found = [name]
    if "%" in name:
        found.append(unquote(name))
    path = PureWindowsPath(found[-1])
    if "\\" in name or path.anchor:
        parts = path.parts[1:] if path.anchor else path.parts
        found += ["/".join(parts[start:]) for start in range(len(parts))]
    return found


class _Folders:
    """Which files are there, by one listing of each folder: a set on a network would not bear a question a file."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                with os.scandir(folder or ".") as entries:
                    self._names[folder] = {entry.name for entry in entries}
            except (OSError, ValueError):
                self._names[folder] = set()
        return name in self._names[folder]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def completer(
    folder: Path, problems: Problems, skip_bad: bool
) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The function that ``check_records`` asks which images can be used.

    Every file is looked for, under the ``spellings`` of its name; the headers are read, which tells size and damage
    before anything is trained. Of a set of more than ``MOST_HEADERS`` images evenly spread ones are looked at, and
    all whose size is not in the record.

    Args:
        folder: of the images.
        problems: what is left out is counted there.
        skip_bad: leave out what cannot be used. False: refuse.

    Raises (the function):
        FileNotFoundError, ValueError: an image cannot be used; one line that names the first and how many there are.
    """

    def complete(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = _found(images, folder, problems, skip_bad)
        step = max(1, -(-len(found) // MOST_HEADERS))
        kept, bad = [], []
        for number, image in enumerate(found):
            size = (image["height"], image["width"]) if "width" in image else None
            try:
                if size is None or number % step == 0:
                    path = folder / image["file_name"]
                    height, width = check_header(path, size)
                    image = {**image, "height": height, "width": width}
            except (OSError, ValueError) as error:
                bad.append((image, error))
                continue
            kept.append(image)
        for image, error in bad:
            problems.add(BAD, f"image {shown(image['id'])}: {error}")
        if bad and not skip_bad:
            _, error = bad[0]
            more = f" ({len(bad)} of {len(found)} images of {problems.name} cannot be used; {_OPTION})"
            raise type(error)(str(error) + more) if type(error) in (ValueError, FileNotFoundError) else error
        return kept

    return complete


_OPTION = "data.skip_bad or --skip-bad leaves such images out"


def _found(images: list[dict[str, Any]], folder: Path, problems: Problems, skip_bad: bool) -> list[dict[str, Any]]:
    """The images whose files are there, with ``file_name`` as it is spelled there."""
    there, found, missing = _Folders(), [], []
    taken: dict[str, Any] = {}
    for image in images:
        name = image["file_name"]
        spelling = next((s for s in spellings(name) if os.path.join(folder, s) in there), None)
        if spelling is None:
            missing.append(image)
            continue
        if spelling != name:
            problems.add(RENAMED, f"{shown(name)} is {shown(spelling)}")
            other = taken.setdefault(spelling, image)
            if other["file_name"] != name:
                raise ValueError(
                    f"{problems.name}: the files {shown(other['file_name'])} and {shown(name)} are both taken for "
                    f"{shown(spelling)}; write their folders as they are below {shown_path(folder)}"
                )
        found.append({**image, "file_name": spelling})
    for image in missing:
        problems.add(MISSING, f"image {shown(image['id'])}: {shown(image['file_name'])}")
    if missing and not skip_bad:
        raise FileNotFoundError(
            f"{problems.name}: {len(missing)} of {len(images)} image files are missing in {shown_path(folder)}; first: "
            f"image {shown(missing[0]['id'])}: {shown(missing[0]['file_name'])} ({_OPTION})"
        )
    return found


def images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and the folders in it, sorted; hidden ones are passed over.

    Pipes, and links to nothing, are among them where they have such a name, so that their reading refuses them.
    """
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.is_dir():
            yield path


def sizes_of(paths: Sequence[Path], problems: Problems, skip_bad: bool) -> dict[Path, tuple[int, int]]:
    """(height, width) of each image file, for annotations that are shares of it; as ``completer`` for what is bad."""
    sizes, bad = {}, []
    for path in paths:
        try:
            sizes[path] = check_header(path)
        except (OSError, ValueError) as error:
            bad.append(error)
            problems.add(BAD, str(error))
    if bad and not skip_bad:
        more = f" ({len(bad)} of {len(paths)} images of {problems.name} cannot be used; {_OPTION})"
        raise ValueError(str(bad[0]) + more)
    return sizes
