"""``python -m benchmarks.statistics_iou WEIGHTS DATA``: how statistics of a detector's distributions go together with
the IoU of its boxes, at the positive points of the assignment, with intervals; into ``results/studies``.

For each statistic: its value for each side, mean over the four sides, against the IoU of the point's predicted box with
its object. The interval comes from 10,000 draws of images with replacement: points of one image are not independent.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gflv2 import GFLV2
from gflv2.data import CocoDetection, make_loader
from gflv2.engine.analysis.relations import pearson
from gflv2.ops import dgqp_statistics
from gflv2.ops.levels import flatten_levels

RESULTS = Path(__file__).parent / "results" / "studies"
DRAWS = 10_000
TOP = (2, 3, 4, 8)


def statistics_of(model: GFLV2, data: CocoDetection) -> dict[str, np.ndarray]:
    """Arrays (P,) over the positive points of all images: ``image``, ``iou``, ``score`` and the statistics."""
    head, parts = model.bbox_head, []
    bins = head.reg_max + 1
    with torch.inference_mode():
        for number, batch in enumerate(make_loader(data, 1, train=False, workers=0)):
            output = model(batch.images)
            truth = (batch.boxes, batch.labels, batch.padded_sizes, batch.ignore_boxes)
            assignment = head.assign(output, *truth)
            image, place = (assignment.index > 0).nonzero(as_tuple=True)
            label = assignment.labels[image, place]
            scores = flatten_levels([level.float() for level in head.joint_scores(output)])
            # All probabilities of a side, the largest first.
            p = dgqp_statistics(output.box_logits, scales=output.scales, topk=bins, mean=False)
            p = p[image, place].unflatten(1, (4, bins)).double()
            part = {
                "image": torch.full((len(image),), number),
                "iou": head.targets(output, assignment, batch.boxes, batch.padded_sizes).scores[image, place],
                "score": scores[image, place, label],
                "top 1": p[..., 0].mean(-1),
                **{f"mean of top {k}": p[..., :k].mean(-1).mean(-1) for k in TOP if k < bins},
                "variance of top 4": p[..., :4].var(-1, correction=0).mean(-1),
                "negative entropy": -torch.special.entr(p).sum(-1).mean(-1),
                "top 1 of the least sure side": p[..., 0].amin(-1),
            }
            parts.append({name: values.double().numpy() for name, values in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(
    x: np.ndarray, y: np.ndarray, image: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of Pearson's coefficient over draws of whole images.

    An image enters by six sums, so that a draw is a sum of sums.
    """
    _, place = np.unique(image, return_inverse=True)
    x, y = x - x.mean(), y - y.mean()  # keeps the sums small
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(place, column) for column in columns], axis=1)
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    n, sx, sy, sxx, syy, sxy = (weights @ sums).T
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (sxy - sx * sy / n) / np.sqrt((sxx - sx * sx / n) * (syy - sy * sy / n))
    low, high = np.nanpercentile(r, [2.5, 97.5])
    return float(low), float(high)


def rows_of(found: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """A row a statistic."""
    rows = []
    for name in [name for name in found if name not in ("image", "iou")]:
        low, high = interval(found[name], found["iou"], found["image"])
        rows.append(
            {
                "statistic": name,
                "pearson": f"{pearson(found[name], found['iou']):.4f}",
                "low": f"{low:.4f}",
                "high": f"{high:.4f}",
                "points": str(len(found["iou"])),
                "images": str(len(np.unique(found["image"]))),
                "draws": str(DRAWS),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics_iou", description=__doc__.split("\n\n")[0])
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint; with --config for one that carries none")
    parser.add_argument("data", metavar="DATA", help="annotations, as gflv2 val takes them")
    parser.add_argument("--config", metavar="CONFIG")
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=RESULTS / "statistics_iou.csv")
    options = parser.parse_args(arguments)
    model = GFLV2(options.config, weights=options.weights).eval()
    data = CocoDetection(
        options.data, options.images, config=model.config.data, train=False, class_names=model.class_names
    )
    rows = rows_of(statistics_of(model, data))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with open(options.output, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['statistic']:<30} {row['pearson']:>8}  [{row['low']}, {row['high']}]")
    print(f"{rows[0]['points']} points in {rows[0]['images']} images; {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
