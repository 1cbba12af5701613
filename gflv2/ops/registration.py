"""How an operation is made known to torch: schema, implementation, shapes, gradient and refusals, the same way for all.

An operation's file says what it computes; everything that torch wants to know beside that stands here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gflv2.ops import backends
from gflv2.ops.checks import compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.observed import ordinary, saving_is_observed
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


def refuse_forward_mode(name: str, tensors: Sequence[Argument]) -> None:
    """Refuse tensors that carry a forward-mode derivative: without this it would silently be 0 from here on."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    for tensor in flatten(tensors):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            text = f"{name}: forward-mode derivatives (jvp, jacfwd) are not supported by the fused kernels"
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
    return torch.empty_like(tensor) if tensor.is_contiguous() else tensor.new_empty(tensor.shape)


def with_result(result: Tensor | None) -> tuple[Tensor, ...]:
    """The last argument of a kernel's backward pass, where it forms the result too; kernels on a GPU do not."""
    return () if result is None else (result,)


class Operation:
    """A fused operation as torch knows it: ``gflv2::name``, ``gflv2::name_backward``, and how autograd joins them.

    A call has tensors first (each a tensor, None, or a list of tensors), then settings, then the backend.
    """

    def __init__(
        self,
        name: str,
        *,
        describe: Callable[..., backends.Call],
        tensors: str,
        settings: str,
        new_results: Callable[..., Any],
        forward: Callable[..., None],
        returns: str = "Tensor",
        small: Sequence[str] = (),
        indices: Sequence[str] = (),
        arithmetic: Callable[[torch.dtype], torch.dtype] = compute_dtype,
        gradients: dict[str, Callable[[Tensor], Tensor]] | None = None,
        backward: Callable[..., None] | None = None,
        module: str | None = None,
        together: bool = False,
        refusals: dict[str, Callable[[backends.Call], str | None] | None] = backends.EVERYWHERE,
    ) -> None:
        """Register it.

        Args:
            describe: turns the arguments of the public function into a `Call`, as `backends.register` has it.
            tensors, settings: their schemas.
            new_results: takes a call's arguments without the backend, and returns the results' memory.
            forward: (kernels, results, *arguments) fills it. ``kernels`` is the backend's module.
            small: the tensors that a call makes contiguous and converts to the dtype of the arithmetic, whatever theirs
                is. Autograd records that, so that their gradient is rounded once.
            indices: those that it converts to int64.
            arithmetic: gives this dtype from that of the first tensor.
            gradients: the differentiable tensors, in the order of ``tensors``, and the layout of their gradients.
            backward: (kernels, grad, gradients, results, *arguments) fills the gradients; those that are not wanted
                are None, or empty lists. With ``grad`` None it means 1, and the results are filled too.
            module: file name of the kernels, where it is not the operation's.
            together: on a CPU value and gradient come from one pass (`gflv2.ops.one_pass`); the settings then end
                with the reduction.
            refusals: the backends that have it, and why each cannot take a call, as `backends.register` has them.
        """
        backends.register(name, refusals, describe)
        OPERATIONS[name] = self
        self.name = name
        self.module = module or name
        self.new_results, self.fill, self.fill_gradients = new_results, forward, backward
        names = [argument.split()[-1] for argument in tensors.split(", ")]
        self._has_lists = "Tensor[]" in tensors
        self._small, self._indices = ([names.index(name) for name in group] for group in (small, indices))
        self._arithmetic = arithmetic
        self.layouts = [(names.index(name), layout) for name, layout in (gradients or {}).items()]
        arguments = ", ".join(part for part in (tensors, settings, "str backend") if part)
        self.call = register(name, f"({arguments}) -> {returns}", self._registered, self._fake)
        # A gradient that comes as one tensor, not as a list, can be batched by torch (is_grads_batched).
        self._one_gradient = len(self.layouts) == 1 and f"Tensor[] {names[self.layouts[0][0]]}" not in tensors
        if backward is not None:
            schema = f"(Tensor grad, {arguments}, bool[] needs) -> Tensor{'' if self._one_gradient else '[]'}"
            run, fake = self._registered_backward, self._fake_backward
            self.call_backward = register(f"{name}_backward", schema, run, fake, vmap=True)
            self._function = _function_of(self, together)

    def __call__(self, tensors: Sequence[Argument], settings: Sequence[Any]) -> Any:
        """Run it, recorded by autograd where one of the tensors needs that.

        Args:
            tensors: lists where the schema has lists; `small` ones in any dtype.
            settings: the backend last.
        """
        refuse_forward_mode(self.name, tensors)
        if not (torch.is_grad_enabled() and wants_gradient(*[tensors[place] for place, _ in self.layouts])):
            return self.constant(tensors, settings)
        tensors = self._converted(tensors)
        # Flat: a list given to `apply` would get no gradient, silently.
        if not self._has_lists:
            return self._function.apply(None, settings, *tensors)
        counts: list[int | None] = []
        flat: list[Tensor | None] = []
        for tensor in tensors:
            if isinstance(tensor, (list, tuple)):
                counts.append(len(tensor))
                flat += tensor
            else:
                counts.append(None)
                flat.append(tensor)
        return self._function.apply(counts, settings, *flat)

    def constant(self, tensors: Sequence[Argument], settings: Sequence[Any]) -> Any:
        """Run it without gradients, whatever the tensors need."""
        tensors = self._converted(tensors)
        if ordinary(tensors):
            return self._run(*tensors, *settings)
        with torch.no_grad():
            return self.call(*tensors, *settings)

    def _converted(self, tensors: Sequence[Argument]) -> list[Argument]:
        """The tensors of a call, with the `small` ones as the kernels take them."""
        dtype, converted = self._arithmetic(_first(tensors[0]).dtype), list(tensors)
        for place in self._small:
            if converted[place] is not None:
                converted[place] = convert(converted[place], dtype)
        for place in self._indices:
            if converted[place] is not None:
                converted[place] = convert(converted[place], torch.int64)
        return converted

    def with_gradients(self, arguments: Sequence[Argument], backend: str, needs: Sequence[bool]) -> tuple[Any, list]:
        """Results, and gradients for an upstream gradient of 1, from one pass; where `one_pass` allows it.

        Args:
            needs: which differentiable arguments need a gradient. The gradients come in this order, as their arguments
                do: those that are not needed None, or an empty list.
        """
        results, gradients = self.new_results(*arguments), self._new_gradients(arguments, needs)
        if _has_elements(arguments[0]):
            self.fill_gradients(implementation(self.module, backend), None, gradients, results, *arguments)
        else:
            _zero(results, *gradients)
        return results, gradients

    def _new_gradients(self, arguments: Sequence[Argument], needs: Sequence[bool]) -> list[Argument]:
        gradients: list[Argument] = []
        for (place, new), need in zip(self.layouts, needs, strict=True):
            argument = arguments[place]
            if isinstance(argument, (list, tuple)):
                gradients.append([new(tensor) for tensor in argument] if need else [])
            else:
                gradients.append(new(argument) if need else None)
        return gradients

    def run_backward(self, grad: Tensor, arguments: Sequence[Argument], backend: str, needs: Sequence[bool]) -> list:
        """The gradients of `with_gradients`, for any upstream gradient."""
        gradients = self._new_gradients(arguments, needs)
        if _has_elements(arguments[0]):
            kernels = implementation(self.module, backend)
            self.fill_gradients(kernels, grad.contiguous(), gradients, None, *arguments)
        else:
            _zero(*gradients)
        return gradients

    def _run(self, *arguments: Argument) -> Any:
        *arguments, backend = arguments
        results = self.new_results(*arguments)
        if self.layouts and not _has_elements(arguments[0]):
            _zero(results)  # a loss of nothing
        else:
            self.fill(implementation(self.module, backend), results, *arguments)
        return results

    # --- What torch calls. Somebody may call it by hand: small tensors in another dtype must not be misread. ---

    def _registered(self, *arguments: Argument) -> Any:
        return self._run(*self._converted(arguments))

    def _fake(self, *arguments: Argument) -> Any:
        return self.new_results(*arguments[:-1])

    def _registered_backward(self, grad: Tensor, *arguments: Argument) -> Tensor | list[Tensor]:
        *arguments, backend, needs = arguments
        gradients = flatten(self.run_backward(grad, self._converted(arguments), backend, needs))
        given = flatten([arguments[place] for (place, _), need in zip(self.layouts, needs, strict=True) if need])
        gradients = [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, given, strict=True)]
        return gradients[0] if self._one_gradient else gradients

    def _fake_backward(self, grad: Tensor, *arguments: Argument) -> Tensor | list[Tensor]:
        *arguments, _, needs = arguments
        gradients = flatten(self._new_gradients(arguments, needs))
        return gradients[0] if self._one_gradient else gradients


# torch 2.9 compiles what a global names, but no object that a function has enclosed.
OPERATIONS: dict[str, Operation] = {}


def _function_of(operation: Operation, together: bool) -> type[torch.autograd.Function]:
    """The autograd.Function of an operation.

    Its inputs: how many tensors belong to each argument (see `regroup`), the settings, the tensors.
    """
    name = operation.name
    places = [place for place, _ in operation.layouts]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, counts: Sequence[int | None] | None, settings: Sequence[Any], *flat: Tensor | None
        ) -> Any:
            operation = OPERATIONS[name]
            ctx.save_for_backward(*flat)
            ctx.counts, ctx.settings = counts, settings
            arguments, backend = regroup(flat, counts), settings[-1]
            ctx.plain = ordinary(flat)
            # A hook may give back an equal tensor with other strides.
            ctx.hooked = ctx.plain and saving_is_observed()
            ctx.one_pass = False
            if together and ctx.plain and backend == "cpu":
                trained = flatten([arguments[place] for place in places])
                ctx.one_pass = one_pass(backend, settings[-2], trained)
            if ctx.one_pass:
                needs = _needs(ctx, counts, places)[0]
                result, ctx.prepared = operation.with_gradients((*arguments, *settings[:-1]), backend, needs)
                return result
            run = operation._run if ctx.plain else operation.call
            return run(*arguments, *settings)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            refuse_double_backward(name)
            operation = OPERATIONS[name]
            # Asked for once: under activation checkpointing each time computes forward anew.
            arguments = regroup(ctx.saved_tensors, ctx.counts)
            if ctx.hooked:
                arguments = operation._converted(arguments)
            *settings, backend = ctx.settings
            needs, spans = _needs(ctx, ctx.counts, places)
            given = (*arguments, *settings)
            if not (ctx.plain and ordinary((grad,))):
                gradients = operation.call_backward(grad, *given, backend, needs)
                gradients = [gradients] if isinstance(gradients, Tensor) else gradients
            elif ctx.one_pass:
                gradients = flatten(prepared(ctx, grad, lambda: operation.with_gradients(given, backend, needs)[1]))
            else:
                gradients = flatten(operation.run_backward(grad, given, backend, needs))
            inputs: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
            first = 0
            for (begin, end), need in zip(spans, needs, strict=True):
                if need:
                    inputs[begin:end] = gradients[first : first + end - begin]
                    first += end - begin
            return tuple(inputs)

    Function.__name__ = Function.__qualname__ = f"{name}_function"
    return Function


def prepared(ctx: Any, upstream: Tensor, again: Callable[[], list[Argument]]) -> list[Argument]:
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
        for gradient in flatten(found):
            gradient.mul_(upstream)
    return found


def regroup(flat: Sequence[Tensor | None], counts: Sequence[int | None] | None) -> Sequence[Argument]:
    """Flat tensors as the arguments of a registered operation.

    Args:
        counts: how many tensors belong to each argument; None: one, and no list. Without counts no argument is a list.
    """
    if counts is None:
        return flat
    arguments, first = [], 0
    for count in counts:
        if count is None:
            arguments.append(flat[first])
            first += 1
        else:
            arguments.append(list(flat[first : first + count]))
            first += count
    return arguments


def flatten(arguments: Sequence[Argument]) -> list[Tensor]:
    """The tensors of arguments or gradients, without those that are None."""
    flat: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            flat += argument
        elif argument is not None:
            flat.append(argument)
    return flat


def _needs(
    ctx: Any, counts: Sequence[int | None] | None, places: Sequence[int]
) -> tuple[list[bool], list[tuple[int, int]]]:
    """Which differentiable arguments need a gradient, and where they stand among the inputs of the Function."""
    wanted, first = ctx.needs_input_grad, 2
    if counts is None:
        return [wanted[first + place] for place in places], [(first + place, first + place + 1) for place in places]
    starts = []
    for count in counts:
        starts.append((first, first + (1 if count is None else count)))
        first = starts[-1][1]
    spans = [starts[place] for place in places]
    return [True in wanted[begin:end] for begin, end in spans], spans


def convert(argument: Argument, dtype: torch.dtype) -> Argument:
    """A small argument, or several, as kernels take them: contiguous, in a dtype."""
    if isinstance(argument, (list, tuple)):
        return [tensor if _is_converted(tensor, dtype) else convert(tensor, dtype) for tensor in argument]
    if _is_converted(argument, dtype):
        return argument
    return argument.to(dtype).contiguous()


def _is_converted(tensor: Tensor | None, dtype: torch.dtype) -> bool:
    # Asking costs a third of what `to` does.
    return tensor is None or (tensor.dtype == dtype and tensor.is_contiguous())


def _first(argument: Tensor | list[Tensor]) -> Tensor:
    return argument[0] if isinstance(argument, (list, tuple)) else argument


def _has_elements(argument: Tensor | list[Tensor]) -> bool:
    if isinstance(argument, Tensor):
        return argument.numel() > 0
    for tensor in argument:
        if tensor.numel() > 0:
            return True
    return False


def _zero(*results: Argument) -> None:
    for result in results:
        if isinstance(result, Tensor):
            result.zero_()
        elif result is not None:
            _zero(*result)
