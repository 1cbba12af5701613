"""Images and boxes, whatever files they come from, as a data set of samples."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from gflv2.config import DataConfig
from gflv2.data.batch import Sample
from gflv2.data.cache import ImageCache
from gflv2.data.coco import CheckedCOCO, class_mapping, index_of
from gflv2.data.folder import FolderReader
from gflv2.data.image import read_image
from gflv2.data.readers import reader_of
from gflv2.data.transforms import IGNORED, apply, at_scale, evaluation_transforms, resized_size, training_transforms

_log = logging.getLogger(__name__)


class CocoDetection(Dataset):
    """Images and boxes ready for ``collate``, from a COCO file or what ``readers`` brings into that form.

    The records are checked, and boxes count by one rule for training and evaluation, which docs/data.md states; crowds
    are no targets but kept as ``ignore_boxes``. For training, images without targets (unless ``config.keep_empty``) and
    with a side below ``config.min_image_side`` are left out; for evaluation none is. EXIF orientation: see
    ``read_image``.

    Args:
        annotation_file: a COCO JSON file, or what else ``readers.reader_of`` takes.
        image_dir: folder of the images; None: looked for beside the file.
        config: sizes, normalisation, augmentation.
        train: training's transforms and selection of images, or evaluation's.
        class_names: a name per label, e.g. of the model. None: the file's categories in the order of their ids (gaps
            between ids are closed). Categories with annotations that are not in ``class_names`` are an error.
        split: part of a data set that has several: "train", "val", "test" or another name. None: by ``train``.

    Attributes:
        class_names: name per label.
        category_ids: category id per label, None where the file has no such category.
        image_ids: id per item.
        aspect_groups: bool array, width / height > 1 per item; training's batches do not mix both.
        left_out: counts of what was not taken, by reason.
        problems: what was left out, replaced or cut, by kind, with examples.
        undecoded: lines that name the images which training could not decode; others took their places.
        annotated: False for a folder of images alone.
        index: what evaluation compares with; None for training, and in another process.

    Raises:
        FileNotFoundError, ValueError: one line that names file and record, before any image is decoded.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_dir: str | Path | None = None,
        *,
        config: DataConfig | None = None,
        train: bool = False,
        class_names: Sequence[str] | None = None,
        split: str | None = None,
    ) -> None:
        self.annotation_file = Path(annotation_file)
        self.config = config if config is not None else DataConfig()
        self.train = train
        self.transforms = training_transforms(self.config) if train else evaluation_transforms(self.config)
        split = split if split is not None else "train" if train else "val"
        reader = reader_of(
            annotation_file, image_dir, split=split, skip_bad=self.config.skip_bad, class_names=class_names
        )
        self.annotated = not isinstance(reader, FolderReader)
        if train:
            self.require_annotations()
        index = index_of(
            reader.content(),
            reader.problems,
            complete=reader.complete,
            keep_root=self.config.keep_root_category,
        )
        self.problems = index.problems
        self.class_names, self.category_ids, label_of = class_mapping(index, class_names, str(annotation_file))
        self.image_dir = reader.image_dir
        self.undecoded: list[str] = []
        self._read_records(index, label_of)
        self.index = None if train else index
        self._cache = ImageCache(self._decoded, len(self), str(annotation_file)) if self.config.cache_images else None

    def require_annotations(self) -> None:
        """Refuse a folder of images alone, which nothing can be learnt from or compared with.

        Raises:
            ValueError
        """
        if not self.annotated:
            raise ValueError(
                f"{self.annotation_file}: a folder without annotations: neither a YAML file with 'names', nor XML "
                "files, nor a COCO JSON file under one of the usual names"
            )

    def _read_records(self, index: CheckedCOCO, label_of: dict) -> None:
        # Arrays, not lists of dicts or tensors: a forked worker shares them without copying (Python would touch, and so
        # copy, every counted object), a spawned one receives a few buffers.
        keep, boxes, labels, counts = [], [], [], []
        self.left_out = {"annotations": index.annotations_left_out, "images without boxes": 0, "small images": 0}
        for record in index.dataset["images"]:
            rows = index.imgToAnns.get(record["id"], ())
            if self.train:
                if min(record["height"], record["width"]) < self.config.min_image_side:
                    self.left_out["small images"] += 1
                    continue
                if not self.config.keep_empty and all(row["iscrowd"] for row in rows):
                    self.left_out["images without boxes"] += 1
                    continue
            keep.append(record)
            counts.append(len(rows))
            for row in rows:
                x, y, w, h = row["bbox"]
                boxes.append((x, y, x + w, y + h))
                labels.append(IGNORED if row["iscrowd"] else label_of[row["category_id"]])
        if not keep:
            purpose = " for training" if self.train else ""
            raise ValueError(f"{self.annotation_file}: no image is left{purpose}; left out: {self.left_out}")
        if any(self.left_out.values()):
            _log.info("%s: %d images; left out: %s", self.annotation_file, len(keep), self.left_out)
        self.image_ids = [record["id"] for record in keep]
        self._files = np.array([record["file_name"] for record in keep])
        self._sizes = np.array([(record["height"], record["width"]) for record in keep], dtype=np.int64)
        self._boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self._labels = np.array(labels, dtype=np.int64)
        self._ends = np.cumsum(counts)
        self.aspect_groups = self._sizes[:, 1] > self._sizes[:, 0]

    def __getstate__(self) -> dict[str, Any]:
        # For processes that are not forked. The index, which may be large, is for the process that evaluates.
        return {**self.__dict__, "index": None, "_cache": None}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, index: int) -> Path:
        """Image file of one item."""
        return self.image_dir / str(self._files[index])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one item's image."""
        height, width = self._sizes[index]
        return int(height), int(width)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (G, 4) x1 y1 x2 y2 in pixels and labels (G,) of one item; the label of a crowd is −1."""
        rows = slice(int(self._ends[index - 1]) if index > 0 else 0, int(self._ends[index]))
        return self._boxes[rows], self._labels[rows]

    def raw(self, index: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Image (3, H, W) uint8 RGB, boxes (G, 4) and labels (G,) of one item before any transform."""
        return read_image(self.path(index), size=self.size(index)), *self.annotations(index)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One sample. ``key`` is an index, or (index, seed): then the random transforms depend on that seed only."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[index]  # negative indices, and an IndexError that ends a `for` loop
        index, image, failures = self._readable(index)
        boxes, labels = self.annotations(index)
        size = self.size(index)
        # A JPEG may have been decoded at a fraction of its size.
        boxes = boxes * (np.array([image.shape[2], image.shape[1]] * 2) / np.array([size[1], size[0]] * 2))
        rest = (self.transforms, image, boxes, labels, self.image_ids[index], size)
        if seed is None:
            sample = apply(*rest)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                sample = apply(*rest)
        if failures and get_worker_info() is None:
            self.note_undecoded(failures)
        return replace(sample, instead_of=tuple(failures)) if failures else sample

    def note_undecoded(self, reasons: Sequence[str]) -> None:
        """Say once of each image that it could not be decoded. A loader calls it with what its workers found."""
        for reason in reasons:
            if reason not in self.undecoded:
                self.undecoded.append(reason)
                _log.warning("%s; the next image takes its place (said once)", reason)

    def _readable(self, index: int) -> tuple[int, torch.Tensor, list[str]]:
        """The item and its image; in training with ``skip_bad``, of the next item whose image can be decoded, and why
        those before could not.
        """
        failures: list[str] = []
        for item in (*range(index, len(self)), *range(index)):
            try:
                image = self._cache[item] if self._cache is not None else self._decoded(item)
                return item, image, failures
            except (OSError, ValueError) as error:
                if not (self.train and self.config.skip_bad):
                    raise
                failures.append(str(error))
        raise ValueError(f"{self.annotation_file}: none of its {len(self)} images can be decoded")

    def at_scale(self, factor: float) -> CocoDetection:
        """The same images and boxes, for evaluation at another image size; they are decoded anew."""
        other = copy.copy(self)
        other.config, other._cache = at_scale(self.config, factor), None
        other.transforms = evaluation_transforms(other.config)
        return other

    def _decoded(self, index: int) -> torch.Tensor:
        size, config = self.size(index), self.config
        if not config.reduced_decode or self.train and config.random_crop > 0:  # a crop is enlarged
            return read_image(self.path(index), size=size)
        short_side = config.short_side[1] if self.train else config.test_short_side
        return read_image(self.path(index), size=size, least=resized_size(*size, config.long_side, short_side))
