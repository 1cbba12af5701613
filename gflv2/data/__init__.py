"""Data sets: COCO, YOLO and Pascal VOC, their check, transforms, batches, loaders, and a generated sample set.

Needs the extra ``train``: ``pip install "gflv2[train]"``.
"""

from __future__ import annotations

from gflv2.extras import missing_package

try:
    import PIL  # noqa: F401
    import pycocotools  # noqa: F401
    import torchvision  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_package(error, "gflv2.data") from error

from gflv2.data import shapes
from gflv2.data.batch import Batch, Sample, collate
from gflv2.data.checking import DataReport, check
from gflv2.data.coco import load_coco
from gflv2.data.dataset import CocoDetection
from gflv2.data.files import find_image_folder
from gflv2.data.image import read_image
from gflv2.data.loader import GroupedBatchSampler, SampleKey, ShardedBatchSampler, make_loader
from gflv2.data.transforms import evaluation_transforms, preprocess, resized_size, training_transforms

__all__ = [
    "Batch",
    "CocoDetection",
    "DataReport",
    "GroupedBatchSampler",
    "Sample",
    "SampleKey",
    "ShardedBatchSampler",
    "check",
    "collate",
    "find_image_folder",
    "load_coco",
    "make_loader",
    "preprocess",
    "read_image",
    "resized_size",
    "shapes",
    "evaluation_transforms",
    "training_transforms",
]
