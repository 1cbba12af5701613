"""The Triton kernels of ``gfl_targets`` and ``gfl_loss`` compile once for all sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import gfl_loss, gfl_targets, variants  # noqa: E402
from gflv2.ops.box_losses import SavedBoxLoss  # noqa: E402
from tests.kernels.inputs import STRIDES, fifty_sizes, names, pyramid  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402

KERNELS = {
    "gfl_targets": ["atss_table_kernel", "gfl_targets_kernel", "gfl_targets_sums_kernel"],
    "gfl_loss": ["box_loss_forward_kernel", "box_loss_sums_kernel", "dgqp_backward_kernel", "dgqp_reduce_kernel"],
}


@pytest.mark.parametrize("op", KERNELS)
def test_the_listed_variants_are_those_that_launch(op: str) -> None:
    for name, found in variants_of(op).items():
        assert names(found) == KERNELS[op], name


def launches(
    class_logits: list[torch.Tensor], box_logits: list[torch.Tensor], boxes: int, shift: int
) -> list[variants.Variant]:
    """What targets, losses and the way back would launch; every other tensor begins ``shift`` elements into memory."""

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shift + torch.Size(shape).numel(), dtype=dtype)[shift:].view(shape)

    batch, bins = box_logits[0].shape[0], box_logits[0].shape[1] // 4
    points = sum(level.shape[2] * level.shape[3] for level in box_logits)
    numbers = [new(batch, points, dtype=torch.int64) for _ in range(3)]
    rows = [new(batch, points) for _ in range(4)]
    given = [new(boxes + image, 4) for image in range(batch)]
    scales, projection, pair = new(5), new(bins), new(2)
    targets, sides = new(batch, points, 4), new(batch, points, 4, 2)
    giou, dfl = new(1)[0], new(1)[0]
    offset = shift / 2

    def call() -> None:
        maps = (class_logits, box_logits, *numbers[:2], given, [], STRIDES, scales, projection, rows[0], offset)
        gfl_targets.gfl_targets(*maps, numbers[2], targets, *rows[1:], pair)
        settings = (STRIDES, scales, projection, offset, (1.0 + shift, 0.25))
        gfl_loss.box_loss_forward(box_logits, targets, rows[1], pair, *settings, sides, giou, dfl)
        layers = [[new(64, 20), new(64), new(64), new(1)] for _ in range(2)]
        box = SavedBoxLoss(sides, rows[1], projection, pair, giou, dfl, (1.0 + shift, 0.25))
        gradients = [torch.empty_like(level) for level in box_logits]
        wanted = (gradients, layers[1], new(5))
        gfl_loss.box_loss_backward(rows[0], box_logits, layers[0], scales, 4, True, False, *wanted, box)

    return variants.record(call)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_image_sizes_compile_once(last: bool) -> None:
    """Sizes, batches, numbers of boxes and classes, aligned tensors and others."""
    counts: Counter[str] = Counter()
    distinct = set()
    for index, _, sizes in fifty_sizes():
        batch = 1 + index % 4  # more images take two launches to write their table
        kind = {"dtype": torch.bfloat16, "last": last, "batch": batch, "sizes": sizes}
        found = launches(pyramid(1 + index, **kind), pyramid(68, **kind), index % 18, shift=index % 4)
        counts.update(names(found))
        distinct.update(found)
    assert counts == dict.fromkeys([*KERNELS["gfl_targets"], *KERNELS["gfl_loss"]], 50)
    assert len(distinct) == 7, sorted(variant.kernel for variant in distinct)
