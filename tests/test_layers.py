"""The layers of the package: imports point down and run in no circle, those inside functions included."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom. A module may import its own part and the parts of lower layers; two parts that share a layer do
# not know each other. `ops` chooses a backend's kernels by name when an operation is called, which is no import;
# `kernels` imports the few types that it shares with `ops`, and so stands above.
LAYERS = (
    ("__init__", "__main__"),
    ("cli", "demo", "env"),
    ("detector",),
    ("engine", "integrations"),
    ("checkpoint",),
    ("models",),
    ("nn",),
    ("data",),
    ("config", "kernels"),
    ("ops",),
    ("yaml_files",),
    ("extras", "files", "ranges", "sides", "version"),
    ("shown",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


@cache
def modules() -> dict[str, Path]:
    """Dotted name → file of every module, without the leading ``gflv2.``; the package itself is ``__init__``."""
    found = {}
    for folder, place in ((ROOT / "gflv2", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            parts = [*place, *path.relative_to(folder).with_suffix("").parts]
            if parts[-1] == "__init__" and len(parts) > 1:
                parts.pop()
            found[".".join(parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from package import name`: the submodule of that name, else what the package itself holds.
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            inside = [name for name in submodules if name.removeprefix("gflv2.") in modules()]
            names = inside if len(inside) == len(submodules) else [*inside, node.module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "gflv2":
                found.add(name.removeprefix("gflv2.") if name != "gflv2" else "__init__")
    unknown = found - modules().keys()
    assert not unknown, f"{path} imports {unknown}"
    return found


@cache
def graph() -> dict[str, set[str]]:
    return {module: imported(path) for module, path in modules().items()}


def part_of(module: str) -> str:
    return module.split(".")[0]


def test_every_part_has_a_layer() -> None:
    assert {part_of(module) for module in modules()} == RANK.keys()
    assert len(graph()) > 80 and sum(map(len, graph().values())) > 200, "the walk sees the package"


def test_no_import_points_up_or_sideways() -> None:
    wrong = [
        f"{module} → {target}"
        for module, targets in graph().items()
        for target in targets
        if part_of(module) != part_of(target) and RANK[part_of(module)] >= RANK[part_of(target)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_run_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize(
    "text, found",
    [
        ("import gflv2.config", {"config"}),
        ("def f():\n    from gflv2.engine import plot", {"engine.plot"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gflv2.detector import GFLV2", {"detector"}),
        ("from gflv2 import nn, GFLV2", {"nn", "__init__"}),
        ("from gflv2.checkpoint import Checkpoint, reading", {"checkpoint", "checkpoint.reading"}),
        ("import torch", set()),
    ],
)
def test_the_walk_sees_imports_of_every_kind(text: str, found: set[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert imported(path) == found
