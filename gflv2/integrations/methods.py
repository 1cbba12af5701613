"""Methods of other packages' classes and the ones that stand in for them, where importing a name is not enough."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import numbers
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gflv2.integrations.common import Patch
from gflv2.integrations.report import Replaced, Stayed, full_name
from gflv2.ops import backends
from gflv2.ops.checks import bad_type
from gflv2.ops.integral import integral


class Method(NamedTuple):
    """A method of some class, and ours for it.

    Attributes:
        name: of the method.
        parameters: names of its first parameters after ``self``, which ours was written for; None: any name.
        build: the package's own method → ours.
    """

    name: str
    parameters: tuple[str | None, ...]
    build: Callable[[Callable], Callable]


def always(ours: Callable) -> Callable[[Callable], Callable]:
    """``Method.build`` of a method that never needs the package's own."""
    return lambda original: ours


class Replacements:
    """What an integration has replaced. Each call adds to it, or raises and changes nothing, until ``restore()``."""

    def __init__(self, package: str) -> None:
        """Nothing is replaced yet.

        Args:
            package: what errors and reports call the package.
        """
        self._package, self._patch = package, Patch()
        self._keys: dict[tuple[int, str], Any] = {}  # of owner and name

    def add(
        self,
        classes: Mapping[Any, type],
        methods: Mapping[Any, Method],
        functions: Mapping[Any, tuple[ModuleType, str, Callable]] | None = None,
    ) -> None:
        """Replace the method of each class, once all are known to be those that ours were written for.

        What is ours already stays as it is. While a model is traced or exported (TorchScript, ONNX, torch.export), the
        package's own methods run all the same: such a graph must run where gflv2 is not installed. A replaced method
        has the name and the module of ours; the package's own is its ``__wrapped__``.

        Args:
            classes: by any key; ``methods`` has these keys, too.
            functions: Python module, name and ours, by keys of their own.

        Raises:
            RuntimeError: another version of the package; then nothing is replaced.
        """
        new: list[tuple[Any, Any, str, Callable]] = []
        for key, owner in classes.items():
            method = methods[key]
            original = _known_method(owner, method, self._package)
            new.append((key, owner, method.name, _unless_exported(original, method.build(original))))
        new += [(key, *function) for key, function in (functions or {}).items()]
        for key, owner, name, ours in new:
            if not self._patch.holds(owner, name):
                self._patch.attribute(owner, name, ours)
                self._keys[id(owner), name] = key

    def keys(self) -> set[Any]:
        """Of all that is replaced now, by this call and by earlier ones."""
        return {self._keys[id(owner), name] for owner, name, _ in self._patch.attributes()}

    def replaced(self) -> tuple[Replaced, ...]:
        """All that is replaced now, in the order in which it was."""
        places = self._patch.attributes()
        return tuple(Replaced(f"{full_name(owner)}.{name}", full_name(ours)) for owner, name, ours in places)

    def restore(self) -> None:
        """Put the package's own back."""
        self._patch.restore()
        self._keys.clear()


def not_named(usual: Mapping[str, str], replaced: set[str]) -> tuple[Stayed, ...]:
    """What `find_classes` may be told to find, and neither this call nor an earlier one has replaced."""
    left = {key: path.rpartition(".")[2] for key, path in usual.items() if key not in replaced}
    return tuple(Stayed(f"{key} ({name})", "not named in this call") for key, name in left.items())


def find_classes(named: Mapping[str, type | None], usual: Mapping[str, str], repository: str) -> dict[str, type]:
    """The classes whose methods are to be replaced: those that the caller named, else all of a package.

    Args:
        named: class or None, by argument.
        usual: where the package has each, "module.Class".
        repository: where the package comes from, for the error.

    Raises:
        TypeError: an argument that is not a class.
        ModuleNotFoundError: nothing is named, and the package is not there.
    """
    for argument, value in named.items():
        if value is not None and not isinstance(value, type):
            bad_type(argument, "a class", value)
    chosen = {argument: value for argument, value in named.items() if value is not None}
    if chosen:
        return chosen
    package = next(iter(usual.values())).partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"the package {package!r} cannot be imported: git clone https://{repository} and put the clone on "
            f"PYTHONPATH, or name the classes: accelerate({'=…, '.join(usual)}=…)",
            name=package,
        )
    for argument, path in usual.items():
        module, _, name = path.rpartition(".")
        chosen[argument] = getattr(importlib.import_module(module), name)
    return chosen


def expected_distances(box_logits: Tensor, projection: Tensor) -> Tensor:
    """Expectation of ``projection`` (R,) over softmax(box logits): (…, 4, R) → (…, 4), in the dtype of the logits.

    Logits that a convolution left channels-first and a view turned into (B, A, 4, R) are read where they are.
    """
    *leading, sides, bins = box_logits.shape
    step = box_logits.stride(-1)
    if len(leading) == 2 and step != 1 and box_logits.stride(-2) == bins * step:
        level = box_logits.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(2)  # (B, 4·R, 1, A), no copy
        distances = integral([level], projection)
    else:
        distances = integral(box_logits.reshape(-1, sides, bins), projection)
    return distances.reshape(*leading, sides).to(box_logits.dtype)


def average_factor(value: Any, like: Tensor) -> Any:
    """What a package divides a loss by, as the operations take it.

    Args:
        value: a number, of any sign, or a tensor of one element of any shape; else it is returned as it is.
        like: a tensor on the device of the loss.
    """
    if isinstance(value, Tensor):
        return value.reshape(()) if value.numel() == 1 else value
    if not isinstance(value, numbers.Real):
        return value
    # The operations refuse a number that is not positive; the package divides by it.
    return float(value) if value > 0 else torch.full((), float(value), device=like.device)


def _known_method(owner: type, method: Method, package: str) -> Callable:
    where = f"{owner.__module__}.{owner.__qualname__}.{method.name}"
    wanted = f"{package}: expected a method {where}({', '.join(name or '*' for name in method.parameters)}), found"
    found = getattr(owner, method.name, None)
    if found is None:
        raise RuntimeError(f"{wanted} none: gflv2 does not know this version")
    names = tuple(inspect.signature(found).parameters)[1:]
    if len(names) < len(method.parameters) or any(
        known not in (None, name) for known, name in zip(method.parameters, names, strict=False)
    ):
        raise RuntimeError(f"{wanted} ({', '.join(names)}): gflv2 does not know this version")
    return found


def _unless_exported(original: Callable, ours: Callable) -> Callable:
    @functools.wraps(ours)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        exported = backends.exporting() or torch.jit.is_tracing()
        return (original if exported else ours)(self, *args, **kwargs)

    method.__wrapped__ = original  # type: ignore[attr-defined]
    return method
