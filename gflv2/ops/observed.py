"""Does torch only execute, or does something observe the call: a compiler, tracer, mode, transform or profiler?

An observed call goes through torch's dispatcher, so that the observer sees the registered operation. A call that nobody
observes runs its implementation at once, which saves the dispatcher's packing and unpacking of every argument.

The private functions of torch that this package asks stand here and nowhere else; tests/ops/test_observed.py says what
they must answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_included = torch._C._dispatch_tls_is_dispatch_key_included
_OLD_VMAP = torch._C._dispatch_key_parse("VmapMode")  # of `is_grads_batched`
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_tracing_state = torch._C._get_tracing_state


def ordinary(arguments: Iterable[Any]) -> bool:
    """Whether these are plain tensors in eager code that nobody observes.

    Args:
        arguments: tensors, None, and lists of tensors.
    """
    if torch.compiler.is_compiling() or _modes() > 0 or _transforms() is not None or _included(_OLD_VMAP):
        return False
    if _tracing_state() is not None or profiler._is_profiler_enabled:
        return False
    # A tensor may be negated lazily (the imaginary part of a conjugate): only the dispatcher reads it as what it means.
    for argument in arguments:
        if argument is None:
            continue
        if type(argument) in _PLAIN:
            if argument.is_neg():
                return False
        elif isinstance(argument, (list, tuple)):
            for tensor in argument:
                if type(tensor) not in _PLAIN or tensor.is_neg():
                    return False
        else:
            return False
    return True


def saving_is_observed() -> bool:
    """Whether a hook sees the tensors that are saved for backward, as activation checkpointing sets one."""
    return _saved_tensors_hooks(True) is not None
