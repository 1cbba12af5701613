"""One data set in the formats of others: COCO content written as YOLO and as Pascal VOC folders."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import yaml


def _rows(content: dict) -> dict:
    rows = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        rows[annotation["image_id"]].append(annotation)
    return rows


def link_images(content: dict, source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        link = target / image["file_name"]
        if not link.exists():
            link.symlink_to(source / image["file_name"])


def write_yolo(content: dict, images: Path, folder: Path, split: str = "val", digits: int = 6) -> Path:
    """A YOLO data set; coordinates with so many digits, six as all tools write. Returns its YAML file."""
    link_images(content, images, folder / "images" / split)
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    names = {number: category["name"] for number, category in enumerate(content["categories"])}
    number_of = {category["id"]: number for number, category in enumerate(content["categories"])}
    rows = _rows(content)
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = []
        for row in rows[image["id"]]:
            x, y, w, h = row["bbox"]
            values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(number_of[row["category_id"]]), *(f"{v:.{digits}f}" for v in values)]))
        if lines:
            (labels / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({"path": ".", split: f"images/{split}", "names": names}))
    return file


def write_voc(content: dict, images: Path, folder: Path, split: str = "val", labels: bool = False) -> Path:
    """A Pascal VOC data set in the challenge's folders; crowds become difficult objects. Returns the folder.

    Args:
        labels: also write the class names, in the order of the content, to labels.txt.
    """
    link_images(content, images, folder / "JPEGImages")
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = _rows(content)
    for image in content["images"]:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image["file_name"]
        size = ElementTree.SubElement(root, "size")
        for key in ("width", "height"):
            ElementTree.SubElement(size, key).text = str(image[key])
        for row in rows[image["id"]]:
            x, y, w, h = row["bbox"]
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = names[row["category_id"]]
            ElementTree.SubElement(item, "difficult").text = str(row.get("iscrowd", 0))
            box = ElementTree.SubElement(item, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h), strict=True):
                ElementTree.SubElement(box, key).text = repr(value)
        stem = Path(image["file_name"]).stem
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{stem}.xml")
    if labels:
        (folder / "labels.txt").write_text("\n".join(names.values()) + "\n")
    stems = sorted(Path(image["file_name"]).stem for image in content["images"])
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder
