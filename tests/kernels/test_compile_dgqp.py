"""The Triton kernels of ``dgqp`` and ``dgqp_statistics`` compile once for all sizes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed on this platform")

from gflv2.kernels import dgqp, variants  # noqa: E402
from tests.kernels.inputs import fifty_sizes, names, pyramid  # noqa: E402
from tests.kernels.launches import variants_of  # noqa: E402

KERNELS = ["dgqp_forward_kernel", "dgqp_backward_kernel", "dgqp_reduce_kernel"]


def test_the_listed_variants_are_those_that_launch() -> None:
    for name, found in variants_of("dgqp").items():
        assert names(found) == KERNELS, name


def launches(tensors: list[torch.Tensor], hidden: int, shift: int) -> list[variants.Variant]:
    """What forward and backward would launch; every float32 tensor begins ``shift`` elements into its memory."""

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shift + torch.Size(shape).numel())[shift:].view(shape)

    rows = tensors[0].dim() == 3
    points = tensors[0].shape[:1] if rows else (tensors[0].shape[0], sum(t.shape[2] * t.shape[3] for t in tensors))
    shapes = [(hidden, 20), (hidden,), (hidden,), (1,)] if hidden else []
    predictor, gradients = ([new(*shape) for shape in shapes] for _ in range(2))
    inputs = (tensors, predictor, new(len(tensors)), 4, True, False)
    out = new(*points) if hidden else new(*points, 20)
    grad_logits = [torch.empty_like(tensor) for tensor in tensors]

    def call() -> None:
        dgqp.dgqp_forward(*inputs, out)
        dgqp.dgqp_backward(out, *inputs, grad_logits, gradients, new(len(tensors)))

    return variants.record(call)


@pytest.mark.parametrize("hidden", [64, 0], ids=["dgqp", "dgqp_statistics"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_fifty_image_sizes_compile_once(last: bool, hidden: int) -> None:
    """Sizes, several batches, aligned tensors and others."""
    counts: Counter[str] = Counter()
    distinct = set()
    for index, batch, sizes in fifty_sizes():
        levels = pyramid(68, torch.bfloat16, last=last, batch=batch, sizes=sizes)
        found = launches(levels, hidden, shift=index % 4)
        counts.update(names(found))
        distinct.update(found)
    assert counts == dict.fromkeys(KERNELS, 50)
    assert len(distinct) == 3, sorted(variant.kernel for variant in distinct)


def test_fifty_row_counts_and_strides_compile_once() -> None:
    found: set[variants.Variant] = set()
    for index in range(50):
        rows, extra = 1 + 37 * index, index % 17
        found.update(launches([torch.empty(rows, 4 * 33 + extra)[:, extra:].unflatten(1, (4, 33))], 64, index % 4))
    assert len(found) == 3, sorted(variant.kernel for variant in found)


def test_what_is_compiled_in_does_compile_anew() -> None:
    """The counter can count: another number of bins or hidden units, or dtype, is another variant."""
    base = torch.empty(1, 68, 8, 8)
    found = {launches([base], 64, 0)[0], launches([base[:, :36]], 64, 0)[0], launches([base.half()], 64, 0)[0]}
    found |= {launches([base], 32, 0)[0], launches([base], 0, 0)[0]}
    assert len(found) == 5
