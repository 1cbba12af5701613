"""Every code block of the guides runs, or says why it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import FOLDER, NOT_CODE, PAGES, ROOT, RUN, Block, blocks, check, run

# Pages that go on where another one ends: with its files.
TOGETHER = [["quickstart.md", "numbers.md", "runs.md"]]
# What a page takes as given: a network's outputs, say.
GIVEN = {
    "integrations.md": """
from types import SimpleNamespace
import torch
box_logits = [torch.randn(1, 4 * 17, 2, 3)]
logits, labels, ious = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 3]), torch.rand(6)
label_weights, num_positive = torch.ones(6), torch.tensor(3.0)
boxes, box_labels = [torch.tensor([[16.0, 8.0, 72.0, 60.0]])], [torch.tensor([2])]
level_shapes, strides = [(10, 12), (5, 6)], [8, 16]
corner = torch.tensor([[8.0 * x - 32, 8.0 * y - 32] for y in range(10) for x in range(12)])
pred_instances, num_level_priors = SimpleNamespace(priors=torch.cat([corner, corner + 64], 1)), [120]
gt_instances = SimpleNamespace(bboxes=boxes[0], labels=box_labels[0])
""",
}


def to_run(page: str) -> list[Block]:
    return [block for block in blocks(FOLDER / page) if block.language in RUN and not (block.not_run or block.run_by)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_blocks_that_are_not_run(path: Path):
    for block in blocks(path):
        assert block.language in RUN + NOT_CODE, f"{block}: name the block's language; one of {RUN} is run"
        if block.not_run is not None:
            check(block)
        if block.run_by is not None:
            assert "of_test(__file__)" in (ROOT / block.run_by).read_text(), f"{block}: that test does not run it"


def chains() -> list[list[str]]:
    """Pages with blocks that are run, each in a folder of its own or with those that it belongs to."""
    others = [[path.name] for path in PAGES if not any(path.name in pages for pages in TOGETHER)]
    return [pages for pages in TOGETHER + others if any(to_run(page) for page in pages)]


@pytest.mark.slow
@pytest.mark.parametrize("pages", chains(), ids=lambda pages: "-".join(page.removesuffix(".md") for page in pages))
def test_blocks_that_are_run(pages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for page in pages:
        names: dict = {}
        exec(GIVEN.get(page, ""), names)
        for block in to_run(page):
            run(block, names)


def test_the_pages_that_are_named_here_exist():
    assert {*GIVEN, *(page for pages in TOGETHER for page in pages)} <= {path.name for path in PAGES}
