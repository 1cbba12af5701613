"""The paper's recipe on real COCO images, whole but small: it starts, steps and evaluates, in float32 and bfloat16."""

from __future__ import annotations

import math

import pytest
from lightning.pytorch.callbacks import Callback

from gflv2 import GFLV2
from gflv2.engine.train import train
from tests.shared import data


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append({name: float(trainer.callback_metrics[name]) for name in ("loss", "qfl", "giou", "dfl")})


@pytest.mark.slow
def test_r50_ms2x_starts_steps_and_evaluates_in_both_precisions(tmp_path) -> None:
    folder, seen = data("coco_mini"), {}
    for precision in ("32", "bf16"):
        losses = Losses()
        result = train(
            "gflv2_r50_fpn_ms2x",
            train_data=folder / "instances_train.json",
            val_data=folder / "instances_val.json",
            # Of the recipe all but the sizes; no start weights can be fetched here.
            overrides={
                "data.short_side": [96, 160],
                "data.test_short_side": 128,
                "data.long_side": 224,
                "data.workers": 0,
                "train.batch_size": 2,
                "train.epochs": 1,
                "train.precision": precision,
            },
            pretrained=False,
            accelerator="cpu",
            output=tmp_path / precision,
            limit_train_batches=3,
            limit_val_batches=2,
            progress=False,
            callbacks=[losses],
        )
        assert len(losses.seen) == 3 and all(math.isfinite(row["loss"]) for row in losses.seen)
        assert result.metrics["images"] == 4 and result.metrics["AP"] >= 0
        assert GFLV2(weights=result.last_weights).config.model.backbone.name == "resnet50"
        seen[precision] = losses.seen
    # The first step starts from the same weights: bfloat16 has three digits.
    for name, value in seen["32"][0].items():
        assert seen["bf16"][0][name] == pytest.approx(value, rel=0.02), name
    assert seen["bf16"] != seen["32"]
