"""Memory of training: what a process hands back, and what a step keeps for its backward pass."""

from __future__ import annotations

import ctypes
import sys
import weakref
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


class _Saved:
    """What autograd holds of a saved tensor: it goes with the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(forward: Callable[[], Any], arguments: Any) -> int:
    """Bytes that autograd keeps between forward and backward, besides the arguments, which live on anyway.

    Whole storages count, each once: a saved view keeps all of its storage alive.
    """
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        one = _Saved(tensor.detach())  # itself it would hold the graph, and so itself
        saved.add(one)
        return one

    own = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(arguments)}

    def size(tensors: list[Tensor]) -> int:
        """Of tensors that live at the same time: a storage is known by its address."""
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(bytes_ for address, bytes_ in storages.items() if address not in own)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        result = forward()
    kept = _on_contexts(result)
    watched, on_contexts = size([one.tensor for one in saved] + kept), size(kept)
    del result, kept
    # Again: an operation may keep more on its context while nobody looks on.
    return watched + size(_on_contexts(forward())) - on_contexts


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
