"""The range of every number of the configuration: one table, asked wherever a value comes from.

YAML files, mappings, command lines and checkpoints all pass `gflv2.config.load_config`, which asks it. The bounds are
wide: they keep out what can only be a mistake, and what would end in a hang or without memory.
"""

from __future__ import annotations

from typing import Any

from gflv2.shown import shown

# Dotted key → lowest and highest value, both allowed. Of a list: of each of its items.
RANGES: dict[str, tuple[float, float]] = {
    "model.num_classes": (1, 100_000),
    "model.backbone.out_indices": (0, 16),
    "model.backbone.frozen_stages": (0, 16),
    "model.backbone.deform.stages": (1, 16),
    "model.backbone.deform.version": (1, 2),
    "model.neck.channels": (1, 8192),
    "model.neck.levels": (1, 12),
    "model.head.channels": (1, 8192),
    "model.head.stacked_convs": (0, 64),
    "model.head.reg_max": (1, 1024),
    "model.head.strides": (1, 65_536),
    "model.head.gn_groups": (1, 8192),
    "model.head.reg_topk": (1, 1024),
    "model.head.reg_channels": (1, 8192),
    "model.head.atss_topk": (1, 10_000),
    "model.head.ignore_iof_thr": (0, 1),
    "model.head.beta": (0, 100),
    "model.head.loss_weights": (0, 1e6),
    "model.head.weight_floor": (0, 1e6),
    "data.mean": (-1e6, 1e6),
    "data.std": (1e-6, 1e6),
    "data.long_side": (1, 65_536),
    "data.short_side": (1, 65_536),
    "data.test_short_side": (1, 65_536),
    "data.flip": (0, 1),
    "data.vertical_flip": (0, 1),
    "data.random_crop": (0, 1),
    "data.photometric": (0, 1),
    "data.pad_divisor": (1, 4096),
    "data.min_image_side": (0, 65_536),
    "data.workers": (0, 1024),
    "train.epochs": (1, 1_000_000),
    "train.batch_size": (1, 1_000_000),
    "train.accumulate": (1, 1_000_000),
    "train.lr": (0, 1000),
    "train.base_batch_size": (1, 1_000_000),
    "train.momentum": (0, 1),
    "train.weight_decay": (0, 100),
    "train.milestones": (0, 1_000_000),
    "train.warmup_iterations": (0, 1_000_000_000),
    "train.warmup_factor": (0, 1),
    "train.clip_grad_norm": (1e-12, 1e12),
    "train.ema_decay": (1e-9, 1 - 1e-9),
    "train.seed": (0, 2**32 - 1),
    "train.evaluate_every": (1, 1_000_000),
    "train.early_stopping": (1, 1_000_000),
    "train.distill.loss_weight": (0, 1e6),
    "train.distill.temperature": (1e-3, 1e6),
    "train.distill.region_weight": (0, 1e6),
    "train.distill.region_low": (0, 1),
    "train.save_every_steps": (1, 1_000_000_000),
    "train.start_timeout": (1, 86_400),
    "test.pre_topk": (1, 1_000_000),
    "test.score_thr": (-1, 1),
    "test.iou_thr": (0, 1),
    "test.max_detections": (1, 1_000_000),
    "test.tta.scales": (0.05, 20),
    "authors.ap_minival": (0, 100),
    "authors.ap_test_dev": (0, 100),
    "authors.fps_2080ti": (0, 1e6),
}

# Dotted key → how many items a list has at least and at most.
LENGTHS: dict[str, tuple[int, int]] = {
    "model.backbone.out_indices": (1, 12),
    "model.backbone.deform.stages": (0, 12),
    "model.head.strides": (1, 12),
    "model.head.loss_weights": (3, 3),
    "data.mean": (3, 3),
    "data.std": (3, 3),
    "data.short_side": (2, 2),
    "train.milestones": (0, 1000),
    "test.tta.scales": (1, 32),
}


def check_range(key: str, value: Any, prefix: str = "") -> Any:
    """Return a value of the field's type if it is in its range.

    Args:
        key: dotted. prefix: what stands before it in the message: "--" on a command line.

    Raises:
        ValueError: NaN too; names key, range and value.
    """
    if isinstance(value, list) and key in LENGTHS:
        least, most = LENGTHS[key]
        if not least <= len(value) <= most:
            count = f"{least}" if least == most else f"{least} to {most}"
            raise ValueError(f"{prefix}{key}: expected {count} items, got {len(value)}: {shown(value)}")
    if key in RANGES and value is not None:
        low, high = RANGES[key]
        for item in value if isinstance(value, list) else [value]:
            if not low <= item <= high:
                raise ValueError(f"{prefix}{key}: expected from {low:,} to {high:,}, got {shown(value)}")
    return value
