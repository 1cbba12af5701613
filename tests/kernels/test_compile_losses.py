"""The Triton kernels of the losses over rows compile without spills, and once for all sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import dfl, giou, variants  # noqa: E402
from gflv2.ops.reduction import Reduction  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402
from tests.kernels.test_compile import resources  # noqa: E402

OPERATIONS = ("dfl", "giou")


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_listed_variants_are_those_that_launch(op: str) -> None:
    for name, found in variants_of(op).items():
        kernels = [variant.kernel.rsplit(".", 1)[-1] for variant in found]
        total = [] if "no total" in name else ["total_kernel"]
        assert kernels == [f"{op}_forward_kernel", *total, f"{op}_backward_kernel"], name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", variants.ARCHITECTURES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_compile_without_spills(op: str, architecture: int, tmp_path: Path) -> None:
    for name, found in variants_of(op).items():
        for variant in found:
            cubin = tmp_path / "kernel.cubin"
            cubin.write_bytes(variant.compile(architecture).asm["cubin"])
            usage = resources(cubin)
            assert usage["STACK"] == usage["LOCAL"] == 0, (
                f"{variant.kernel} ({name}) spills on sm_{architecture}: {usage}"
            )


def launch_dfl(rows: int, extra: int) -> None:
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    logits = torch.empty(rows, 17 + extra)[:, extra:]
    arguments = (logits, torch.empty(rows + 1)[1:], reduction)
    dfl.dfl_forward(*arguments, torch.empty(()))
    dfl.dfl_backward(torch.empty(()), *arguments, torch.empty(rows, 17))


def launch_giou(rows: int, extra: int) -> None:
    reduction = Reduction(torch.ones(rows), torch.ones(()), 1.0 + extra, "sum")
    arguments = (torch.empty(rows, 4 + extra)[:, extra:], torch.empty(rows, 4), True, 1.0 / (1 + extra), reduction)
    giou.giou_forward(*arguments, torch.empty(()))
    giou.giou_backward(torch.empty(()), *arguments, torch.empty(rows, 4), torch.empty(rows, 4))


@pytest.mark.parametrize("launch", [launch_dfl, launch_giou])
def test_fifty_row_counts_and_strides_compile_once(launch: Callable[[int, int], None]) -> None:
    """The row stride and the alignment of the first element change with the number of further columns."""
    found: set[variants.Variant] = set()
    for index in range(50):
        found.update(variants.record(lambda index=index: launch(1 + 37 * index, index % 17)))
    assert len(found) == 3, sorted(variant.kernel for variant in found)
