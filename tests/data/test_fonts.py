"""Class names in pictures: in whatever script a font is installed for, and never as empty boxes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from gflv2.config import DataConfig
from gflv2.data import CocoDetection, fonts
from gflv2.data.pictures import draw_page
from gflv2.engine.results import Result
from tests.data.generated import annotation, write_set

UNKNOWN = "\U000f0123"  # for private use: no font has it


@pytest.fixture(autouse=True)
def afresh():
    """Nothing found or said before, and nothing left of the fonts of this test."""
    entries = list(font_manager.fontManager.ttflist)

    def forget():
        fonts._said.clear()
        for function in (fonts.fonts_of, fonts._families, fonts._installed, fonts._open):
            function.cache_clear()

    forget()
    yield
    font_manager.fontManager.ttflist[:] = entries
    font_manager.fontManager._findfont_cached.cache_clear()
    forget()


def install(path, text: str, family: str) -> None:
    """A font that has filled squares for the characters of a text."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(c):X}" for c in text)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in text})
    builder.setupGlyf({name: TTGlyphPen(None).glyph() if name == ".notdef" else square for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupPost()
    builder.save(path)
    font_manager.fontManager.addfont(path)


def result(*names: str) -> Result:
    """One detection of the first class."""
    boxes, one = torch.tensor([[40.0, 60.0, 140.0, 110.0]]), torch.ones(1)
    return Result(boxes, 0.9 * one, 0 * one.long(), names, np.full((150, 240, 3), 128, np.uint8))


def picture(*names: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a character that it draws as an empty box
        return np.asarray(result(*names).plot())


@pytest.mark.parametrize(
    "name", ["cup", "Ünïcode – ☂", "клетка", "خلية", "κύτταρο", "😀", "two words", "price: $5 or $6"]
)
def test_scripts_that_the_font_of_matplotlib_has(name, caplog):
    assert fonts.drawable([name]) == [name] and len(fonts.fonts_of(name)) == 1
    picture(name)
    assert caplog.messages == []


def test_a_name_that_no_font_has_is_drawn_as_its_number_and_said_once(caplog):
    names = ["cup", UNKNOWN, f"a {UNKNOWN}"]
    assert fonts.drawable(names) == ["cup", "class 1", "class 2"]
    assert fonts.drawable(names) == ["cup", "class 1", "class 2"]
    (said,) = caplog.messages
    assert "class 1 is '\\U000f0123', class 2 is 'a \\U000f0123'" in said and said.isprintable()
    assert np.array_equal(picture(UNKNOWN), picture("class 0"))
    assert not np.array_equal(picture(UNKNOWN), picture("class 1"))


def test_a_font_that_is_installed_is_found_and_mixed_with_the_other(tmp_path, caplog):
    before = picture(f"cup {UNKNOWN}")
    install(tmp_path / "own.ttf", UNKNOWN, "Our Squares")
    fonts.fonts_of.cache_clear()
    fonts._families.cache_clear()
    fonts._installed.cache_clear()
    caplog.clear()
    name = f"cup {UNKNOWN}"
    assert fonts.drawable([name]) == [name]
    assert fonts.families_of(name) == ["DejaVu Sans", "Our Squares"]
    assert [part for part, _ in fonts.runs_of(name)] == ["cup ", UNKNOWN]
    assert not np.array_equal(picture(name), before) and caplog.messages == []


def test_the_pictures_of_a_data_set_are_drawn_alike(tmp_path, caplog):
    rows = [annotation(1, (40, 30, 20, 20), 1), annotation(2, (100, 2, 20, 20), 2)]
    path = write_set(tmp_path, [(128, 128)] * 2, rows, categories={1: "خلية", 2: UNKNOWN})
    dataset = CocoDetection(path, config=DataConfig())
    caplog.clear()
    page = draw_page(dataset, side=128)
    assert page.size[0] > 128 and len(caplog.messages) == 1 and "class 1 is" in caplog.messages[0]
