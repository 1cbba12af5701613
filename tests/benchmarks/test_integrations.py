"""The benchmarks of other people's detectors: their frame, and the tables of the guide."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import report
from benchmarks.harness import table
from benchmarks.harness.candidates import BEST, Settings
from benchmarks.harness.cases import TINY, Case
from benchmarks.harness.contest import Contest
from benchmarks.harness.operation import Inputs
from benchmarks.integrations import AGAIN, Integration, guide, integrations, packages
from benchmarks.registry import operations

CPU = torch.device("cpu")


class Doubling(Integration):
    """A package that adds its argument to itself in slices; "ours" adds once."""

    name = "slices_step"
    package = "slices"
    what = "doubling"
    axes = ("rows",)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        values = torch.ones(case.rows, requires_grad=True)
        return Inputs((values,), {}, [values])

    def plain(self, case: Case, device: torch.device):
        return lambda values: torch.stack([value + value for value in values]).sum()

    def ours(self, case: Case, device: torch.device):
        return lambda values: (values + values).sum()


def rows() -> list[table.Row]:
    contest = Contest(Doubling(), TINY, CPU, Settings(seconds=0.01, runs=2, sets=1))
    contest.run()
    return contest.rows()


def test_a_package_takes_part_alone_and_with_ours(monkeypatch):
    found = rows()
    assert {row["backend"] for row in found} == {BEST, "slices", AGAIN}
    assert all(float(row["vs_eager"]) == 1.0 for row in found if row["backend"] == "slices")
    monkeypatch.setattr(guide, "integrations", lambda package: [Doubling()])
    for row in found:
        row["ms"] = {"slices": "9", AGAIN: "10", BEST: "2"}[row["backend"]]
    lines = guide.lines("slices", found)
    assert len(lines) == 3  # head, rule, the mode "both"
    assert lines[2] == f"| doubling | rows=32 | {found[0]['device']} | – | 9 | 2 | 4.5 | 0.9 |"
    # What it is a part of was measured for the same case, and for others.
    monkeypatch.setattr(Doubling, "part_of", "slices_whole")
    whole = {**found[0], "operation": "slices_whole", "backend": "slices"}
    found += [{**whole, "ms": "36"}, {**whole, "ms": "99", "case": "rows=33"}]
    assert f"{found[0]['device']} | 25 % | 9 |" in guide.lines("slices", found)[2]
    # A step may have facts of its own; which of two it is, nobody knows then.
    found[-2]["case"] += " size=1x1"
    assert f"{found[0]['device']} | 25 % | 9 |" in guide.lines("slices", found)[2]
    found.append({**found[-2], "case": "rows=32 size=2x2"})
    assert f"{found[0]['device']} | – | 9 |" in guide.lines("slices", found)[2]
    # A package that was measured without ours, or not at all.
    assert guide.lines("slices", [row for row in found if row["backend"] != BEST]) == [guide.NOTHING]
    assert guide.lines("slices", []) == [guide.NOTHING]


def test_every_package_has_its_place():
    names = [operation.name for operation in [*operations(), *integrations()]]
    assert len(names) == len(set(names))
    assert "mmdet" in packages()
    for package in packages():
        for operation in integrations(package):
            assert operation.package == package and operation.name.startswith(f"{package}_") and operation.what
            assert all(set(operation.axes) <= set(vars(case)) for case in operation.bases(CPU))


def test_the_guide_says_what_was_measured():
    text = guide.GUIDE.read_text()
    assert guide.written(text, guide.measured()) == text, "run: python -m benchmarks.integrations.guide"


def test_a_package_without_a_table_in_the_guide():
    text = re.sub(r"<!-- table: integrations mmdet", "<!-- table: integrations other", guide.GUIDE.read_text())
    with pytest.raises(ValueError, match="has 0 tables 'integrations mmdet', expected one"):
        guide.written(text, [])


def test_the_report_has_them_too(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "integrations", lambda: [Doubling()])
    table.write(tmp_path / "here.csv", rows())
    report.write(tmp_path, tmp_path / "REPORT.md")
    text = (tmp_path / "REPORT.md").read_text()
    assert "### slices_step" in text and "| slices |" in text


def test_the_guides_code_and_links():
    text = guide.GUIDE.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "integrations.md", "exec")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (guide.GUIDE.parent / target).is_file(), target
    import gflv2.nn

    for name in re.findall(r"\bnn\.(\w+)\(", text):
        assert hasattr(gflv2.nn, name), name
