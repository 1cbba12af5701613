"""The faster paths of convolutions on a CPU: the same values and gradients, and taken where they should be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from gflv2 import GFLV2
from gflv2.models import cpu_convolutions
from gflv2.models.cpu_convolutions import CPUConvolutions, DepthwiseInColumns

LAST = {"memory_format": torch.channels_last}
CASES = {
    "1x1": ((2, 8, 6, 7), (5, 8, 1, 1), {}),
    "1x1 with bias": ((2, 8, 6, 7), (5, 8, 1, 1), {"bias": torch.arange(5.0)}),
    "1x1 of stride 2": ((2, 8, 6, 7), (5, 8, 1, 1), {"stride": 2}),
    "depthwise 5x5": ((2, 6, 9, 8), (6, 1, 5, 5), {"padding": 2, "groups": 6}),
    "depthwise 5x5 of stride 2": ((2, 6, 11, 13), (6, 1, 5, 5), {"stride": (2, 2), "groups": 6}),
    "depthwise 7x7": ((1, 6, 9, 8), (6, 1, 7, 7), {"padding": (3, 3), "groups": 6}),
    "depthwise 3x5 of strides 1 and 2": (
        (1, 6, 9, 8),
        (6, 1, 3, 5),
        {"stride": (1, 2), "padding": (1, 0), "groups": 6},
    ),
    "depthwise, dilated": ((1, 6, 12, 12), (6, 1, 5, 5), {"dilation": 2, "groups": 6}),
    "depthwise, padded by name": ((1, 6, 9, 8), (6, 1, 5, 5), {"padding": "same", "groups": 6}),
    "grouped": ((2, 8, 6, 7), (6, 4, 5, 5), {"groups": 2}),
    "3x3": ((2, 8, 6, 7), (5, 8, 3, 3), {"padding": 1}),
}


def gradients(case: str, mode: CPUConvolutions | None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shape, kernel, options = CASES[case]
    generator = torch.Generator().manual_seed(0)
    options = {name: value.to(dtype) if name == "bias" else value for name, value in options.items()}
    x = torch.randn(shape, generator=generator).to(dtype).contiguous(**LAST).requires_grad_()
    weight = torch.randn(kernel, generator=generator).to(dtype).contiguous(**LAST).requires_grad_()
    if mode is None:
        y = F.conv2d(x, weight, **options)
    else:
        with mode:
            y = F.conv2d(x, weight, **options)
    return [y, *torch.autograd.grad(y.sin().sum(), (x, weight))]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_conv2d(case, one_thread):
    mode = CPUConvolutions(products=True)
    for ours, plain, exact in zip(
        gradients(case, mode), gradients(case, None), gradients(case, None, torch.float64), strict=True
    ):
        assert ours.shape == plain.shape and ours.dtype == plain.dtype
        floor = 1e-6 * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + floor


def test_which_path_is_taken(one_thread, monkeypatch):
    seen = []
    real = DepthwiseInColumns.apply
    monkeypatch.setattr(DepthwiseInColumns, "apply", lambda *given: seen.append("columns") or real(*given))
    for case in CASES:
        gradients(case, CPUConvolutions(products=True))
    assert len(seen) == 4  # those neither dilated nor padded by name
    x, weight = torch.randn(1, 4, 5, 5).contiguous(**LAST), torch.randn(3, 4, 1, 1, requires_grad=True)
    with CPUConvolutions(products=True):
        y = F.conv2d(x, weight)
        assert y.grad_fn._saved_dilation == (2, 2)
        assert F.conv2d(torch.randn(1, 4, 5, 5), weight).grad_fn._saved_dilation == (1, 1)  # not channels_last
        assert F.conv2d(torch.randn(16, 4, 5, 5).contiguous(**LAST), weight).grad_fn._saved_dilation == (1, 1)
        torch.set_num_threads(2)
        assert F.conv2d(x, weight).grad_fn._saved_dilation == (1, 1)
        torch.set_num_threads(1)
    with CPUConvolutions(products=False):
        assert F.conv2d(x, weight).grad_fn._saved_dilation == (1, 1)


def test_what_is_told_is_what_happens(one_thread, monkeypatch):
    weight = torch.randn(3, 4, 1, 1, requires_grad=True)
    for slow in (True, False):
        monkeypatch.setattr(cpu_convolutions, "slow_products", lambda slow=slow: slow)
        for batch in (2, 16):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                with CPUConvolutions():
                    y = F.conv2d(torch.randn(batch, 4, 5, 5).contiguous(**LAST), weight)
                told = cpu_convolutions.paths_taken(batch)
                assert ("1×1 convolutions by oneDNN" in told) == (y.grad_fn._saved_dilation == (2, 2))
                assert ("AMD" in told) == (threads == 1 and batch == 2)
    torch.set_num_threads(1)


def test_a_detector_in_training_takes_it_and_learns_the_same(one_thread, monkeypatch):
    torch.manual_seed(0)
    model = GFLV2("gflv2_lite0", num_classes=2, model__backbone__pretrained=None).train().to(**LAST)
    other = copy.deepcopy(model)
    assert model.config.train.fast_convolutions  # the light recipe's
    other.config.train.fast_convolutions = False
    images = torch.randn(1, 3, 96, 64).contiguous(**LAST)
    truth = [torch.tensor([[5.0, 5, 60, 50]])], [torch.tensor([1])]
    taken = []
    real = DepthwiseInColumns.apply
    monkeypatch.setattr(DepthwiseInColumns, "apply", lambda *given: taken.append(1) or real(*given))
    monkeypatch.setattr(cpu_convolutions, "slow_products", lambda: True)
    sum(model.bbox_head.loss(model(images), *truth).values()).backward()
    assert len(taken) == 9  # the 5×5 kernels of EfficientNet-Lite0
    sum(other.bbox_head.loss(other(images), *truth).values()).backward()
    assert len(taken) == 9
    total = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None])
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - total).norm() <= 1e-4 * total.norm()
    with torch.no_grad():
        model.eval()(images)
    assert len(taken) == 9


def test_second_gradients_and_transforms_of_functions_stay(one_thread):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 9, 8, generator=generator).contiguous(**LAST)
    weight = torch.randn(6, 1, 5, 5, generator=generator).contiguous(**LAST)

    def total(weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=2, groups=6).sin().sum()

    def found() -> list[torch.Tensor]:
        leaf = weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
        return [*torch.autograd.grad(first.square().sum(), leaf), torch.func.grad(total)(weight)]

    plain = found()
    with CPUConvolutions():
        ours = found()
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
