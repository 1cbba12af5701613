"""Detections of a photograph by a file of `gflv2 export`, with onnxruntime and numpy only. Pillow reads the photograph.

    gflv2 export model.pt --dynamic-size
    python onnx_example.py model.onnx photo.jpg [THRESHOLD]

One line each: class, score, x1, y1, x2, y2 in pixels of the photograph.
"""

import json
import sys

import numpy as np
import onnxruntime


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 → (height, width, 3): bilinear, pixel centres at i + 0.5, without antialiasing."""
    axes = []
    for old, new in ((image.shape[0], height), (image.shape[1], width)):
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        lower = np.floor(position).astype(int)
        axes.append((lower, np.minimum(lower + 1, old - 1), (position - lower).astype(np.float32)))
    (top, bottom, y), (left, right, x) = axes
    y, x = y[:, None, None], x[None, :, None]
    rows = image[top] * (1 - y) + image[bottom] * y
    return np.rint(rows[:, left] * (1 - x) + rows[:, right] * x)


def preprocess(image: np.ndarray, about: dict, fixed: tuple) -> tuple[np.ndarray, tuple[int, int]]:
    """(H, W, 3) uint8 RGB → (1, 3, H', W') float32, normalised and padded; and the size without the padding.

    fixed: (H', W') of a file that takes one size; names of the sizes for any.
    """
    height, width = image.shape[:2]
    factor = min(about["long_side"] / max(height, width), about["short_side"] / min(height, width))
    if not isinstance(fixed[0], str):
        factor = min(factor, fixed[0] / height, fixed[1] / width)
    size = max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
    multiple = about["size_multiple"]
    padded = [-(-side // multiple) * multiple for side in size] if isinstance(fixed[0], str) else fixed
    images = np.zeros((1, 3, *padded), dtype=np.float32)
    normalised = (resize(image, *size) - about["mean"]) / about["std"]
    images[0, :, : size[0], : size[1]] = normalised.transpose(2, 0, 1)
    return images, size


def nms(boxes: np.ndarray, scores: np.ndarray, iou_thr: float) -> list[int]:
    """Indices of the boxes that no better one covers, best first."""
    left, order = [], np.argsort(-scores, kind="stable")
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(order):
        best, order = order[0], order[1:]
        left.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        overlap = np.prod(np.clip(sides, 0, None), axis=1)
        order = order[overlap <= iou_thr * (areas[best] + areas[order] - overlap)]
    return left


def detect(session: onnxruntime.InferenceSession, image: np.ndarray) -> list[tuple[str, float, list[float]]]:
    """(class, score, box) of an (H, W, 3) uint8 RGB image, best first; of a file with or without NMS inside."""
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    images, (height, width) = preprocess(image, about, session.get_inputs()[0].shape[2:])
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    if about["outputs"] == "nms":
        sizes = np.array([[height, width]], dtype=np.float32)
        boxes, scores, labels, counts = session.run(None, {"images": images, "image_sizes": sizes})
        found = [(labels[0, row], scores[0, row], boxes[0, row]) for row in range(counts[0])]
    else:
        boxes, scores = (output[0] for output in session.run(None, {"images": images}))
        boxes = np.clip(boxes, 0, [width, height, width, height])
        found = []
        for label in range(scores.shape[1]):
            rows = np.flatnonzero(scores[:, label] > about["score_thr"])
            kept = rows[nms(boxes[rows], scores[rows, label], about["iou_thr"])]
            found += [(label, scores[row, label], boxes[row]) for row in kept]
        found = sorted(found, key=lambda one: -one[1])[: about["max_detections"]]
    return [(about["names"][label], float(score), (box * scale).tolist()) for label, score, box in found]


if __name__ == "__main__":
    from PIL import Image

    picture = np.asarray(Image.open(sys.argv[2]).convert("RGB"))
    threshold = float(sys.argv[3]) if len(sys.argv) > 3 else 0.3
    for name, score, box in detect(onnxruntime.InferenceSession(sys.argv[1]), picture):
        if score > threshold:
            print(name, f"{score:.3f}", *(f"{side:.1f}" for side in box))
