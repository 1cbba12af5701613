"""The lines of docs/integrations.md for D-FINE in transformers."""

from __future__ import annotations

from transformers.models.d_fine import modeling_d_fine

from tests.docs.blocks import of_test, run


def test_the_blocks_of_the_page():
    (block,) = of_test(__file__)
    before = modeling_d_fine.DFineIntegral.forward
    line = block.text.index("dfine.restore()")
    names: dict = {}
    exec(block.text[:line], names)
    assert modeling_d_fine.DFineIntegral.forward is not before
    run(block, names)  # a second accelerate() changes nothing, and restore() puts all back
    assert modeling_d_fine.DFineIntegral.forward is before
