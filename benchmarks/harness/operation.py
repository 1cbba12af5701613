"""What a benchmark of one operation has to say; the rest is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import TINY, Case


@dataclass
class Inputs:
    """One call's arguments. ``leaves`` are the tensors among them that get a gradient."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)


class Operation:
    """A benchmark: one file of this folder, with an instance called ``OPERATION``.

    Attributes:
        name: the operation's, and the file's.
        axes: the facts of a case that matter, in the order of the column ``case``.
        curves: fact → values; each is varied alone, from the case that ``curve_base`` gives.
        mode: None: forward, backward and both are measured; else the one mode that there is.
        forms: eager plain-PyTorch forms, name → function of the operation's own arguments. The fastest counts.
        static_form: the form to compile where the fastest one is of no use to a compiler, because its shapes depend on
            the data.
        compiles: whether torch.compile has anything to work on; False where most of it is another package's operator.
        peers: other packages' functions, name → function of a case that returns one of the operation's arguments.
    """

    name = ""
    axes: tuple[str, ...] = ()
    curves: dict[str, tuple[Any, ...]] = {}
    mode: str | None = None
    forms: dict[str, Callable[..., Any]] = {}
    static_form: str | None = None
    compiles = True
    peers: dict[str, Callable[[Case], Callable[..., Any]]] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """This project's operation."""
        raise NotImplementedError

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """Its definition in plain PyTorch, which also counts as an eager form."""
        raise NotImplementedError

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        raise NotImplementedError

    def calls(self, inputs: Inputs) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
        """The registered operations that ``run`` calls, with their arguments, to ask which backends can take them."""
        return [(self.name, inputs.args, inputs.kwargs)]

    def differentiated(self, result: Any) -> list[Tensor]:
        """The tensors of a result that gradients flow from."""
        return [result] if isinstance(result, Tensor) else [value for value in result if value.requires_grad]

    def moved(self, case: Case) -> dict[str, int]:
        """Bytes that must move in each mode: every input read once, every output written once. Empty: not counted."""
        return {}

    def bases(self, device: torch.device) -> list[Case]:
        """The cases that everything is measured at."""
        if device.type == "cuda":
            half = Case(batch=16, dtype="bfloat16")
            return [half, half.but(layout="channels_last"), Case(batch=16)]
        return [Case()]

    def curve_base(self, device: torch.device) -> Case:
        """Where the curves start: smaller on a CPU."""
        return Case(batch=8, dtype="bfloat16") if device.type == "cuda" else Case(batch=1, size=(640, 640))

    def tiny(self) -> Case:
        """For the tests of the machinery."""
        return TINY

    def curve_cases(self, device: torch.device) -> list[Case]:
        """The cases of the curves, their common start first; none for an operation without curves."""
        base = self.curve_base(device)
        cases = [base] if self.curves else []
        for axis, values in self.curves.items():
            cases += [base.but(**{axis: value}) for value in values if value != getattr(base, axis)]
        return cases


def both(forward: int, backward: int) -> dict[str, int]:
    """Bytes of the three modes from two."""
    return {"forward": forward, "backward": backward, "both": forward + backward}


def leaf(tensors: Sequence[Tensor] | Tensor) -> Any:
    """The same tensors, now asking for gradients."""
    if isinstance(tensors, Tensor):
        return tensors.requires_grad_()
    return [tensor.requires_grad_() for tensor in tensors]


# Values of the curves that several operations share.
SIZES = ((320, 320), (640, 640), (800, 1344), (1600, 2688))
BATCHES = (1, 2, 4, 8)
BOXES = (1, 10, 100, 1000, 5000)
CLASSES = (1, 80, 365, 1203)
REG_MAX = (8, 16, 32, 64)
