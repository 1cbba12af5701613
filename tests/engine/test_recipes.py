"""The paper's recipe on real COCO images, whole but small: it starts, steps and evaluates, in float32 and bfloat16."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from gflv2 import GFLV2
from gflv2.data import CocoDetection, make_loader
from gflv2.engine.evaluate import evaluate
from gflv2.engine.schedule import make_optimizer
from tests.shared import data

# Of the recipe all but the sizes; no start weights can be fetched here.
SIZES = {"short_side": [96, 160], "test_short_side": 128, "long_side": 224}


@pytest.mark.slow
def test_r50_ms2x_starts_steps_and_evaluates_in_both_precisions(tmp_path) -> None:
    folder = data("coco_mini")
    content = json.loads((folder / "instances_val.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    (tmp_path / "two.json").write_text(json.dumps(content))

    torch.manual_seed(0)
    start = GFLV2("gflv2_r50_fpn_ms2x", **{f"data__{name}": value for name, value in SIZES.items()})
    train_set = CocoDetection(
        folder / "instances_train.json", folder / "images", config=start.config.data, train=True,
        class_names=start.class_names,
    )  # fmt: skip
    losses: dict[torch.dtype, list[float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(start).train()
        optimizer = make_optimizer(model.parameters(), model.config.train)
        loader = iter(make_loader(train_set, 2, train=True, workers=0))
        losses[dtype] = []
        for _ in range(2):
            batch = next(loader)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = sum(model.loss(batch.images, batch.boxes, batch.labels, batch.padded_sizes).values())
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            optimizer.step()
            losses[dtype].append(loss.item())
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result = evaluate(
                model, tmp_path / "two.json", image_dir=folder / "images", workers=0, progress=False, score_thr=0.0
            )
        assert result.images == 2 and result.detections > 0 and result["AP"] >= 0
    exact, rounded = losses.values()
    # The first step starts from the same weights; bfloat16 has three digits.
    assert rounded[0] == pytest.approx(exact[0], rel=0.02) and rounded != exact
    assert all(value < 20 for value in exact + rounded)
