"""Checkpoints: files of the authors, mmcv, mmengine, timm and torchvision, and our own. No file ever runs code.

model = load("gfocal_r50_fpn_ms2x.pth")                    # configuration and class names from the file
report = load_weights(model, "resnet50.pth")               # into a model that exists; tells what came from where
save(model, "mine.pth")
convert("mine.pth", "theirs.pth", layout="official")       # a file for the authors' code
"""

from gflv2.models.checkpoint.errors import CheckpointError
from gflv2.models.checkpoint.infer import infer_config
from gflv2.models.checkpoint.loading import LoadReport, class_names, load, load_weights, resolve
from gflv2.models.checkpoint.names import COCO_NAMES
from gflv2.models.checkpoint.reading import Checkpoint, interpret, read
from gflv2.models.checkpoint.writing import LAYOUTS, convert, describe_model, save

__all__ = [
    "COCO_NAMES",
    "LAYOUTS",
    "Checkpoint",
    "CheckpointError",
    "LoadReport",
    "class_names",
    "convert",
    "describe_model",
    "infer_config",
    "interpret",
    "load",
    "load_weights",
    "read",
    "resolve",
    "save",
]
