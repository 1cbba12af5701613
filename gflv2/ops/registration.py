"""How an operation is made known to torch: schema, implementation, shapes, gradient and refusals, the same way for all.

An operation's file says what it computes; everything that torch wants to know beside that stands here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2.ops.checks import compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.observed import ordinary
from gflv2.ops.one_pass import one_pass

_LIBRARY = torch.library.Library("gflv2", "FRAGMENT")
_KEYS = ("CPU", "CUDA")
Argument = Any  # of a registered operation: Tensor | None | list[Tensor], or a setting
REFERENCE_INSTEAD = 'use gflv2.use_backend("reference") for it'


def register(name: str, schema: str, run: Callable, fake: Callable, *, vmap: bool = False) -> Callable[..., Any]:
    """Register one function with torch, and return it as torch calls it.

    Args:
        schema: arguments and results, without the name.
        run: the implementation on every device.
        fake: takes the same arguments, and returns empty results.
        vmap: False: ``torch.vmap`` over it is refused, with what to do instead. True: torch loops over the batch.
    """
    _LIBRARY.define(f"{name}{schema}")
    for key in _KEYS:
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"gflv2::{name}", fake, lib=_LIBRARY)
    if not vmap:

        def refuse(*_: Any) -> None:
            text = f"{name}: vmap is not supported by the fused kernels: they take the whole batch in one call"
            raise RuntimeError(f"{text}; {REFERENCE_INSTEAD}")

        torch.library.register_vmap(f"gflv2::{name}", refuse, lib=_LIBRARY)
    return getattr(torch.ops.gflv2, name).default


def refuse_double_backward(name: str) -> None:
    """To be called by every fused backward pass: its result has no gradient of its own.

    Without this, ``create_graph=True`` would give second derivatives that silently miss this operation's part.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        text = f"{name}: double backward (create_graph=True) is not supported by the fused kernels"
        raise RuntimeError(f"{text}; {REFERENCE_INSTEAD}")


def wants_gradient(*arguments: Argument) -> bool:
    """Whether autograd has to record an operation on these tensors or lists of tensors."""
    if not torch.is_grad_enabled():
        return False
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            for tensor in argument:
                if tensor.requires_grad:
                    return True
        elif argument is not None and argument.requires_grad:
            return True
    return False


# How the memory of a gradient is laid out; its dtype is that of its tensor.
def like_map(tensor: Tensor) -> Tensor:
    """With the strides of its tensor."""
    return torch.empty_like(tensor)


def as_rows(tensor: Tensor) -> Tensor:
    """Contiguous."""
    return tensor.new_empty(tensor.shape)


class Operation:
    """A fused operation as torch knows it: ``gflv2::name``, ``gflv2::name_backward``, and how autograd joins them.

    A call has tensors first (each a tensor, None, or a list of tensors), then settings, then the backend.
    """

    def __init__(
        self,
        name: str,
        *,
        tensors: str,
        settings: str,
        new_results: Callable[..., Any],
        forward: Callable[..., None],
        returns: str = "Tensor",
        small: Sequence[str] = (),
        arithmetic: Callable[[torch.dtype], torch.dtype] = compute_dtype,
        gradients: dict[str, Callable[[Tensor], Tensor]] | None = None,
        backward: Callable[..., None] | None = None,
        module: str | None = None,
        together: bool = False,
    ) -> None:
        """Register it.

        Args:
            tensors, settings: their schemas.
            new_results: takes a call's arguments without the backend, and returns the results' memory.
            forward: (kernels, results, *arguments) fills it. ``kernels`` is the backend's module.
            small: the tensors that a call converts: contiguous, integers to int64, numbers to the dtype of the
                arithmetic. Autograd records that, so that their gradient is rounded once.
            arithmetic: gives this dtype from that of the first tensor.
            gradients: the differentiable tensors, in the order of ``tensors``, and the layout of their gradients.
            backward: (kernels, grad, gradients, results, *arguments) fills the gradients; those that are not wanted
                are None, or empty lists. With ``grad`` None it means 1, and the results are filled too.
            module: file name of the kernels, where it is not the operation's.
            together: on a CPU value and gradient come from one pass (`gflv2.ops.one_pass`); the settings then end
                with the reduction.
        """
        self.name = name
        self.module = module or name
        self.new_results, self.fill, self.fill_gradients = new_results, forward, backward
        names = [argument.split()[-1] for argument in tensors.split(", ")]
        self._lists = [argument.startswith("Tensor[]") for argument in tensors.split(", ")]
        self._small, self._arithmetic = [names.index(name) for name in small], arithmetic
        self.layouts = [(names.index(name), layout) for name, layout in (gradients or {}).items()]
        arguments = ", ".join(part for part in (tensors, settings, "str backend") if part)
        self.call = register(name, f"({arguments}) -> {returns}", self._run, self._fake)
        if backward is not None:
            schema = f"(Tensor grad, {arguments}, bool[] needs) -> Tensor[]"
            self.call_backward = register(
                f"{name}_backward", schema, self._run_backward, self._fake_backward, vmap=True
            )
            self._function = _function_of(self, together)

    def __call__(self, tensors: Sequence[Argument], settings: Sequence[Any]) -> Any:
        """Run it, recorded by autograd where one of the tensors needs that.

        Args:
            tensors: lists where the schema has lists; `small` ones in any dtype.
            settings: the backend last.
        """
        dtype = self._arithmetic(_first(tensors[0]).dtype)
        tensors = list(tensors)
        for place in self._small:
            if tensors[place] is not None:
                tensors[place] = convert(tensors[place], dtype)
        if not (torch.is_grad_enabled() and wants_gradient(*[tensors[place] for place, _ in self.layouts])):
            run = self._run if ordinary(tensors) else self.call
            return run(*tensors, *settings)
        # Flat: a list given to `apply` would get no gradient, silently.
        counts: list[int | None] = []
        flat: list[Tensor | None] = []
        for tensor in tensors:
            if isinstance(tensor, (list, tuple)):
                counts.append(len(tensor))
                flat += tensor
            else:
                counts.append(None)
                flat.append(tensor)
        return self._function.apply(tuple(counts), tuple(settings), *flat)

    def with_gradients(self, arguments: Sequence[Argument], backend: str, needs: Sequence[bool]) -> tuple[Any, list]:
        """Results and flat gradients for an upstream gradient of 1, from one pass; where `one_pass` allows it."""
        results, gradients = self.new_results(*arguments), self._new_gradients(arguments, needs)
        if _has_elements(arguments[0]):
            kernels = implementation(self.module, backend)
            self.fill_gradients(kernels, None, self.grouped(gradients, arguments, needs), results, *arguments)
        else:
            _zero(results, *gradients)
        return results, gradients

    def grouped(self, flat: Sequence[Tensor], arguments: Sequence[Argument], needs: Sequence[bool]) -> list[Argument]:
        """Flat gradients as the differentiable arguments have them: those that are not needed None, or empty."""
        groups, first = [], 0
        for (place, _), need in zip(self.layouts, needs, strict=True):
            several = self._lists[place]
            size = (len(arguments[place]) if several else 1) if need else 0
            groups.append(list(flat[first : first + size]) if several else flat[first] if need else None)
            first += size
        return groups

    def _new_gradients(self, arguments: Sequence[Argument], needs: Sequence[bool]) -> list[Tensor]:
        found = []
        for (place, new), need in zip(self.layouts, needs, strict=False):
            if need:
                argument = arguments[place]
                found += map(new, argument) if self._lists[place] else [new(argument)]
        return found

    # --- What torch calls ---

    def _run(self, *arguments: Argument) -> Any:
        *arguments, backend = arguments
        results = self.new_results(*arguments)
        if self.layouts and not _has_elements(arguments[0]):
            _zero(results)  # a loss of nothing
        else:
            self.fill(implementation(self.module, backend), results, *arguments)
        return results

    def _fake(self, *arguments: Argument) -> Any:
        return self.new_results(*arguments[:-1])

    def _run_backward(self, grad: Tensor, *arguments: Argument) -> list[Tensor]:
        *arguments, backend, needs = arguments
        gradients = self._new_gradients(arguments, needs)
        if not _has_elements(arguments[0]):
            return [gradient.zero_() for gradient in gradients]
        groups = self.grouped(gradients, arguments, needs)
        self.fill_gradients(implementation(self.module, backend), grad.contiguous(), groups, None, *arguments)
        return gradients

    def _fake_backward(self, grad: Tensor, *arguments: Argument) -> list[Tensor]:
        return self._new_gradients(arguments, arguments[-1])


def _function_of(operation: Operation, together: bool) -> type[torch.autograd.Function]:
    """The autograd.Function of an operation."""
    name = operation.name
    places = [place for place, _ in operation.layouts]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, counts: tuple[int | None, ...], settings: tuple[Any, ...], *flat: Tensor | None) -> Any:
            ctx.save_for_backward(*flat)
            ctx.counts, ctx.settings = counts, settings
            arguments = regroup(flat, counts)
            ctx.one_pass = together and one_pass(settings[-1], settings[-2], *_flatten(arguments, places))
            if not ctx.one_pass:
                run = operation._run if ordinary(flat) else operation.call
                return run(*arguments, *settings)
            arguments += settings[:-1]
            result, ctx.prepared = operation.with_gradients(arguments, settings[-1], _needs(ctx, counts, places)[0])
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            refuse_double_backward(name)
            # Asked for once: under activation checkpointing each time computes forward anew.
            saved = ctx.saved_tensors
            arguments, settings = regroup(saved, ctx.counts), ctx.settings
            needs, spans = _needs(ctx, ctx.counts, places)
            plain = ordinary((grad, *saved))
            if ctx.one_pass and plain:
                given = [*arguments, *settings[:-1]]
                gradients = prepared(ctx, grad, lambda: operation.with_gradients(given, settings[-1], needs)[1])
            else:
                run = operation._run_backward if plain else operation.call_backward
                gradients = run(grad, *arguments, *settings, needs)
            flat: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
            first = 0
            for (begin, end), need in zip(spans, needs, strict=True):
                if need:
                    flat[begin:end] = gradients[first : first + end - begin]
                    first += end - begin
            return tuple(flat)

    Function.__name__ = Function.__qualname__ = f"{name}_function"
    return Function


def prepared(ctx: Any, upstream: Tensor, again: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The gradients times the upstream gradient, for a backward pass whose forward pass left them.

    Args:
        ctx: of an autograd.Function; ``ctx.prepared`` holds the gradients for an upstream gradient of 1.
        upstream: (), and `ordinary`: what is traced here would run more than once.
        again: computes them once more, for a graph that was retained.
    """
    found = ctx.__dict__.pop("prepared", None)
    if found is None:
        found = again()
    if float(upstream) != 1.0:  # 1: a loss that is only added to others
        for gradient in found:
            gradient.mul_(upstream)
    return found


def regroup(flat: Sequence[Tensor | None], counts: Sequence[int | None]) -> list[Argument]:
    """Flat tensors as the arguments of a registered operation; a count says how many belong to a list."""
    arguments, first = [], 0
    for count in counts:
        if count is None:
            arguments.append(flat[first])
            first += 1
        else:
            arguments.append(list(flat[first : first + count]))
            first += count
    return arguments


def _needs(ctx: Any, counts: Sequence[int | None], places: Sequence[int]) -> tuple[list[bool], list[tuple[int, int]]]:
    """Which differentiable arguments need a gradient, and where they stand among the inputs of the Function."""
    wanted, starts, first = ctx.needs_input_grad, [], 2
    for count in counts:
        starts.append((first, first + (1 if count is None else count)))
        first = starts[-1][1]
    spans = [starts[place] for place in places]
    return [any(wanted[begin:end]) for begin, end in spans], spans


def _flatten(arguments: Sequence[Argument], places: Sequence[int]) -> list[Tensor | None]:
    flat: list[Tensor | None] = []
    for place in places:
        argument = arguments[place]
        if isinstance(argument, list):
            flat += argument
        else:
            flat.append(argument)
    return flat


def convert(argument: Argument, dtype: torch.dtype) -> Argument:
    """A small argument as kernels take it: contiguous; integers are int64, numbers have the dtype of the arithmetic."""
    if argument is None:
        return None
    if isinstance(argument, (list, tuple)):
        return [convert(tensor, dtype) for tensor in argument]
    # Asking costs a third of what `to` does.
    if (argument.dtype == dtype or argument.dtype == torch.int64) and argument.is_contiguous():
        return argument
    return argument.to(dtype if argument.is_floating_point() else torch.int64).contiguous()


def _first(argument: Tensor | list[Tensor]) -> Tensor:
    return argument[0] if isinstance(argument, (list, tuple)) else argument


def _has_elements(argument: Tensor | list[Tensor]) -> bool:
    if isinstance(argument, Tensor):
        return argument.numel() > 0
    for tensor in argument:
        if tensor.numel() > 0:
            return True
    return False


def _zero(*results: Any) -> None:
    for result in results:
        if isinstance(result, Tensor):
            result.zero_()
        else:
            _zero(*result)
