"""Pascal VOC data sets that are wrong or unusual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.base import Make, write_images
from tests.faults.row import BOX, Row

WITHOUT_SECOND = {1: [BOX], 2: [], 3: [BOX]}
CORNERS = "<xmin>20</xmin><ymin>20</ymin><xmax>80</xmax><ymax>70</ymax>"


def item(corners: str = CORNERS, name: str = "<name>box</name>", more: str = "") -> str:
    return f"<object>{name}{more}<bndbox>{corners}</bndbox></object>"


def voc(
    second: str | bytes | None = None,
    *,
    size: str = "<size><width>160</width><height>120</height></size>",
    filename: str = "im2.png",
    objects: str | None = None,
    change: Callable[[Path], object] = lambda folder: None,
) -> Make:
    """Three images with one object each in the challenge's folders.

    Args:
        second: the XML file of the second image; None: made of the following.
        change: made to the folder at the end.
    """

    def annotation(size: str, filename: str, objects: str) -> str:
        return f"<annotation><filename>{filename}</filename>{size}{objects}</annotation>"

    def make(folder: Path) -> Path:
        write_images(folder / "JPEGImages")
        (folder / "Annotations").mkdir()
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        (folder / "ImageSets" / "Main" / "train.txt").write_text("im1\nim2\nim3\n")
        plain = "<size><width>160</width><height>120</height></size>"
        for number in (1, 3):
            text = annotation(plain, f"im{number}.png", item())
            (folder / "Annotations" / f"im{number}.xml").write_text(text)
        text = annotation(size, filename, item() if objects is None else objects) if second is None else second
        data = text.encode() if isinstance(text, str) else text
        (folder / "Annotations" / "im2.xml").write_bytes(data)
        change(folder)
        return folder

    return make


def _beside(folder: Path) -> None:
    """XML files and images in one folder, as labelling tools and exports write them."""
    for file in (*(folder / "Annotations").iterdir(), *(folder / "JPEGImages").iterdir()):
        file.rename(folder / file.name)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).rmdir()
    (folder / "ImageSets" / "Main" / "train.txt").unlink()
    (folder / "ImageSets" / "Main").rmdir()
    (folder / "ImageSets").rmdir()


def _in_train(folder: Path) -> None:
    _beside(folder)
    (folder / "train").mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(folder / "train" / file.name)


def _lists(text: str, name: str = "train") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "ImageSets" / "Main" / "train.txt").unlink()
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)

    return change


def second_box(x1: float, y1: float, x2: float, y2: float) -> dict:
    return {1: [BOX], 2: [[x1, y1, x2, y2]], 3: [BOX]}


FLOATS = "<xmin>10.25</xmin><ymin>20.5</ymin><xmax>30.75</xmax><ymax>40</ymax>"
ENCODED = f'<?xml version="1.0" encoding="{{}}"?><annotation>{item()}</annotation>'
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'

ROWS = [
    Row("as it should be", voc()),
    Row("float coordinates", voc(objects=item(FLOATS)), boxes=second_box(10.25, 20.5, 30.75, 40)),
    Row(
        "`difficult` 1",
        voc(objects=item(more="<difficult>1</difficult>")),
        said=("taken as crowds: neither targets nor missed objects: 1; first: 'Annotations/im2.xml', object 1",),
    ),
    Row(
        "`difficult` a word",
        voc(objects=item(more="<difficult>maybe</difficult>")),
        "'Annotations/im2.xml', object 1: expected 'difficult' as 0 or 1, got 'maybe'",
    ),
    Row("no object", voc(objects=""), boxes=WITHOUT_SECOND),
    Row(
        "an object with parts that have boxes",
        voc(objects=item(more="<part><name>lid</name><bndbox><xmin>1</xmin></bndbox></part>")),
    ),
    Row(
        "no `bndbox`",
        voc(objects="<object><name>box</name></object>"),
        said=("annotations without a box",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "`xmax` missing",
        voc(objects=item("<xmin>1</xmin><ymin>2</ymin><ymax>4</ymax>")),
        "'Annotations/im2.xml', object 1: expected 'bndbox' with xmin, ymin, xmax, ymax as numbers",
    ),
    Row(
        "a coordinate that is no number",
        voc(objects=item(CORNERS.replace("80", "eighty"))),
        "expected 'bndbox' with xmin, ymin, xmax, ymax as numbers",
    ),
    Row(
        "a coordinate NaN",
        voc(objects=item(CORNERS.replace("80", "nan"))),
        "expected 'bndbox' with xmin, ymin, xmax, ymax as numbers",
    ),
    Row(
        "a coordinate 1e400",
        voc(objects=item(CORNERS.replace("80", "1e400"))),
        "expected 'bndbox' with xmin, ymin, xmax, ymax as numbers",
    ),
    Row(
        "`xmin` above `xmax`",
        voc(objects=item(CORNERS.replace("80", "10"))),
        said=("with a side of 0 or below, left out: 1; first: 'Annotations/im2.xml', object 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "`xmax` beyond the image",
        voc(objects=item(CORNERS.replace("80", "200"))),
        said=("over their image's edge, cut there: 1",),
        boxes=second_box(20, 20, 160, 70),
    ),
    Row(
        "no `name`",
        voc(objects=item(name="")),
        "'Annotations/im2.xml', object 1: expected a name of 1 to 256 characters",
    ),
    Row("an empty `name`", voc(objects=item(name="<name> </name>")), "expected a name of 1 to 256 characters"),
    Row("a `name` with spaces around it", voc(objects=item(name="<name>\n box </name>"))),
    Row(
        "a class that labels.txt does not have",
        voc(objects=item(name="<name>bix</name>"), change=lambda folder: (folder / "labels.txt").write_text("box\n")),
        "'Annotations/im2.xml', object 1: class 'bix' is not among ['box']",
    ),
    Row("`size` missing", voc(size="")),
    Row("`size` 0 × 0", voc(size="<size><width>0</width><height>0</height></size>")),
    Row(
        "`size` exchanged",
        voc(size="<size><width>120</width><height>160</height></size>"),
        "im2.png' is 160×120 pixels, but its annotations are made for 120×160",
    ),
    Row(
        "`size` a word",
        voc(size="<size><width>wide</width><height>120</height></size>"),
        "expected 'width' as a whole number from 1 to 1000000, got 'wide'",
    ),
    Row("`filename` out of date", voc(filename="im1.png")),
    Row("`filename` of an image that is not there", voc(filename="C:\\old\\im9.png")),
    Row(
        "an image that is not there",
        voc(change=lambda folder: (folder / "JPEGImages/im2.png").unlink()),
        "1 of 3 image files are missing in 'JPEGImages'; first: image 2: 'im2.png'",
    ),
    Row("XML files beside the images", voc(change=_beside)),
    Row("XML files beside the images in a folder called train", voc(change=_in_train)),
    Row("a list of one class", voc(change=_lists("im1 1\nim2 -1\nim3  1\n"))),
    Row("a list with a name twice and empty lines", voc(change=_lists("im1\n\nim2\nim2\nim3\n"))),
    Row(
        "a list with an image without XML file",
        voc(change=_lists("im1\nim9\n")),
        "XML file 'Annotations/im9.xml' does not exist",
    ),
    Row(
        "no list called train",
        voc(change=_lists("im1\n", "trainval")),
        "no list 'ImageSets/Main/train.txt'; lists there: trainval",
    ),
    Row(
        "a list with a zero byte",
        voc(change=_lists("im1\nim\0\n")),
        "XML file 'Annotations/im\\x00.xml': no file can have this name",
    ),
    Row(
        "a list with a name of a million characters",
        voc(change=_lists("im1\n" + "a" * 10**6)),
        "aaaa.xml' cannot be read: File name too long",
    ),
    Row("an empty list", voc(change=_lists("")), "holds no images"),
    Row("no XML", voc(b"box 20 20 80 70"), "XML file 'Annotations/im2.xml' cannot be read: syntax error"),
    Row("XML that ends in the middle", voc(b"<annotation><object>"), "XML file 'Annotations/im2.xml' cannot be read: "),
    Row("an empty XML file", voc(b""), "XML file 'Annotations/im2.xml' cannot be read: "),
    Row(
        "another root element",
        voc(b"<html/>"),
        "XML file 'Annotations/im2.xml': expected the element 'annotation', got 'html'",
    ),
    Row(
        "XML with entities that expand",
        voc(BOMB),
        "XML file 'Annotations/im2.xml' declares a document type, which is not read",
    ),
    Row(
        "elements nested 100,000 deep",
        voc(b"<annotation>" + b"<a>" * 10**5 + b"</a>" * 10**5 + b"</annotation>"),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "XML in UTF-16",
        voc(ENCODED.format("utf-16").encode("utf-16")),
    ),
    Row(
        "XML in an encoding that nobody knows",
        voc(ENCODED.format("x-none")),
        "XML file 'Annotations/im2.xml' cannot be read: ",
    ),
]
