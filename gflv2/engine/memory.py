"""Memory of training: what a process hands back, and what a step keeps for its backward pass."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep freed memory in the process instead of handing it back to the system.

    A training step allocates and frees the same large tensors over and over; by default each of them is mapped anew,
    and every page faults in again: a quarter of the step's processor time was spent in the kernel
    (EfficientNet-Lite0, batch 8).

    Returns:
        Whether it took effect; False on other systems, where nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def tensors_in(*values: Any) -> list[Tensor]:
    """Those within lists, tuples and dictionaries."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def saved_bytes(forward: Callable[[], Any], arguments: Any) -> int:
    """Bytes that autograd keeps between forward and backward, besides the arguments, which live on anyway.

    Whole storages count, each once: a saved view keeps all of its storage alive.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(arguments)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    # Again: an operation may keep something only while nobody looks on.
    result = forward()
    for tensor in _on_contexts(result):
        pack(tensor)
    total = sum(kept.values())
    del result
    return total


def _on_contexts(result: Any) -> list[Tensor]:
    """Tensors that an autograd.Function keeps by itself, as an attribute of its context."""
    waiting = [tensor.grad_fn for tensor in tensors_in(result)]
    seen, found = set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += tensors_in(getattr(node, "__dict__", {}))
        waiting += [parent for parent, _ in node.next_functions]
    return found
