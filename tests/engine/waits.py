"""What a host would have to wait for on a GPU, and what a CUDA graph could not repeat; seen on a CPU.

Everything that reads a tensor's value, or whose result has a shape that depends on one, raises: in Python by replacing
the methods, which sees into the operations of this package too; below it, in autograd and in the optimiser, by a
dispatch mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
SHAPED_BY_VALUES = ("nonzero", "masked_select", "unique", "argwhere")
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
FROM_THE_HOST = ("tensor", "as_tensor", "from_numpy")


def has_mask(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else [index]
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


class NoHostWait(TorchDispatchMode):
    """Raises at an operator that would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in FORBIDDEN, f"the step waits for {func}"
        assert not (name in ("index", "index_put", "index_put_") and has_mask(args[1])), f"{func} with a mask"
        return func(*args, **(kwargs or {}))


class SameCalls(NoHostWait):
    """Also lists what a graph would record: each operator with its numbers, and of each tensor shape, strides and the
    address, where it is not one that was made before in this block.

    A function may be recorded as a graph only if this list does not change with the values of its tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._made: set[int] = set()
        self._kept: list[Tensor] = []  # no address is given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        # What a tensor from the host's numbers shows to this mode: on a GPU it is a copy that waits.
        assert "lift_fresh" not in func.name(), "a tensor is made from numbers of the host"
        if not func.name().startswith("profiler::"):  # marks around an optimiser's step
            self.calls.append((func.name(), [self._shown(value) for value in given]))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        before = {_address(value) for value in given if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _address(value) not in before:
                self._made.add(_address(value))
                self._kept.append(value)
        return result

    def _shown(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return repr(value)
        where = "new" if _address(value) in self._made else _address(value)
        return value.dtype, tuple(value.shape), value.stride(), where


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def forbid(monkeypatch: pytest.MonkeyPatch, *, from_the_host: bool = False) -> None:
    """Make the methods that read values raise.

    Args:
        from_the_host: also those that make a tensor from the host's numbers.
    """

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
    if from_the_host:
        for name in FROM_THE_HOST:
            monkeypatch.setattr(torch, name, refusing(name))
        monkeypatch.setattr(Tensor, "new_tensor", refusing("new_tensor"))
    for name in ("__getitem__", "__setitem__"):
        plain = getattr(Tensor, name)

        def checked(tensor: Tensor, index: Any, *value: Any, plain: Any = plain) -> Any:
            assert not has_mask(index), "a mask as an index"
            return plain(tensor, index, *value)

        monkeypatch.setattr(Tensor, name, checked)


@contextmanager
def recordable(monkeypatch: pytest.MonkeyPatch) -> Iterator[SameCalls]:
    """Within the block whatever a graph cannot hold raises; the calls are listed."""
    with monkeypatch.context() as patched, SameCalls() as seen:
        forbid(patched, from_the_host=True)
        yield seen
