"""A small model and a small data set whose names are not harmless, for the report and the local page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gflv2 import GFLV2

NAMES = ['<img src="x" onerror="window.broken = 1">', "шар & 球"]
FILE = "画像 <b>1 & 'x'.png"
_SMALL = {
    "model": {
        "backbone": {"name": "tf_efficientnet_lite0", "frozen_stages": 0},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 160, "short_side": [96, 96], "test_short_side": 96, "workers": 0},
    "test": {"score_thr": 0.02, "max_detections": 30},
}


def small_model(**head) -> GFLV2:
    """Untrained, with weights so large that its answers depend on the image."""
    torch.manual_seed(0)
    config = {**_SMALL, "model": {**_SMALL["model"], "head": {**_SMALL["model"]["head"], **head}}}
    model = GFLV2(config, class_names=NAMES)
    for parameter in (p for name, p in model.bbox_head.named_parameters() if name.endswith("weight") and p.dim() == 4):
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def picture(height: int = 120, width: int = 180) -> np.ndarray:
    """(height, width, 3) uint8, whose corners and channels all differ."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, 2 * y, 255 - x], axis=-1) + np.random.default_rng(0).integers(0, 20, (height, width, 3))
    image[20:60, 30:90] = (250, 20, 20)
    return image.clip(0, 255).astype(np.uint8)


def write_data(folder: Path) -> Path:
    """Two images with three objects and a crowd; the COCO file of them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"id": 7, "file_name": FILE, "height": 120, "width": 180}]
    images.append({"id": 8, "file_name": "b.png", "height": 100, "width": 100})
    for record in images:
        Image.fromarray(picture(record["height"], record["width"])).save(folder / record["file_name"])
    boxes = [(7, 3, [30, 20, 60, 40], 0), (7, 5, [100, 50, 50, 60], 0), (8, 3, [10, 10, 80, 80], 0)]
    boxes.append((8, 5, [0, 60, 100, 40], 1))
    rows = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for n, (image, category, box, crowd) in enumerate(boxes, 1)
    ]
    categories = [{"id": 3, "name": NAMES[0]}, {"id": 5, "name": NAMES[1]}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return path
