"""The Triton kernels of the losses over rows compile once for all sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import dfl, distribution_kl, focal, giou, qfl, variants  # noqa: E402
from gflv2.ops.reduction import Reduction  # noqa: E402
from tests.kernels.inputs import fifty_sizes, names, pyramid  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402

OPERATIONS = ("qfl", "focal", "dfl", "distribution_kl", "giou")


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_listed_variants_are_those_that_launch(op: str) -> None:
    for name, found in variants_of(op).items():
        total = [] if "no total" in name else ["total_kernel"]
        assert names(found) == [f"{op}_forward_kernel", *total, f"{op}_backward_kernel"], name


def launch_dfl(rows: int, extra: int) -> None:
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    logits = torch.empty(rows, 17 + extra)[:, extra:]
    arguments = (logits, torch.empty(rows + 1)[1:], reduction)
    dfl.dfl_forward(*arguments, torch.empty(()))
    dfl.dfl_backward(torch.empty(()), *arguments, torch.empty(rows, 17))


def launch_distribution_kl(rows: int, extra: int) -> None:
    """The temperature changes too."""
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    logits, teacher = torch.empty(rows, 17 + extra)[:, extra:], torch.empty(rows, 18 + extra)[:, extra + 1 :]
    arguments = (logits, teacher, 1.0 + extra, reduction)
    distribution_kl.distribution_kl_forward(*arguments, torch.empty(()))
    distribution_kl.distribution_kl_backward(torch.empty(()), *arguments, torch.empty(rows, 17))


def launch_giou(rows: int, extra: int) -> None:
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    arguments = (torch.empty(rows, 4 + extra)[:, extra:], torch.empty(rows, 4), True, 1.0 / (1 + extra), reduction)
    giou.giou_forward(*arguments, torch.empty(()))
    giou.giou_backward(torch.empty(()), *arguments, torch.empty(rows, 4), torch.empty(rows, 4))


def launch_qfl(rows: int, extra: int) -> None:
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    values = [torch.empty(rows, 80 + extra)[:, extra:]]
    labels, scores = torch.zeros(rows, dtype=torch.int64), torch.empty(rows + 1)[1:]
    arguments = (values, torch.empty(rows), labels, scores, "class_logits", 2.0, reduction)
    qfl.qfl_forward(*arguments, torch.empty(()))
    qfl.qfl_backward(torch.empty(()), *arguments, [torch.empty(rows, 80)], torch.empty(rows))


def launch_focal(rows: int, extra: int) -> None:
    """The factors change too."""
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    logits = [torch.empty(rows, 80 + extra)[:, extra:]]
    labels, scores = torch.zeros(rows, dtype=torch.int64), torch.empty(rows + 1)[1:]
    arguments = (logits, labels, scores, "varifocal", 0.0, 0.5 + extra, 2.0, True, False, reduction)
    focal.focal_forward(*arguments, torch.empty(()))
    focal.focal_backward(torch.empty(()), *arguments, [torch.empty(rows, 80)])


@pytest.mark.parametrize("launch", [launch_qfl, launch_focal, launch_dfl, launch_distribution_kl, launch_giou])
def test_fifty_row_counts_and_strides_compile_once(launch: Callable[[int, int], None]) -> None:
    """The row stride and the alignment of the first element change with the number of further columns."""
    found: set[variants.Variant] = set()
    for index in range(50):
        found.update(variants.record(lambda index=index: launch(1 + 37 * index, index % 17)))
    assert len(found) == 3, sorted(variant.kernel for variant in found)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_image_sizes_compile_qfl_once(last: bool) -> None:
    def launch(batch: int, sizes: list[tuple[int, int]]) -> None:
        values = pyramid(80, torch.bfloat16, last=last, batch=batch, sizes=sizes)
        shape = (batch, sum(height * width for height, width in sizes))
        labels = torch.zeros(shape, dtype=torch.int64)
        reduction = Reduction(None, torch.ones(()), 1.0, "sum")
        arguments = (values, torch.empty(shape), labels, torch.empty(shape), "class_logits", 2.0, reduction)
        qfl.qfl_forward(*arguments, torch.empty(()))
        qfl.qfl_backward(torch.empty(()), *arguments, values, torch.empty(shape))

    found: set[variants.Variant] = set()
    for _, batch, sizes in fifty_sizes():
        found.update(variants.record(lambda batch=batch, sizes=sizes: launch(batch, sizes)))
    assert len(found) == 3, sorted(variant.kernel for variant in found)
