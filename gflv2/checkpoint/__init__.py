"""Checkpoints: files of the authors, mmcv, mmengine, timm and torchvision, and our own. No file ever runs code.

checkpoint = read("gfocal_r50_fpn_ms2x.pth")               # whatever program wrote it; or a name of list_weights()
report = load_weights(model, checkpoint)                   # into a model that exists; tells what came from where
save(model, "mine.pth")
convert("mine.pth", "theirs.pth", layout="official")       # a file for the authors' code
"""

from gflv2.checkpoint.download import cache_folder, fetch
from gflv2.checkpoint.errors import CheckpointError
from gflv2.checkpoint.infer import infer_config
from gflv2.checkpoint.loading import LoadReport, class_names, load_weights, resolve
from gflv2.checkpoint.reading import Checkpoint, interpret, read, read_content
from gflv2.checkpoint.writing import LAYOUTS, convert, describe_model, save
from gflv2.checkpoint.zoo import NamedWeights, find_weights, list_weights
from gflv2.models.coco_names import COCO_NAMES

__all__ = [
    "COCO_NAMES",
    "LAYOUTS",
    "Checkpoint",
    "CheckpointError",
    "LoadReport",
    "NamedWeights",
    "cache_folder",
    "class_names",
    "convert",
    "describe_model",
    "fetch",
    "find_weights",
    "infer_config",
    "interpret",
    "list_weights",
    "load_weights",
    "read",
    "read_content",
    "resolve",
    "save",
]
