"""COCO annotation files: reading them with their common irregularities, and as a data set of samples."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from gflv2.config import DataConfig
from gflv2.data.batch import Sample
from gflv2.data.image import image_size, read_image
from gflv2.data.transforms import IGNORED, apply, evaluation_transforms, training_transforms

_log = logging.getLogger(__name__)


class _CheckedCOCO(COCO):
    """An index made by ``load_coco``: its records are complete."""


def load_coco(source: str | Path | dict | COCO) -> COCO:
    """A COCO annotation file as pycocotools' index, without its prints.

    What files in the wild leave out is filled in: ``area`` (w·h), ``iscrowd`` (0) and annotation ids. Ids are counted
    anew where one is 0 or stands twice, because pycocotools takes a match with annotation 0 for no match.

    Args:
        source: path of the JSON file, its content, or an index. Not changed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a COCO file of boxes; the message names the record.
    """
    if isinstance(source, _CheckedCOCO):
        return source
    if isinstance(source, COCO):
        source = source.dataset
    if isinstance(source, dict):
        name, content = "annotations", {**source, "annotations": [dict(a) for a in source.get("annotations", [])]}
    else:
        name, content = str(source), _read_json(source)
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{name}: not a COCO annotation file: expected a list under the key {key!r}")
    _check_unique(name, "image", [record["id"] for record in content["images"]])
    _check_unique(name, "category", [record["id"] for record in content["categories"]])
    _complete(name, content.setdefault("annotations", []), {record["id"] for record in content["categories"]})
    index = _CheckedCOCO()
    index.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _read_json(path: str | Path) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"annotation file {str(path)!r} does not exist") from None
    except ValueError as error:
        raise ValueError(f"annotation file {str(path)!r} is not JSON: {error}") from error


def _check_unique(name: str, what: str, ids: list) -> None:
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"{name}: {what} id {twice!r} stands twice")


def _complete(name: str, annotations: list[dict], categories: set) -> None:
    for position, annotation in enumerate(annotations):
        box = annotation.get("bbox")
        which = f"{name}: annotation {annotation.get('id', f'number {position}')!r}"
        if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"{which}: expected 'bbox' as four numbers (x, y, width, height), got {box!r}")
        if annotation.get("category_id") not in categories:
            raise ValueError(f"{which}: category_id {annotation.get('category_id')!r} is not among the categories")
        if "image_id" not in annotation:
            raise ValueError(f"{which}: expected the key 'image_id'")
        annotation.setdefault("area", box[2] * box[3])
        annotation.setdefault("iscrowd", 0)
    ids = [annotation.get("id") for annotation in annotations]
    if None in ids or 0 in ids or len(set(ids)) != len(ids):
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


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
    for folder in folders:
        if any((folder / name).is_file() for name in probes):
            return folder
    tried = ", ".join(repr(str(folder)) for folder in folders)
    hint = "" if image_dir is not None else "; give the folder of the images"
    raise FileNotFoundError(f"image file {probes[0]!r} of {str(file)!r} is in none of the folders {tried}{hint}")


def class_mapping(index: COCO, class_names: Sequence[str] | None, name: str) -> tuple[list[str], list[Any], dict]:
    """Classes of a COCO file as contiguous labels.

    Args:
        index: the file.
        class_names: a name per label; None: the file's categories in the order of their ids.
        name: the file's, for messages.

    Returns:
        names per label; category id per label, None where the file has no such category; label per category id.
    """
    categories = [index.cats[i] for i in sorted(index.cats)]
    if class_names is None:
        ids = [category["id"] for category in categories]
        return [str(category["name"]) for category in categories], ids, {i: label for label, i in enumerate(ids)}
    names = list(class_names)
    if len(set(names)) != len(names):
        raise ValueError(f"class_names: expected every name once, got {names}")
    in_file = [str(category["name"]) for category in categories]
    if len(set(in_file)) != len(in_file):
        raise ValueError(f"{name}: a category name stands twice, so class_names cannot be matched: {in_file}")
    used = {annotation["category_id"] for annotation in index.dataset["annotations"]}
    unknown = [c["name"] for c in categories if c["name"] not in names and c["id"] in used]
    if unknown:
        raise ValueError(f"{name}: the categories {unknown} have annotations but are not among the class_names {names}")
    id_of = {str(category["name"]): category["id"] for category in categories}
    ids = [id_of.get(class_name) for class_name in names]
    return names, ids, {i: label for label, i in enumerate(ids) if i is not None}


class CocoDetection(Dataset):
    """Images and boxes of a COCO annotation file, ready for ``collate``.

    Annotations are left out if marked ``ignore``, of area ≤ 0, narrower or lower than 1 px, or outside the image;
    crowds are no targets but kept as ``ignore_boxes``. For training, images without targets (unless
    ``config.keep_empty``) and with a side below ``config.min_image_side`` are left out; for evaluation none is.
    EXIF orientation: see ``read_image``.

    Args:
        annotation_file: the JSON file.
        image_dir: folder of the images; None: looked for beside the file (``find_image_folder``).
        config: sizes, normalisation, augmentation.
        train: training's transforms and selection of images, or evaluation's.
        class_names: a name per label, e.g. of the model. None: the file's categories in the order of their ids (gaps
            between ids are closed). Categories with annotations that are not in ``class_names`` are an error.

    Attributes:
        class_names: name per label.
        category_ids: category id per label, None where the file has no such category.
        image_ids: id per item.
        aspect_groups: bool array, width / height > 1 per item; training's batches do not mix both.
        left_out: counts of what was not taken, by reason.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_dir: str | Path | None = None,
        *,
        config: DataConfig | None = None,
        train: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.config = config if config is not None else DataConfig()
        self.train = train
        self.transforms = training_transforms(self.config) if train else evaluation_transforms(self.config)
        index = load_coco(annotation_file)
        name = str(annotation_file)
        self.class_names, self.category_ids, label_of = class_mapping(index, class_names, name)
        records = index.dataset["images"]
        if not records:
            raise ValueError(f"{name}: holds no images")
        self.image_dir = find_image_folder(annotation_file, image_dir, [record["file_name"] for record in records])
        self._read_records(index, records, label_of)

    def _read_records(self, index: COCO, records: Iterable[dict], label_of: dict) -> None:
        # Arrays, not lists of dicts or tensors: a forked worker shares them without copying (Python would touch, and so
        # copy, every counted object), a spawned one receives a few buffers.
        keep, sizes, boxes, labels, counts = [], [], [], [], []
        self.left_out = {"annotations": 0, "images without boxes": 0, "small images": 0}
        for record in records:
            if not record.get("width") or not record.get("height"):
                height, width = image_size(self.image_dir / record["file_name"])
            else:
                height, width = int(record["height"]), int(record["width"])
            rows = list(_valid_annotations(index.imgToAnns.get(record["id"], ()), height, width))
            self.left_out["annotations"] += len(index.imgToAnns.get(record["id"], ())) - len(rows)
            if self.train:
                if min(height, width) < self.config.min_image_side:
                    self.left_out["small images"] += 1
                    continue
                if not self.config.keep_empty and all(row["iscrowd"] for row in rows):
                    self.left_out["images without boxes"] += 1
                    continue
            keep.append(record)
            sizes.append((height, width))
            counts.append(len(rows))
            for row in rows:
                x, y, w, h = row["bbox"]
                boxes.append((x, y, x + w, y + h))
                labels.append(IGNORED if row["iscrowd"] else label_of[row["category_id"]])
        if not keep:
            raise ValueError(f"{self.annotation_file}: no image is left for training; left out: {self.left_out}")
        if any(self.left_out.values()):
            _log.info("%s: %d images; left out: %s", self.annotation_file, len(keep), self.left_out)
        self.image_ids = [record["id"] for record in keep]
        self._files = np.array([record["file_name"] for record in keep])
        self._sizes = np.array(sizes, dtype=np.int64)
        self._boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self._labels = np.array(labels, dtype=np.int64)
        self._ends = np.cumsum(counts)
        self.aspect_groups = self._sizes[:, 1] > self._sizes[:, 0]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, index: int) -> Path:
        """Image file of one item."""
        return self.image_dir / str(self._files[index])

    def raw(self, index: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Image (3, H, W) uint8 RGB, boxes (G, 4) x1 y1 x2 y2 and labels (G,) of one item before any transform.

        The label of a crowd box is −1.
        """
        height, width = (int(side) for side in self._sizes[index])
        rows = slice(int(self._ends[index - 1]) if index > 0 else 0, int(self._ends[index]))
        return read_image(self.path(index), size=(height, width)), self._boxes[rows], self._labels[rows]

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One sample. ``key`` is an index, or (index, seed): then the random transforms depend on that seed only."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[index]  # negative indices, and an IndexError that ends a `for` loop
        image, boxes, labels = self.raw(index)
        if seed is None:
            return apply(self.transforms, image, boxes, labels, self.image_ids[index])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return apply(self.transforms, image, boxes, labels, self.image_ids[index])


def _valid_annotations(annotations: Iterable[dict], height: int, width: int) -> Iterable[dict]:
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
        if inside and w >= 1 and h >= 1 and annotation["area"] > 0 and not annotation.get("ignore"):
            yield annotation
