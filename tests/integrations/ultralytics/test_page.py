"""The lines of docs/integrations.md for Ultralytics."""

from __future__ import annotations

from ultralytics.nn.modules.block import DFL

from tests.docs.blocks import of_test, run


def test_the_blocks_of_the_page():
    (block,) = of_test(__file__)
    before = DFL.forward
    line = block.text.index("ultralytics.restore()")
    names: dict = {}
    exec(block.text[:line], names)
    assert DFL.forward is not before
    run(block, names)  # a second accelerate() changes nothing, and restore() puts all back
    assert DFL.forward is before
