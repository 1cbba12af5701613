"""Writes the golden case ``dfine_losses``: what transformers' D-FINE gives for `fgl` and `ddf`.

    python -m tests.ops.golden_dfine   # in an environment with transformers (`make test-integrations` makes one)

The package runs its own code (`DFineLoss.loss_local`), on float64 logits. Kept are both losses, their gradients, and
what the two operations take: distances and weights.
"""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

IMAGES, QUERIES, MATCHES, BINS, CLASSES, BOXES = 2, 16, 8, 33, 5, 11.0
UP, REG_SCALE = 0.5, 4.0
FOLDER = Path(__file__).resolve().parents[1] / "golden"


def main() -> None:
    package = importlib.import_module("transformers.loss.loss_d_fine")
    draw = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def boxes(*shape: int) -> Tensor:
        """Centre, width and height, in units of the image."""
        return 0.3 + 0.4 * torch.rand(*shape, 4, generator=draw)

    # The package's targets are float32 whatever comes. Queries start near their boxes and end nearer, as in training.
    truth = boxes(IMAGES, MATCHES)
    near = torch.cat([truth, boxes(IMAGES, QUERIES - MATCHES)], 1)
    outputs = {
        "pred_corners": (3 * normal(IMAGES, QUERIES, 4 * BINS)).requires_grad_(),
        "teacher_corners": 3 * normal(IMAGES, QUERIES, 4 * BINS),
        "teacher_logits": normal(IMAGES, QUERIES, CLASSES),
        "ref_points": (near + 0.3 * normal(IMAGES, QUERIES, 4)).float().clamp(0.05, 0.95),
        "pred_boxes": (near + 0.03 * normal(IMAGES, QUERIES, 4)).float().clamp(0.05, 0.95),
    }
    places = torch.arange(MATCHES)
    up, scale = torch.tensor([UP]), torch.tensor([REG_SCALE])
    kind = package.DFineLoss
    criterion = SimpleNamespace(max_num_bins=BINS - 1, reg_scale=scale, up=up)
    for name in ("_get_source_permutation_idx", "unimodal_distribution_focal_loss"):
        setattr(criterion, name, getattr(kind, name).__get__(criterion))
    targets = [{"boxes": image} for image in truth]
    losses = kind.loss_local(criterion, outputs, targets, [(places, places)] * IMAGES, BOXES)

    matched = torch.zeros(IMAGES, QUERIES, dtype=torch.bool)
    matched[:, :MATCHES] = True
    found, wanted = (
        package.center_to_corners_format(of) for of in (outputs["pred_boxes"][matched], truth.flatten(0, 1))
    )
    iou = package.box_iou(found, wanted)[0].diag()
    weight = outputs["teacher_logits"].sigmoid().amax(-1)
    weight[matched] = iou.double()
    start = outputs["ref_points"][matched]
    sides = torch.cat([start[:, :2] - wanted[:, :2], wanted[:, 2:] - start[:, :2]], 1)
    arrays = {
        "logits": outputs["pred_corners"].detach().reshape(-1, BINS),
        "teacher": outputs["teacher_corners"].reshape(-1, BINS),
        "matched": matched.flatten().repeat_interleave(4),
        "weight": weight.flatten().repeat_interleave(4),
        "distances": (sides / (start[:, 2:] / REG_SCALE).repeat(1, 2) - 0.5 * REG_SCALE).flatten(),
        "bins": package.weighting_function(BINS - 1, up, scale).flatten(),
    }
    for name in ("fgl", "ddf"):
        total = losses[f"loss_{name}"]
        (gradient,) = torch.autograd.grad(total, outputs["pred_corners"], retain_graph=True)
        arrays[f"loss_{name}"], arrays[f"grad_{name}"] = total.detach(), gradient.reshape(-1, BINS)
    np.savez_compressed(FOLDER / "dfine_losses.npz", **{name: value.numpy() for name, value in arrays.items()})
    meanings = {
        "logits": "of the student, one row a box side",
        "teacher": "logits of the last layer",
        "matched": "rows of matched queries",
        "weight": "IoU of a matched query, else the teacher's highest class probability",
        "distances": "of the matched rows' targets, in the unit of the bins",
        "bins": "W(n)",
    }
    meta = {
        "case": "dfine_losses",
        "source": f"transformers {version('transformers')}",
        "avg_factor": BOXES,
        "arrays": {
            name: {"shape": list(value.shape), "dtype": str(value.numpy().dtype), "meaning": meanings.get(name, name)}
            for name, value in arrays.items()
        },
    }
    (FOLDER / "dfine_losses.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main()
