"""How a call reaches a native library: by the names of its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.native import loading

Place = tuple[int, int, Callable[[int], Tensor] | None]
_SEQUENCES = (list, tuple)  # of tensors; a named tuple is none of them


class Room:
    """The functions of a library: ``room.dfl_forward(logits=…, …)`` calls its ``dfl_forward``.

    They write into preallocated outputs. A tensor, a list of tensors, a named tuple is handed over as it is. The
    library reads the fields of its arguments (`csrc/include/gflv2/api`, a file for each operation) by name, and asks a
    tensor for its address, shape, strides and dtype.
    """

    def __init__(self, library: Callable[[], ModuleType], place: Callable[[Tensor], Place]) -> None:
        self._library, self._place = library, place

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        library, place = self._library, self._place

        def call(**fields: Any) -> None:
            getattr(library(), name)(place(_first_tensor(fields.values())), fields)

        setattr(self, name, call)
        return call


def place_of(tensor: Tensor) -> Place:
    """CUDA: device index, current stream, and what allocates bytes there. CPU: −1, the number of threads, None."""
    if not tensor.is_cuda:
        return -1, torch.get_num_threads(), None
    device = tensor.device
    stream = torch.cuda.current_stream(device).cuda_stream
    return device.index, stream, functools.partial(torch.empty, dtype=torch.uint8, device=device)


def emulated_place_of(tensor: Tensor) -> Place:
    """The emulation has one device and one stream."""
    return 0, 0, functools.partial(torch.empty, dtype=torch.uint8, device=tensor.device)


def _first_tensor(arguments: Iterable[Any]) -> Tensor:
    for argument in arguments:
        if isinstance(argument, Tensor):
            return argument
        if type(argument) in _SEQUENCES and argument and isinstance(argument[0], Tensor):
            return argument[0]
    raise TypeError("expected a tensor among the arguments")


NATIVE = Room(loading.library, place_of)
EMULATION = Room(loading.emulation, emulated_place_of)
