"""The rule of parity itself: it accepts what a rounding explains and refuses more, and its table says so."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops import parity, parity_table

EXACT = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


def told(result: torch.Tensor) -> parity.Measured:
    """What a listener hears of a comparison, whether or not it passes."""
    heard = []
    parity.listeners.append(lambda measured, _: heard.append(measured))
    try:
        parity.assert_parity("integral", {"output": result}, {"output": EXACT}, {"output": EXACT.float()})
    finally:
        parity.listeners.pop()
    return heard[0]


def test_a_rounding_is_allowed() -> None:
    measured = told(EXACT.float())
    assert measured.fine and measured.error == 0 < measured.allowed
    assert told(EXACT.float() * (1 + 1e-7)).fine


@pytest.mark.parametrize("wrong", [5e-6, math.nan, math.inf])
def test_more_is_refused_and_told(wrong: float) -> None:
    result = EXACT.float()
    result[1] += wrong
    heard = []
    parity.listeners.append(lambda measured, _: heard.append(measured))
    try:
        with pytest.raises(AssertionError, match="output: "):
            parity.assert_parity("integral", {"output": result}, {"output": EXACT}, {"output": EXACT.float()})
    finally:
        parity.listeners.pop()
    assert not heard[0].fine and heard[0].index == 1


def test_the_table_keeps_the_worst() -> None:
    listener = parity_table.Listener()
    for error, name in ((0.1, "output"), (0.7, "grad of logits 0"), (0.3, "output")):
        listener.listen(parity.Measured("integral", name, torch.float32, error, 1.0, 0, 0.0), "")
    row = listener.rows["integral", "", "float32"]
    assert row == {"count": 3, "share": 0.7, "name": "grad of logits 0", "error": 0.7, "allowed": 1.0}
    assert "grad of logits 0" in parity_table.render(listener.rows)


def test_shares() -> None:
    assert parity_table.share_of(0.0, 0.0) == 0
    assert parity_table.share_of(1.0, 0.0) == parity_table.share_of(math.nan, 1.0) == math.inf
    assert parity_table.share_of(3.0, 2.0) == 1.5
