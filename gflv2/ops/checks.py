"""Argument checks: every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(value: Any) -> str:
    """A short text for an error message: type, shape, dtype and device of a tensor, else its repr."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return f"{type(value).__name__} of [{', '.join(describe(item) for item in value)}]"
    return f"{value!r} ({type(value).__name__})"


def bad_value(name: str, expected: str, got: Any) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}, got {describe(got)}")


def bad_type(name: str, expected: str, got: Any) -> NoReturn:
    raise TypeError(f"{name}: expected {expected}, got {describe(got)}")


def check_tensor(
    value: Any,
    name: str,
    *,
    shape: Sequence[int | None] | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
    device: torch.device | None = None,
) -> Tensor:
    """Check type, dtype, shape (None matches any size) and device of one tensor argument, and return it."""
    if not isinstance(value, Tensor):
        bad_type(name, "a tensor", value)
    if value.dtype not in dtypes:
        bad_type(name, "a tensor of " + " or ".join(str(d).removeprefix("torch.") for d in dtypes), value)
    if shape is not None:
        sizes = value.shape
        same = len(sizes) == len(shape)
        if same:
            for want, have in zip(shape, sizes):  # noqa: B905 (strict= costs time in every call)
                if want is not None and want != have:
                    same = False
                    break
        if not same:
            text = ", ".join("*" if size is None else str(size) for size in shape)
            bad_value(name, f"a tensor of shape ({text})", value)
    if device is not None and value.device != device:
        bad_value(name, f"a tensor on {device} like the other arguments", value)
    return value


def is_number(value: Any) -> bool:
    """Whether it is a real number; True is none."""
    # Numbers of NumPy are none of Python's.
    return not isinstance(value, bool) and (isinstance(value, (int, float)) or isinstance(value, numbers.Real))


def check_number(
    value: Any, name: str, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> Any:
    """Check a finite number within bounds, and return it; ``above`` itself is too small."""
    known = is_number(value)
    if known and above < value < math.inf and least <= value <= most:
        return value
    expected = "a finite number"
    bounded = max(above, least) > -math.inf
    if bounded and most < math.inf:
        expected = "a number in " + (f"({above:g}" if above >= least else f"[{least:g}") + f", {most:g}]"
    elif bounded:
        expected += f" > {above:g}" if above >= least else f" ≥ {least:g}"
    elif most < math.inf:
        expected += f" of at most {most:g}"
    (bad_value if known else bad_type)(name, expected, value)


def check_count(value: Any, name: str, least: int = 1) -> None:
    check_integer(value, name)
    if value < least:
        bad_value(name, f"at least {least}", value)


def check_integer(value: Any, name: str) -> None:
    """Check an integer of Python's or of NumPy's; True is none."""
    if isinstance(value, bool) or not (isinstance(value, int) or isinstance(value, numbers.Integral)):
        bad_type(name, "an integer", value)


def check_pairs(value: Any, name: str, expected: str, count: int | None = None) -> None:
    """Check a list of pairs of numbers, ``count`` of them where it is given."""
    if isinstance(value, Tensor) or not isinstance(value, (list, tuple)):
        bad_type(name, expected, value)
    if count is not None and len(value) != count:
        bad_value(name, expected, value)
    for pair in value:
        if not isinstance(pair, (list, tuple, Tensor)) or len(pair) != 2:
            bad_value(name, expected, value)
        for number in pair:
            if not (isinstance(number, (int, float)) or hasattr(number, "__float__")):
                bad_value(name, expected, value)


def check_choice(value: Any, name: str, choices: Sequence[Any]) -> Any:
    # An array has no truth value, and that of a tensor would wait for the device.
    if isinstance(value, Tensor) or getattr(value, "ndim", 0) > 0 or value not in choices:
        bad_value(name, "one of " + ", ".join(repr(choice) for choice in choices), value)
    return value


def values_are_checked() -> bool:
    """True under ``GFLV2_CHECK=1``: values on the device are checked too, at the price of a host sync."""
    return os.environ.get("GFLV2_CHECK", "0") == "1"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic and results: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32
