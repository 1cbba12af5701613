"""What every backward pass of a fused operation shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def no_double_backward(op: str) -> Callable[[Callable], Callable]:
    """Decorate a fused backward: its result has no gradient of its own, and asking for one is an error.

    Without this, ``create_graph=True`` would give second derivatives that silently miss this operation's part.
    """

    def decorate(backward: Callable) -> Callable:
        @functools.wraps(backward)
        def checked(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                raise RuntimeError(
                    f"{op}: double backward (create_graph=True) is not supported by the fused kernels; "
                    'use gflv2.use_backend("reference") for it'
                )
            return backward(ctx, *gradients)

        return checked

    return decorate


def no_vmap(op: str, library: torch.library.Library) -> None:
    """Make ``torch.vmap`` over a fused operation say what to do instead."""

    def refuse(*_: Any) -> None:
        raise RuntimeError(
            f"{op}: vmap is not supported by the fused kernels: they take the whole batch in one call; "
            'use gflv2.use_backend("reference") for it'
        )

    torch.library.register_vmap(f"gflv2::{op}", refuse, lib=library)
