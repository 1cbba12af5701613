"""A whole training step asks for no value that a host would have to wait for on a GPU.

Checked on a CPU: everything that reads a tensor's value, or whose result has a shape that depends on one, raises. In
Python by replacing the methods, which sees into the operations of this package too; below it, in autograd and in the
optimiser, by a dispatch mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gflv2 import GFLV2, use_backend

READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
SHAPED_BY_VALUES = ("nonzero", "masked_select", "unique", "argwhere")
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")


def has_mask(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else [index]
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


class NoHostWait(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in FORBIDDEN, f"the step waits for {func}"
        assert not (name in ("index", "index_put", "index_put_") and has_mask(args[1])), f"{func} with a mask"
        return func(*args, **(kwargs or {}))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(name: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"the step waits for a value: {name}")

        return refuse

    for name in READING:
        monkeypatch.setattr(Tensor, name, refusing(name))
    for name in SHAPED_BY_VALUES:
        monkeypatch.setattr(torch, name, refusing(name))
        if hasattr(Tensor, name):
            monkeypatch.setattr(Tensor, name, refusing(name))
    for name in ("__getitem__", "__setitem__"):
        plain = getattr(Tensor, name)

        def checked(tensor: Tensor, index: Any, *value: Any, plain: Any = plain) -> Any:
            assert not has_mask(index), "a mask as an index"
            return plain(tensor, index, *value)

        monkeypatch.setattr(Tensor, name, checked)


def batch(seed: int) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(seed)
    corner = 30 * torch.rand(3, 2, generator=draw)
    boxes = [torch.cat([corner, corner + 10 + 20 * torch.rand(3, 2, generator=draw)], 1), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2, 1]), torch.zeros(0, dtype=torch.int64)]
    return torch.randn(2, 3, 64, 96, generator=draw), boxes, labels, [(64, 96), (64, 64)]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    "make",
    # Unfused, Adam reads its number of steps, which it keeps on the host.
    [lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True)],
    ids=["SGD", "AdamW"],
)
def test_training_step(make: Callable[..., Any], backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GFLV2("gflv2_lite0", num_classes=3).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = make(learning)
    given = [batch(seed) for seed in range(2)]

    def step(arguments: tuple[Any, ...]) -> dict[str, Tensor]:
        losses = model.loss(*arguments)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        return losses

    with use_backend(backend):
        step(given[0])  # what is set up once may wait
        before = [parameter.detach().clone() for parameter in learning]
        with monkeypatch.context() as patched, NoHostWait():
            forbid(patched)
            losses = step(given[1])
    assert all(bool(torch.isfinite(loss)) and float(loss) > 0 for loss in losses.values())
    assert sum(not torch.equal(old, new) for old, new in zip(before, learning, strict=True)) > len(before) // 2


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
