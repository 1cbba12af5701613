"""docs/operations.md has every operation with its equation and an example, docs/api.md everything that is public."""

from __future__ import annotations

import re

import pytest

import gflv2
from gflv2 import nn, ops
from gflv2.ops import backends
from tests.docs.blocks import FOLDER

PAGE = (FOLDER / "operations.md").read_text()
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_there_is_a_section_for_every_operation():
    assert sorted(SECTIONS) == backends.operations()


@pytest.mark.parametrize("name", backends.operations())
def test_a_section_has_the_equation_and_an_example(name: str):
    section = SECTIONS[name]
    assert re.search(r"\$.+?\$", section.split("```")[0], re.DOTALL), "no equation above the example"
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert re.search(rf"\bops\.{name}\(", example)
    assert "close(" in example or "assert " in example, "the example shows nothing to be true"


def test_the_reference_names_everything_public():
    text = (FOLDER / "api.md").read_text()
    documented = set(re.findall(r"^\.\. auto(?:class|function):: ([\w.]+)$", text, re.MULTILINE))
    modules = set(re.findall(r"^\.\. automodule:: ([\w.]+)\n   :members:$", text, re.MULTILINE))
    assert modules == {ops.__name__, nn.__name__}
    names = set(gflv2.__all__) - {"ops", "nn", "__version__"}
    assert names == {path.rsplit(".", 1)[1] for path in documented if path.rsplit(".", 1)[1] in names}
    # Members without a docstring would be left out.
    for module in (ops, nn):
        assert all(getattr(module, name).__doc__ for name in module.__all__)
