"""YOLO data sets that are wrong or unusual."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.faults.base import ABSENT, Make, write_images
from tests.faults.row import BOX, Row

LABEL = "0 0.3125 0.375 0.375 0.416667\n"
WITHOUT_SECOND = {1: [BOX], 2: [], 3: [BOX]}


def yolo(
    settings: Any = None,
    second: str | bytes | None = LABEL,
    *,
    change: Callable[[Path], object] = lambda folder: None,
    text: bytes | None = None,
    **keys: Any,
) -> Make:
    """Three images with one box each as a YOLO data set.

    Args:
        settings: the YAML file's content; None: that of the base, with ``keys`` changed.
        second: the label file of the second image; None: it has none.
        change: made to the folder at the end.
        text: of the YAML file, in place of ``settings``.
    """

    def make(folder: Path) -> Path:
        write_images(folder / "images" / "train")
        labels = folder / "labels" / "train"
        labels.mkdir(parents=True)
        for number in (1, 3):
            (labels / f"im{number}.txt").write_text(LABEL)
        if second is not None:
            (labels / "im2.txt").write_bytes(second if isinstance(second, bytes) else second.encode())
        content = {"path": ".", "train": "images/train", "names": ["box"]} if settings is None else settings
        if settings is None:
            content = {key: value for key, value in {**content, **keys}.items() if value is not ABSENT}
        file = folder / "data.yaml"
        file.write_bytes(text if text is not None else yaml.safe_dump(content).encode())
        change(folder)
        return file

    return make


def second_box(x1: float, y1: float, x2: float, y2: float) -> dict:
    return {1: [BOX], 2: [[x1, y1, x2, y2]], 3: [BOX]}


def _listed(folder: Path) -> None:
    (folder / "train.txt").write_text("./images/train/im1.png\nimages/train/im2.png\n\n  images/train/im3.png  \n")


def _listed_beside(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "a.txt").write_text("".join(f"../images/train/im{i}.png\n" for i in (1, 2, 3)))


def _absent_listed(folder: Path) -> None:
    (folder / "train.txt").write_text("images/train/im1.png\nimages/train/im9.png\n")


def _labels_beside(folder: Path) -> None:
    """Images and labels in one folder that is not called images."""
    for file in (*(folder / "images" / "train").iterdir(), *(folder / "labels" / "train").iterdir()):
        (folder / "all").mkdir(exist_ok=True)
        file.rename(folder / "all" / file.name)


def _no_labels(folder: Path) -> None:
    for file in (folder / "labels" / "train").iterdir():
        file.unlink()


def _rubbish(folder: Path) -> None:
    """What systems leave behind."""
    images = folder / "images" / "train"
    (images / "Thumbs.db").write_bytes(b"x")
    (images / "._im1.png").write_bytes(b"x")
    (images / "__MACOSX").mkdir()
    (images / "__MACOSX" / "im1.png").write_bytes(b"x")


ROWS = [
    # ---- the YAML file
    Row("as it should be", yolo()),
    Row("`names` as a mapping", yolo(names={0: "box", 1: "other"})),
    Row("`names` as a mapping with text keys", yolo(names={"0": "box"})),
    Row("`names` as a mapping from 1", yolo(names={1: "box"}), "im1.txt', line 1: class '0' is not among the 1 names"),
    Row("`names` a text", yolo(names="box"), "expected 'names' as a list or a mapping from class numbers, got 'box'"),
    Row(
        "`names` with a key that is no number",
        yolo(names={"a": "box"}),
        "the keys of 'names' as class numbers from 0, got 'a'",
    ),
    Row("`names` with numbers for names", yolo(names=[2024])),
    Row("`names` with a name twice", yolo(names=["box", "box"]), "categories 0 and 1 have one name, 'box'"),
    Row("`names` missing", yolo(names=ABSENT), "expected 'names' as a list or a mapping from class numbers, got None"),
    Row(
        "`names` missing, `nc` given",
        yolo(names=ABSENT, nc=2),
        said=("'names' is missing, so the classes are called by their numbers",),
    ),
    Row("`nc` unlike `names`", yolo(nc=3), "'nc' is 3, but 'names' has 1"),
    Row("`nc` 10^12", yolo(nc=10**12), "expected 'nc' as a number of classes, got 1000000000000"),
    Row("`path` missing", yolo(path=ABSENT)),
    Row(
        "`path` to a folder that is not there",
        yolo(path="../datasets/boxes"),
        said=("'path' leads nowhere, so the YAML file's folder is taken",),
    ),
    Row("`path` a number", yolo(path=3), "expected 'path' as a folder, got 3"),
    Row("`train` missing", yolo(train=ABSENT, val="images/train"), "expected the key 'train', got val"),
    Row("`train` to a folder that is not there", yolo(train="images/nothing"), "train 'images/nothing' is not there"),
    Row(
        "`train` as `../images/train`, which is beside the YAML file",
        yolo(train="../images/train"),
        said=("folders that are not where '../' leads, found without it: 1",),
    ),
    Row("`train` with backslashes", yolo(train="images\\train")),
    Row("`train` a list of folders, one twice", yolo(train=["images/train", "images/train"])),
    Row("`train` a list file", yolo(train="train.txt", change=_listed)),
    Row(
        "`train` a list of list files whose names begin beside them", yolo(train=["lists/a.txt"], change=_listed_beside)
    ),
    Row(
        "`train` a list file with an image that is not there",
        yolo(train="train.txt", change=_absent_listed),
        "im9.png' does not exist (1 of 2 images",
    ),
    Row("`train` a number", yolo(train=7), "expected 'train' as a path or a list of paths, got 7"),
    Row("`train` a list with null", yolo(train=[None]), "expected 'train' as a path or a list of paths, got [None]"),
    Row("a folder without images", yolo(train="labels/train"), "no image is in 'labels/train'"),
    Row("a tab in the YAML file", yolo(text=b"train:\n\t- a\n"), "data.yaml' cannot be read at line 2, column 1: "),
    Row(
        "an open bracket in the YAML file",
        yolo(text=b"names: [box\n"),
        "data.yaml' cannot be read at line 2, column 1: ",
    ),
    Row(
        "a Python object in the YAML file",
        yolo(text=b"names: !!python/object/apply:os.system [ls]\n"),
        "data.yaml' cannot be read at line 1",
    ),
    Row("lists nested 100,000 deep in the YAML file", yolo(text=b"[" * 10**5), "data.yaml' is nested too deeply"),
    Row(
        "the YAML file in Latin-1",
        yolo(text="names: [é]\n".encode("latin-1")),
        "data.yaml' is not text in UTF-8: byte 0xe9 at 8",
    ),
    Row("the YAML file in UTF-16", yolo(text="train: images/train\nnames: [box]\n".encode("utf-16"))),
    Row("an empty YAML file", yolo(text=b""), "expected keys such as train and names, got null"),
    Row(
        "a list in place of the YAML file's keys",
        yolo(settings=["images"]),
        "expected keys such as train and names, got a list",
    ),
    # ---- label files
    Row(
        "a missing label file",
        yolo(second=None),
        said=("images without a label file, taken as background: 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row("an empty label file", yolo(second=""), boxes=WITHOUT_SECOND),
    Row(
        "no label file at all",
        yolo(change=_no_labels),
        "none of its 3 images has a label file; looked for 'labels/train/im1.txt'",
    ),
    Row("images and labels in one folder", yolo(train="all", change=_labels_beside)),
    Row("Thumbs.db, ._im1.png and __MACOSX among the images", yolo(change=_rubbish)),
    Row("a polygon", yolo(second="0 0.125 0.25 0.5 0.25 0.5 0.75\n"), boxes=second_box(20, 30, 80, 90)),
    Row(
        "four numbers",
        yolo(second="0 0.5 0.5 0.5\n"),
        "im2.txt', line 1: expected a class and four numbers, or a class and the corners of a polygon",
    ),
    Row(
        "six numbers (a file of predictions)",
        yolo(second="0 0.5 0.5 0.5 0.5 0.9\n"),
        "im2.txt', line 1: expected a class and four numbers",
    ),
    Row(
        "a word",
        yolo(second=LABEL + "box 0.5 0.5 0.5 0.5\n"),
        "im2.txt', line 2: expected numbers, got 'box 0.5 0.5 0.5 0.5'",
    ),
    Row("commas", yolo(second="0,0.5,0.5,0.5,0.5\n"), "im2.txt', line 1: expected numbers"),
    Row("class 1 of 1", yolo(second="1 0.5 0.5 0.5 0.5\n"), "im2.txt', line 1: class '1' is not among the 1 names"),
    Row("class −1", yolo(second="-1 0.5 0.5 0.5 0.5\n"), "im2.txt', line 1: class '-1' is not among the 1 names"),
    Row("class 0.5", yolo(second="0.5 0.5 0.5 0.5 0.5\n"), "im2.txt', line 1: class '0.5' is not among the 1 names"),
    Row("class 0.0", yolo(second="0.0 0.5 0.5 0.5 0.5\n"), boxes=second_box(40, 30, 120, 90)),
    Row(
        "one row in pixels",
        yolo(second="0 50 45 60 50\n"),
        said=("rows with coordinates beyond 0 to 1, left out: 1; first: ",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "most rows in pixels",
        yolo(second="0 50 45 60 50\n" * 3),
        "3 of 5 rows have coordinates beyond 0 to 1, as if they were pixels; first: ",
    ),
    Row(
        "NaN",
        yolo(second="0 nan 0.5 0.5 0.5\n"),
        said=("rows with coordinates beyond 0 to 1, left out: 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "a box that reaches over the edge",
        yolo(second="0 0.95 0.5 0.5 0.5\n"),
        said=("over their image's edge, cut there: 1; first: 'labels/train/im2.txt', line 1",),
        boxes=second_box(112, 30, 160, 90),
    ),
    Row(
        "a box of width 0",
        yolo(second="0 0.5 0.5 0 0.5\n"),
        said=("with a side of 0 or below, left out: 1; first: 'labels/train/im2.txt', line 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "a label file in UTF-8 with a byte order mark, CRLF",
        yolo(second=b"\xef\xbb\xbf0 0.3125 0.375 0.375 0.416667\r\n"),
    ),
    Row(
        "a label file of bytes that are no text",
        yolo(second=b"\xff\xd8\xff\xe0"),
        "label file 'labels/train/im2.txt' is not text in UTF-8",
    ),
    Row(
        "a folder in place of a label file",
        yolo(second=None, change=lambda folder: (folder / "labels/train/im2.txt").mkdir()),
        "label file 'labels/train/im2.txt' is not a file",
    ),
    Row(
        "a pipe among the images",
        yolo(change=lambda folder: os.mkfifo(folder / "images/train/im4.png")),
        "im4.png' is a pipe, device or socket, not a file",
    ),
    Row(
        "a link to nothing among the images",
        yolo(change=lambda folder: (folder / "images/train/im4.png").symlink_to("nowhere.png")),
        "im4.png' does not exist",
    ),
    Row(
        "an image that cannot be read",
        yolo(change=lambda folder: (folder / "images/train/im2.png").write_bytes(b"x")),
        "im2.png' is not an image that can be read",
    ),
    Row(
        "the same with `data.skip_bad`",
        yolo(change=lambda folder: (folder / "images/train/im2.png").write_bytes(b"x")),
        said=("images that cannot be used, left out (data.skip_bad): 1",),
        boxes={1: [BOX], 2: [BOX]},
        options={"skip_bad": True},
    ),
]
