"""How a call reaches the native library: by the names of its arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.native.loading import emulating, library

Place = tuple[int, int, Callable[[int], Tensor] | None]


def native(declaration: Callable[..., None]) -> Callable[..., None]:
    """The function of the library that has the name of this declaration, called with the declared names.

    A tensor, a list of tensors, a named tuple is handed over as it is. The library reads the fields of its arguments by
    name, and asks a tensor for its address, shape, strides and dtype.
    """
    name, parameters = declaration.__name__, inspect.signature(declaration).parameters
    names = tuple(parameters)
    optional = names[-1] if parameters[names[-1]].default is None else None

    @functools.wraps(declaration)
    def call(*arguments: Any) -> None:
        fields = dict(zip(names, arguments))  # noqa: B905 (strict= costs time, and the last one may have a default)
        if optional is not None:
            fields.setdefault(optional, None)
        getattr(library(), name)(place(_first_tensor(arguments)), **fields)

    return call


def place(tensor: Tensor) -> Place:
    """CUDA: device index, current stream, and what allocates bytes there. CPU: −1, the number of threads, None.

    The emulation has one device and one stream.
    """
    if emulating.get():
        return 0, 0, functools.partial(torch.empty, dtype=torch.uint8, device=tensor.device)
    if tensor.is_cuda:
        device = tensor.device
        stream = torch.cuda.current_stream(device).cuda_stream
        return device.index, stream, functools.partial(torch.empty, dtype=torch.uint8, device=device)
    return -1, torch.get_num_threads(), None


_SEQUENCES = (list, tuple)  # of tensors; a named tuple is none of them


def _first_tensor(arguments: tuple[Any, ...]) -> Tensor:
    for argument in arguments:
        if isinstance(argument, Tensor):
            return argument
        if type(argument) in _SEQUENCES and argument:
            return argument[0]
    raise TypeError("expected a tensor among the arguments")
