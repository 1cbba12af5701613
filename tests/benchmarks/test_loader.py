"""The benchmarks of loading and of the three formats: their tables, and what the report makes of them."""

from __future__ import annotations

import json

import pytest

from benchmarks import formats, loader, report
from benchmarks.harness import table
from gflv2.data import shapes
from tests.engine.test_formats import TINY


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=4, val=2, size=64)


def test_the_loaders_take_turns_on_the_same_images(sample_set, tmp_path) -> None:
    large = loader.enlarged(sample_set.train, sample_set.train_images, tmp_path / "large", factor=4, count=2)
    content = json.loads(large.read_text())
    assert [image["width"] for image in content["images"]] == [256, 256]
    sets = {"large": (large, large.parent / "images")}
    rows = list(loader.run(sets, config=TINY, batch=2, rounds=2, other="gflv2"))
    assert [row["loader"] for row in rows] == [*loader.OPTIONS, "before"]
    assert rows[0]["load_ratio"] == rows[0]["step_ratio"] == "1"
    for row in rows:
        assert float(row["step_ms"]) > float(row["load_ms"]) > 0
    table.write(tmp_path / "results" / f"{table.LOADER}box.csv", rows, loader.COLUMNS)
    text = "\n".join(loader.section(tmp_path / "results" / f"{table.LOADER}box.csv"))
    assert "| options off again |" in text and "0.066 million pixels" in text


def test_formats_that_differ_are_named(tmp_path) -> None:
    known = {"config": "c", "data": "d", "device": "x", "epochs": "1", "images": "2", "torch": "2", "commit": "a"}
    rows = [
        {**known, "seed": "0", "format": name, "ap": "0.25", "ap50": "0.5", "weights": "abc", "seconds": "1"}
        for name in formats.FORMATS
    ]
    assert formats.differing(rows) == []
    file = tmp_path / f"{table.FORMATS}box.csv"
    table.write(file, rows, formats.COLUMNS)
    assert "| 0 | 0.25 | 0.25 | 0.25 | the same bits |" in "\n".join(formats.section(file))
    rows[1]["weights"] = "abd"
    assert formats.differing(rows) == ["seed 0: weights differs: {'coco': 'abc', 'yolo': 'abd', 'voc': 'abc'}"]
    table.write(file, rows, formats.COLUMNS)
    assert "| differ |" in "\n".join(formats.section(file))


def test_the_report_has_what_was_measured() -> None:
    text = (report.HERE / "REPORT.md").read_text()
    for prefix, head in ((table.LOADER, "## Loading"), (table.FORMATS, "## One data set, three formats")):
        assert (head in text) == bool(list((report.HERE / "results").glob(f"{prefix}*.csv")))
