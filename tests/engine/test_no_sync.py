"""A whole training step asks for no value that a host would have to wait for on a GPU.

Checked on a CPU: everything that reads a tensor's value, or whose result has a shape that depends on one, raises
(`tests.engine.waits`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gflv2 import GFLV2, use_backend
from tests.engine.waits import NoHostWait, forbid


def batch(seed: int) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(seed)
    corner = 30 * torch.rand(3, 2, generator=draw)
    boxes = [torch.cat([corner, corner + 10 + 20 * torch.rand(3, 2, generator=draw)], 1), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2, 1]), torch.zeros(0, dtype=torch.int64)]
    return torch.randn(2, 3, 64, 96, generator=draw), boxes, labels, [(64, 96), (64, 64)]


def sgd(parameters: list[Tensor], **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, **options)


def adamw(parameters: list[Tensor], **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-3, **options)


Make = Callable[[list[Tensor]], torch.optim.Optimizer]


@pytest.mark.parametrize(
    ("make", "scaled", "backend"),
    [
        (sgd, False, None),
        (sgd, False, "reference"),
        # Unfused, Adam reads its number of steps, which it keeps on the host.
        (partial(adamw, fused=True), False, None),
        (partial(adamw, fused=True), False, "reference"),
        (partial(sgd, fused=True), True, None),
        (partial(adamw, fused=True), True, None),
    ],
)
def test_training_step(make: Make, scaled: bool, backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GFLV2("gflv2_lite0", num_classes=3).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = make(learning)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**8)
    given = [batch(seed) for seed in range(2)]

    def step(arguments: tuple[Any, ...]) -> dict[str, Tensor]:
        losses = model.loss(*arguments)
        optimiser.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimiser)
        scaler.update()
        return losses

    with use_backend(backend):
        step(given[0])  # what is set up once may wait
        before = [parameter.detach().clone() for parameter in learning]
        with monkeypatch.context() as patched, NoHostWait():
            forbid(patched)
            losses = step(given[1])
    assert all(bool(torch.isfinite(loss)) and float(loss) > 0 for loss in map(Tensor.detach, losses.values()))
    assert sum(not torch.equal(old, new) for old, new in zip(before, learning, strict=True)) > len(before) // 2


@pytest.mark.parametrize("make", [partial(sgd, foreach=True), partial(adamw, foreach=False)])
def test_a_scaler_waits_where_the_optimiser_is_not_fused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's scaler then asks on the host whether a gradient was infinite. docs/cuda_graphs.md says so."""
    weight = torch.ones(3, requires_grad=True)
    optimiser, scaler = make([weight]), torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum()).backward()
    with monkeypatch.context() as patched, NoHostWait():
        forbid(patched)
        with pytest.raises(AssertionError, match="the step waits for a value: item"):
            scaler.step(optimiser)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.cpu(),
        lambda t: torch.nonzero(t),
        lambda t: torch.ops.aten.nonzero(t),
        lambda t: torch.ops.aten.index(t, [t > 0]),
        lambda t: float(t.sum()),
        lambda t: t.masked_select(t > 0),
    ],
)
def test_the_test_can_fail(wait: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.ones(3)
    with monkeypatch.context() as patched, NoHostWait():
        forbid(patched)
        with pytest.raises(AssertionError):
            wait(tensor)
