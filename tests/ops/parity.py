"""The rule of parity, for every operation: a result against the definition in float64, within `tolerances`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tests.ops import tolerances
from tests.ops.under_test import INTERPRETED

Results = Mapping[str, Tensor]  # results and gradients by name


class Measured(NamedTuple):
    """One result, at the element where it comes nearest to what is allowed, or exceeds it most."""

    op: str
    name: str
    dtype: torch.dtype  # of the result
    error: float  # NaN where a value is not finite
    allowed: float
    index: int  # flat
    eager_error: float  # the largest of the reference in float32

    @property
    def fine(self) -> bool:
        return self.error <= self.allowed


# Called with everything that is measured and what it belongs to: the table of ``make parity`` listens here.
listeners: list[Callable[[Measured, object], None]] = []


def tell(measured: Measured, context: object) -> None:
    for listen in listeners:
        listen(measured, context)


def measure(
    op: str, name: str, result: Tensor, exact: Tensor, eager: Tensor, magnitude: Tensor | float | None = None
) -> Measured:
    """How far one result is from the definition, and how far it may be; the arguments are those of `assert_parity`."""
    want = exact.double().cpu()
    eager_error = (eager.double().cpu() - want).abs().max()
    magnitude = want.abs().max() if magnitude is None else magnitude
    # Below 1e-30 float32 loses digits.
    magnitude = torch.as_tensor(magnitude, dtype=torch.float64).clamp(min=1e-30)
    floor = tolerances.FLOOR[f"{op} in float64" if result.dtype == torch.float64 else op] * magnitude
    relative, absolute = tolerances.rounding(result.dtype, interpreted=INTERPRETED)
    allowed = tolerances.EAGER_FACTOR * eager_error + floor + relative * want.abs() + absolute
    error = (result.double().cpu() - want).abs()
    worst = int((error - allowed).argmax())  # a NaN counts as the largest
    numbers = float(error.flatten()[worst]), float(allowed.flatten()[worst])
    return Measured(op, name, result.dtype, *numbers, worst, float(eager_error))


def assert_parity(
    op: str,
    results: Results,
    exact: Results,
    eager: Results,
    magnitudes: Results | None = None,
    *,
    context: object = "",
) -> None:
    """Compare every named result.

    Args:
        op: whose row of the table of tolerances applies.
        results: of the backend under test, in the dtypes that it gives.
        exact: of the reference in float64, on the same rounded inputs.
        eager: of the reference in float32.
        magnitudes: the sum of the absolute terms behind a result, one number or one an element; for those that are not
            in it, the largest exact value.
        context: what was compared, for the message.
    """
    assert results.keys() == exact.keys() == eager.keys()
    for name, result in results.items():
        want = exact[name].double().cpu()
        assert result.shape == want.shape, (
            f"{name}: shape {tuple(result.shape)}, expected {tuple(want.shape)}; {context}"
        )
        if not want.numel():
            continue
        bad = int((~torch.isfinite(result)).sum())
        measured = measure(op, name, result, want, eager[name], (magnitudes or {}).get(name))
        tell(measured, context)
        assert bad == 0, f"{name}: {bad} of {result.numel()} values are not finite; {context}"
        assert measured.fine, (
            f"{name}: error {measured.error:.3g} at flat index {measured.index}, allowed {measured.allowed:.3g} "
            f"(eager float32 is off by {measured.eager_error:.3g} at most); {context}"
        )
