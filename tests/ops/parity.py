"""The rule of parity, for every operation: a result against the definition in float64, within `tolerances`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.ops import tolerances
from tests.ops.under_test import INTERPRETED

Results = Mapping[str, Tensor]  # results and gradients by name


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
        assert bad == 0, f"{name}: {bad} of {result.numel()} values are not finite; {context}"

        eager_error = (eager[name].double().cpu() - want).abs().max()
        magnitude = want.abs().max() if magnitudes is None or name not in magnitudes else magnitudes[name]
        floor = tolerances.FLOOR[f"{op} in float64" if result.dtype == torch.float64 else op] * magnitude
        relative, absolute = tolerances.rounding(result.dtype, interpreted=INTERPRETED)
        allowed = tolerances.EAGER_FACTOR * eager_error + floor + relative * want.abs() + absolute
        error = (result.double().cpu() - want).abs()
        worst = int((error - allowed).argmax())
        error, allowed = float(error.flatten()[worst]), float(allowed.flatten()[worst])
        assert error <= allowed, (
            f"{name}: error {error:.3g} at flat index {worst}, allowed {allowed:.3g} "
            f"(eager float32 is off by {float(eager_error):.3g} at most); {context}"
        )
