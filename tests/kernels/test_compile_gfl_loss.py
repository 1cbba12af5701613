"""The Triton kernels of ``gfl_targets`` and ``gfl_loss`` compile once for all sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import gfl_loss, gfl_targets, variants  # noqa: E402
from gflv2.ops.box_losses import SavedBoxLoss  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402

TARGETS = ["atss_table_kernel", "gfl_targets_kernel", "gfl_targets_sums_kernel"]
LOSSES = ["box_loss_forward_kernel", "box_loss_sums_kernel"]
BACKWARD = ["dgqp_backward_kernel", "dgqp_reduce_kernel"]
STRIDES = [8.0, 16.0, 32.0, 64.0, 128.0]


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in variants_of("gfl_loss").items():
        assert [variant.kernel.rsplit(".", 1)[-1] for variant in found] == TARGETS + LOSSES + BACKWARD, name


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
    targets, sides, one = new(batch, points, 4), new(batch, points, 4, 2), new(1)[0]
    offset = shift / 2

    def call() -> None:
        maps = (class_logits, box_logits, *numbers[:2], given, [], STRIDES, scales, projection, rows[0], offset)
        gfl_targets.gfl_targets(*maps, numbers[2], targets, *rows[1:], pair)
        settings = (STRIDES, scales, projection, offset, (1.0 + shift, 0.25))
        gfl_loss.box_loss_forward(box_logits, targets, rows[1], one, *settings, sides, pair)
        layers = [[new(64, 20), new(64), new(64), new(1)] for _ in range(2)]
        box = SavedBoxLoss(sides, rows[1], projection, pair, one, (1.0 + shift, 0.25))
        gradients = [torch.empty_like(level) for level in box_logits]
        wanted = (gradients, layers[1], new(5))
        gfl_loss.box_loss_backward(rows[0], box_logits, layers[0], scales, 4, True, False, *wanted, box)

    return variants.record(call)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_image_sizes_compile_once(last: bool) -> None:
    """Sizes of 1, multiples of 16 and odd ones, batches, numbers of boxes and classes, aligned tensors and others."""
    form = torch.channels_last if last else torch.contiguous_format
    counts: Counter[str] = Counter()
    distinct = set()
    for index in range(50):
        batch, height, width = 1 + index % 4, 129 + 32 * index + index % 3, 161 + 13 * index
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
        box = [torch.empty(batch, 68, *size, dtype=torch.bfloat16).to(memory_format=form) for size in sizes]
        cls = [torch.empty(batch, 1 + index, *size, dtype=torch.bfloat16).to(memory_format=form) for size in sizes]
        found = launches(cls, box, index % 18, shift=index % 4)
        counts.update(variant.kernel.rsplit(".", 1)[-1] for variant in found)
        distinct.update(found)
    assert counts == dict.fromkeys([*TARGETS, *LOSSES, *BACKWARD], 50)
    assert len(distinct) == 7, sorted(variant.kernel for variant in distinct)
