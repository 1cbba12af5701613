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

_LIBRARY = torch.library.Library("gflv2", "FRAGMENT")
_KEYS = ("CPU", "CUDA")
Argument = Any  # of a registered operation: Tensor | None | list[Tensor], or a setting
Where = Sequence[Any] | None  # see `regroup`
REFERENCE_INSTEAD = 'use gflv2.use_backend("reference") for it'


def register(
    name: str,
    schema: str,
    run: Callable,
    fake: Callable,
    *,
    vmap: bool = False,
    title: Callable[[Sequence[Argument]], str] | None = None,
) -> Callable[..., Any]:
    """Register one function with torch, and return it as torch calls it.

    Args:
        schema: arguments and results, without the name.
        run: the implementation on every device.
        fake: takes the same arguments, and returns empty results.
        vmap: False: ``torch.vmap`` over it is refused, with what to do instead. True: torch loops over the batch.
        title: arguments → what that error calls it; None: the name.
    """
    _LIBRARY.define(f"{name}{schema}")
    for key in _KEYS:
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"gflv2::{name}", fake, lib=_LIBRARY)
    if not vmap:

        def refuse(info: Any, in_dims: Any, *arguments: Argument) -> None:
            called = name if title is None else title(arguments)
            text = f"{called}: vmap is not supported by the fused kernels: they take the whole batch in one call"
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


class Operation:
    """A fused operation as torch knows it: ``gflv2::name``, ``gflv2::name_backward``, and how autograd joins them.

    A call has tensors first (each a tensor, None, or a list of tensors), then settings, then the backend. Kernels get
    them by the names that the schema gives them, with the results, and in backward ``grad`` and ``grad_NAME`` of each
    tensor NAME that has a gradient.
    """

    def __init__(
        self,
        name: str,
        *,
        describe: Callable[..., backends.Call],
        tensors: str,
        settings: str,
        results: Sequence[str] = ("out",),
        new_results: Callable[..., Any],
        returns: str = "Tensor",
        small: Sequence[str] = (),
        indices: Sequence[str] = (),
        arithmetic: Callable[[torch.dtype], torch.dtype] = compute_dtype,
        gradients: dict[str, Callable[[Tensor], Tensor]] | None = None,
        kernels: str | None = None,
        fixed: dict[str, Any] | None = None,
        of_results: Sequence[str] = (),
        called: dict[Any, str] | None = None,
        refusals: dict[str, Callable[[backends.Call], str | None] | None] = backends.EVERYWHERE,
    ) -> None:
        """Register it.

        Args:
            describe: turns the arguments of the public function into a `Call`, as `backends.register` has it.
            tensors, settings: their schemas.
            results: their names; those that a call does not have are None to the kernels.
            new_results: takes a call's arguments without the backend, and returns the results' memory.
            small: the tensors that a call makes contiguous and converts to the dtype of the arithmetic, whatever theirs
                is. Autograd records that, so that their gradient is rounded once.
            indices: those that it converts to int64.
            arithmetic: gives this dtype from that of the first tensor.
            gradients: the differentiable tensors, in the order of ``tensors``, and the layout of their gradients. The
                kernels are NAME_forward and NAME_backward then; gradients that are not wanted are None, or empty lists.
            kernels: NAME, where it is not the operation's.
            fixed: empty lists of tensors that the kernels get beside the arguments.
            of_results: settings that decide on the results alone, which the kernels do not get.
            called: by the first setting, the functions that run it under other names than its own, for errors.
            refusals: the backends that have it, and why each cannot take a call, as `backends.register` has them.
        """
        backends.register(name, refusals, describe)
        OPERATIONS[name] = self
        self.name, self.new_results, self._called = name, new_results, called or {}
        self._module = kernels or name
        self._forward = f"{self._module}_forward" if gradients else self._module
        self._backward = f"{self._module}_backward"
        names = [argument.split()[-1] for argument in tensors.split(", ")]
        self._has_lists = "Tensor[]" in tensors
        self._small, self._indices = ([names.index(name) for name in group] for group in (small, indices))
        self._arithmetic = arithmetic
        self._names = names + [argument.split()[-1] for argument in settings.split(", ") if argument]
        self._results, self._fixed, self._of_results = results, fixed or {}, of_results
        self._fixed_gradients = {f"grad_{name}": value for name, value in self._fixed.items()}
        self.layouts = [(names.index(name), layout) for name, layout in (gradients or {}).items()]
        self._gradients = [f"grad_{name}" for name in gradients or ()]
        arguments = ", ".join(part for part in (tensors, settings, "str backend") if part)

        def title(given: Sequence[Argument]) -> str:
            return self.title(given[len(names) :])

        self.call = register(name, f"({arguments}) -> {returns}", self._registered, self._fake, title=title)
        # A gradient that comes as one tensor, not as a list, can be batched by torch (is_grads_batched).
        self._one_gradient = len(self.layouts) == 1 and f"Tensor[] {names[self.layouts[0][0]]}" not in tensors
        if gradients:
            schema = f"(Tensor grad, {arguments}, bool[] needs) -> Tensor{'' if self._one_gradient else '[]'}"
            run, fake = self._registered_backward, self._fake_backward
            self.call_backward = register(f"{name}_backward", schema, run, fake, vmap=True)
            self._function = _function_of(self)

    def __call__(self, tensors: Sequence[Argument], settings: Sequence[Any]) -> Any:
        """Run it, recorded by autograd where one of the tensors needs that.

        Args:
            tensors: lists where the schema has lists; `small` ones in any dtype.
            settings: the backend last.
        """
        refuse_forward_mode(self.title(settings), tensors)
        if not (torch.is_grad_enabled() and self._wants_gradient(tensors)):
            return self.constant(tensors, settings)
        tensors = self._converted(tensors)
        # Flat: a list given to `apply` would get no gradient, silently.
        if not self._has_lists:
            return self._function.apply(None, settings, *tensors)
        where: list[int | tuple[int, int]] = []
        flat: list[Tensor | None] = []
        for tensor in tensors:
            if isinstance(tensor, (list, tuple)):
                where.append((len(flat), len(flat) + len(tensor)))
                flat += tensor
            else:
                where.append(len(flat))
                flat.append(tensor)
        return self._function.apply(where, settings, *flat)

    def title(self, settings: Sequence[Any]) -> str:
        """The function that a call with these settings came from, by its name."""
        return self._called.get(settings[0], self.name) if self._called else self.name

    def _wants_gradient(self, tensors: Sequence[Argument]) -> bool:
        for place, _ in self.layouts:
            if wants_gradient(tensors[place]):
                return True
        return False

    def constant(self, tensors: Sequence[Argument], settings: Sequence[Any]) -> Any:
        """Run it without gradients, whatever the tensors need."""
        tensors = self._converted(tensors)
        if ordinary(tensors):
            return self.run(*tensors, *settings)
        with torch.no_grad():
            return self.call(*tensors, *settings)

    def _converted(self, tensors: Sequence[Argument]) -> list[Argument]:
        """The tensors of a call, with the `small` ones as the kernels take them."""
        dtype, converted = self._arithmetic(first_of(tensors[0]).dtype), list(tensors)
        for place in self._small:
            if converted[place] is not None:
                converted[place] = convert(converted[place], dtype)
        for place in self._indices:
            converted[place] = convert(converted[place], torch.int64)
        return converted

    def in_one_pass(self, settings: Sequence[Any], tensors: Sequence[Argument]) -> bool:
        """Whether value and gradient come from one pass, in a call that nobody observes: no, but for a `Loss`."""
        return False

    # --- What the kernels do ---

    def run(self, *arguments: Argument) -> Any:
        """The results. The backend is the last argument."""
        results = self.new_results(*arguments[:-1])
        self.fill(results, arguments[:-1], arguments[-1])
        return results

    def fill(self, results: Any, arguments: Sequence[Argument], backend: str) -> None:
        """Write the results."""
        if self._is_empty(results, arguments):
            return self._fill_empty(results, arguments)
        fields = self._fields(arguments)
        self._add_results(fields, results)
        getattr(implementation(self._module, backend), self._forward)(**fields)

    def gradients(
        self,
        grad: Tensor | None,
        arguments: Sequence[Argument],
        backend: str,
        needs: Sequence[bool],
        results: Any = None,
    ) -> list[Argument]:
        """Gradients in the order of their arguments and as these are; those not needed None, or an empty list.

        Args:
            grad: upstream, in any layout; None, where `in_one_pass` allows it: 1, and the ``results`` are written too.
            needs: which differentiable arguments need a gradient.
        """
        gradients = self._new_gradients(arguments, needs)
        self.fill_gradients(gradients, grad, arguments, backend, results)
        return gradients

    def fill_gradients(
        self,
        gradients: Sequence[Argument],
        grad: Tensor | None,
        arguments: Sequence[Argument],
        backend: str,
        results: Any = None,
    ) -> None:
        """`gradients`, in memory that is there already."""
        if not has_elements(arguments[0]):
            return _zero(results, *gradients)
        fields = self._fields(arguments)
        fields["grad"] = None if grad is None else grad.contiguous()
        if self._fixed:
            fields.update(self._fixed_gradients)
        fields.update(zip(self._gradients, gradients))  # noqa: B905
        if results is not None:
            self._add_results(fields, results)
        getattr(implementation(self._module, backend), self._backward)(**fields)

    def _fields(self, arguments: Sequence[Argument]) -> dict[str, Argument]:
        """Arguments by name, as the kernels take them."""
        fields = dict(zip(self._names, arguments))  # noqa: B905 (strict= costs time in every call)
        if self._fixed:
            fields.update(self._fixed)
        for name in self._of_results:
            del fields[name]
        return fields

    def _add_results(self, fields: dict[str, Argument], results: Any) -> None:
        if isinstance(results, Tensor):
            fields[self._results[0]] = results
            return
        fields.update(zip(self._results, results))  # noqa: B905
        for name in self._results[len(results) :]:
            fields[name] = None

    def _is_empty(self, results: Any, arguments: Sequence[Argument]) -> bool:
        return first_of(results).numel() == 0

    def _fill_empty(self, results: Any, arguments: Sequence[Argument]) -> None:
        """The results where no kernel runs."""
        _zero(results)

    def _new_gradients(self, arguments: Sequence[Argument], needs: Sequence[bool]) -> list[Argument]:
        gradients: list[Argument] = []
        for (place, new), need in zip(self.layouts, needs):  # noqa: B905
            argument = arguments[place]
            if isinstance(argument, (list, tuple)):
                gradients.append([new(tensor) for tensor in argument] if need else [])
            else:
                gradients.append(new(argument) if need else None)
        return gradients

    # --- What torch calls. Somebody may call it by hand: small tensors in another dtype must not be misread. ---

    def _registered(self, *arguments: Argument) -> Any:
        return self.run(*self._converted(arguments))

    def _fake(self, *arguments: Argument) -> Any:
        return self.new_results(*arguments[:-1])

    def _registered_backward(self, grad: Tensor, *arguments: Argument) -> Tensor | list[Tensor]:
        *arguments, backend, needs = arguments
        grad = grad.to(self._arithmetic(first_of(arguments[0]).dtype))
        gradients = flatten(self.gradients(grad, self._converted(arguments), backend, needs))
        given = flatten([arguments[place] for (place, _), need in zip(self.layouts, needs, strict=True) if need])
        gradients = [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, given, strict=True)]
        return gradients[0] if self._one_gradient else gradients

    def _fake_backward(self, grad: Tensor, *arguments: Argument) -> Tensor | list[Tensor]:
        *arguments, _, needs = arguments
        gradients = flatten(self._new_gradients(arguments, needs))
        return gradients[0] if self._one_gradient else gradients


# torch 2.9 compiles what a global names, but no object that a function has enclosed.
OPERATIONS: dict[str, Operation] = {}


def _function_of(operation: Operation) -> type[torch.autograd.Function]:
    """The autograd.Function of an operation.

    Its inputs: where the tensors of each argument are (see `regroup`), the settings, the tensors.
    """
    name = operation.name
    places = [place for place, _ in operation.layouts]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, where: Where, settings: Sequence[Any], *flat: Tensor | None) -> Any:
            operation = OPERATIONS[name]
            ctx.save_for_backward(*flat)
            ctx.where, ctx.settings = where, settings
            arguments = regroup(flat, where)
            ctx.plain = plain = ordinary(flat)
            # A hook may give back an equal tensor with other strides.
            ctx.hooked = plain and saving_is_observed()
            ctx.one_pass = plain and operation.in_one_pass(settings, arguments)
            if ctx.one_pass:
                given = (*arguments, *settings[:-1])
                result = operation.new_results(*given)
                ctx.prepared = operation.gradients(None, given, settings[-1], _needs(ctx, where, places), result)
                return result
            return operation.run(*arguments, *settings) if plain else operation.call(*arguments, *settings)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            operation = OPERATIONS[name]
            refuse_double_backward(operation.title(ctx.settings))
            # Asked for once: under activation checkpointing each time computes forward anew. And always: torch refuses
            # tensors that have changed since.
            saved = ctx.saved_tensors
            if ctx.one_pass and ordinary((grad,)):
                gradients = prepared(ctx, grad, lambda: _gradients(ctx, saved, operation, None, places))
            else:
                gradients = _gradients(ctx, saved, operation, grad, places)
            inputs: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 2)
            for place, gradient in zip(places, gradients):  # noqa: B905
                at = place if ctx.where is None else ctx.where[place]
                if isinstance(at, int):
                    inputs[at] = gradient
                elif gradient:
                    inputs[at[0] : at[1]] = gradient
            return (None, None, *inputs)

    Function.__name__ = Function.__qualname__ = f"{name}_function"
    return Function


def _gradients(
    ctx: Any, saved: Sequence[Tensor | None], operation: Operation, grad: Tensor | None, places: Sequence[int]
) -> list[Argument]:
    """As `Operation.gradients`, for what forward has saved."""
    needs, backend = _needs(ctx, ctx.where, places), ctx.settings[-1]
    arguments = regroup(saved, ctx.where)
    given = [*(operation._converted(arguments) if ctx.hooked else arguments), *ctx.settings[:-1]]
    if ctx.plain and (grad is None or ordinary((grad,))):
        return operation.gradients(grad, given, backend, needs)
    found = operation.call_backward(grad, *given, backend, needs)
    flat = iter([found] if isinstance(found, Tensor) else found)
    gradients: list[Argument] = []
    for place, need in zip(places, needs, strict=True):
        if isinstance(arguments[place], (list, tuple)):
            gradients.append([next(flat) for _ in arguments[place]] if need else [])
        else:
            gradients.append(next(flat) if need else None)
    return gradients


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


def regroup(flat: Sequence[Tensor | None], where: Where) -> Sequence[Argument]:
    """Flat tensors as the arguments of a registered operation.

    Args:
        where: the place of each argument's tensor; of an argument that is a list, the first place and the one behind
            the last. None: no argument is a list.
    """
    if where is None:
        return flat
    return [flat[at] if isinstance(at, int) else list(flat[at[0] : at[1]]) for at in where]


def flatten(arguments: Sequence[Argument]) -> list[Tensor]:
    """The tensors of arguments or gradients, without those that are None."""
    flat: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            flat += argument
        elif argument is not None:
            flat.append(argument)
    return flat


def _needs(ctx: Any, where: Where, places: Sequence[int]) -> list[bool]:
    """Which differentiable arguments need a gradient."""
    wanted = ctx.needs_input_grad[2:]
    if where is None:
        return [wanted[place] for place in places]
    return [wanted[at] if isinstance(at, int) else True in wanted[at[0] : at[1]] for at in (where[p] for p in places)]


def convert(argument: Argument, dtype: torch.dtype) -> Argument:
    """A small argument, or several, as kernels take them: contiguous, in a dtype."""
    # Asking costs a third of what `to` does.
    if isinstance(argument, Tensor):
        if argument.dtype == dtype and argument.is_contiguous():
            return argument
        return argument.to(dtype).contiguous()
    if argument is None:
        return None
    # In one expression: a batch has a tensor for each image.
    return [
        tensor if tensor is not None and tensor.dtype == dtype and tensor.is_contiguous() else convert(tensor, dtype)
        for tensor in argument
    ]


def first_of(argument: Tensor | None | list[Tensor]) -> Tensor | None:
    """An argument that is no list, or the first of a list."""
    return argument[0] if isinstance(argument, (list, tuple)) else argument


def constant(tensor: Tensor) -> Tensor:
    """The tensor, to which no gradient flows."""
    return tensor.detach() if tensor.requires_grad else tensor


def has_elements(argument: Tensor | list[Tensor]) -> bool:
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
