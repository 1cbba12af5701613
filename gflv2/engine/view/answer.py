"""What the page gets for one picture: the picture, its boxes, their distributions and what is read there."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gflv2.data.image import FORMATS, max_pixels
from gflv2.engine.predict import predict
from gflv2.engine.results import Result
from gflv2.models.atss_head import ATSSHead
from gflv2.models.detector import SingleStageDetector
from gflv2.models.gfl_head import GFLHead
from gflv2.ops import dgqp, dgqp_statistics
from gflv2.sides import SIDES

MOST_PIXELS = 40_000_000  # of a picture: more than cameras of phones make
_SHOWN_SIDE = 1600  # longer side of the picture that the page shows


class PictureError(ValueError):
    """A picture that is not taken; the message is for the page."""


def open_picture(data: bytes) -> Image.Image:
    """The bytes of an upload as a picture, its size checked before anything is decoded.

    Raises:
        PictureError: empty, not a picture, or of too many pixels.
    """
    if not data:
        raise PictureError("expected a picture, got an empty file")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # whatever Pillow's readers raise for a damaged file
        raise PictureError(f"this is not a picture that can be read (formats: {', '.join(FORMATS)})") from None
    limit = min(MOST_PIXELS, max_pixels())
    if picture.width * picture.height > limit:
        raise PictureError(f"expected at most {limit} pixels, got {picture.width} × {picture.height}")
    return picture


def answer(model: SingleStageDetector, data: bytes) -> dict[str, Any]:
    """Detections of an uploaded picture, as plain values.

    Raises:
        PictureError: see ``open_picture``; also a file that is damaged further on.
    """
    picture = open_picture(data)
    try:
        picture.load()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"the picture cannot be read: {text}") from None
    result = predict(model, picture)
    height, width = result.size
    values = {"width": width, "height": height, "picture": _embedded(result), "least": model.config.test.score_thr}
    return {**values, "detections": _detections(model, result)}


def about(model: SingleStageDetector) -> dict[str, Any]:
    """What the page says of the model."""
    head = model.bbox_head
    if isinstance(head, ATSSHead):
        note = "This model (ATSS) predicts no distributions: it regresses distances. Boxes have nothing to show."
    elif _predictor(head) is not None:
        note = ""
    elif head.quality == "statistics":
        note = "The statistics go into the class scores of this model: it has no quality of its own."
    elif head.quality is None:
        note = "This model (GFLV1) has distributions, but no predictor that reads a quality from them."
    else:
        note = "This model reads the quality from convolutional features, not from the distributions."
    return {"name": model.config.name or "model", "classes": len(model.class_names), "note": note}


def _embedded(result: Result) -> str:
    """The upright picture as a data address, made smaller where it is large."""
    picture = Image.fromarray(result.image)
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _predictor(head: Any) -> Any:
    """The tensors that read the quality from the statistics, or None."""
    if isinstance(head, GFLHead) and head.quality == "statistics" and head.composition == "product":
        return head._predictor()
    return None


def _detections(model: SingleStageDetector, result: Result) -> list[dict[str, Any]]:
    rows = [
        {"name": name, "label": label, "score": score, "box": box}
        for name, label, score, box in zip(
            result.names, result.labels.tolist(), result.scores.tolist(), result.boxes.tolist(), strict=True
        )
    ]
    if result.distributions is None or not rows:
        return rows
    quality, top, mean = _statistics(model.bbox_head, result.distributions)
    positions, spread, entropy = result.bin_positions(), result.spread(), result.entropy()
    for number, row in enumerate(rows):
        row["point"] = result.points[number].tolist()
        row["quality"] = None if quality is None else quality[number].item()
        row["sides"] = [
            {
                "side": SIDES[side],
                "positions": positions[number, side].tolist(),
                "probabilities": result.distributions[number, side].tolist(),
                "expectation": (positions[number, side] * result.distributions[number, side]).sum().item(),
                "spread": spread[number, side].item(),
                "entropy": entropy[number, side].item(),
                "top": top[number, side].tolist(),
                "mean": mean[number, side].item(),
            }
            for side in range(4)
        ]
    return rows


@torch.inference_mode()
def _statistics(head: GFLHead, distributions: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """(N, 4, R) probabilities → quality (N,) or None, the k highest of each side (N, 4, k), their mean (N, 4)."""
    k = min(head.reg_topk, distributions.shape[2])
    # The softmax of the logarithms are the probabilities themselves.
    logits = distributions.clamp(min=torch.finfo(torch.float32).tiny).log().to(head.integral.project.device)
    statistics = dgqp_statistics(logits, topk=k, mean=True).unflatten(1, (4, -1)).cpu()
    predictor = _predictor(head)
    quality = None
    if predictor is not None:
        *layers, topk, mean, variance = predictor
        quality = dgqp(logits, *layers, topk=topk, mean=mean, variance=variance).sigmoid().cpu()
    return quality, statistics[..., :k], statistics[..., k]
