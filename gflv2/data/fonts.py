"""Fonts that can draw a class name: found among those that are installed, by the characters that they have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

from gflv2.data.problems import shown
from gflv2.extras import missing_package

_log = logging.getLogger(__name__)

_EXAMPLES = 5
_said: set[str] = set()


def drawable(names: Sequence[str]) -> list[str]:
    """The names as a picture may show them: one with a character that no installed font has becomes ``class N``.

    Such names are said once, with their numbers.
    """
    without = [number for number, name in enumerate(names) if not fonts_of(name)]
    new = [number for number in without if names[number] not in _said]
    if new:
        _said.update(names[number] for number in new)
        examples = ", ".join(f"class {number} is {shown(names[number])}" for number in new[:_EXAMPLES])
        more = f" and {len(new) - _EXAMPLES} more" if len(new) > _EXAMPLES else ""
        _log.warning(
            "no installed font has the characters of these class names, so pictures show their numbers: %s%s (said "
            "once; install a font that has them, such as Noto Sans CJK)",
            examples,
            more,
        )
    return [f"class {number}" if number in set(without) else name for number, name in enumerate(names)]


@cache
def fonts_of(text: str) -> tuple[str, ...]:
    """Files of installed fonts that have every character of a text between them; empty: no fonts do.

    The first is matplotlib's own, which has Latin, Greek, Cyrillic, Arabic and many symbols.
    """
    wanted = {ord(character) for character in text if not character.isspace()}
    chosen = [_installed()[0]]
    for path in _installed():
        wanted_here = {code for code in wanted if _has(path, code)}
        if wanted_here and path not in chosen:
            chosen.append(path)
        wanted -= wanted_here
        if not wanted:
            return tuple(chosen)
    return ()


def families_of(text: str) -> list[str]:
    """The same as names of font families, as matplotlib wants them."""
    return [_families()[path] for path in fonts_of(text)]


def runs_of(text: str) -> list[tuple[str, str]]:
    """The text in parts of one font each, as (part, file), for drawing with Pillow."""
    fonts = fonts_of(text)

    def font_of(character: str) -> str:
        return next((path for path in fonts if character.isspace() or _has(path, ord(character))), fonts[0])

    return [("".join(part), path) for path, part in groupby(text, font_of)]


@cache
def _families() -> dict[str, str]:
    """File → family of every installed font, in the order of trial: upright ones of ordinary weight first.

    The last resort of matplotlib has a picture for every character: the box that nobody wants to see.
    """
    try:
        from matplotlib import font_manager
    except ModuleNotFoundError as error:
        raise missing_package(error, "drawing class names") from error
    own = font_manager.findfont("DejaVu Sans")

    def rank(entry: Any) -> tuple[bool, bool, bool, str]:
        return entry.fname != own, entry.style != "normal", entry.weight not in (400, "normal", "regular"), entry.fname

    entries = sorted(font_manager.fontManager.ttflist, key=rank)
    return {entry.fname: entry.name for entry in entries if "Last Resort" not in entry.name}


@cache
def _installed() -> tuple[str, ...]:
    return tuple(_families())


def _has(path: str, code: int) -> bool:
    font = _open(path)
    return font is not None and font.get_char_index(code) != 0


@cache
def _open(path: str) -> Any | None:
    """A font that can be drawn at any size, or None: coloured emoji are pictures of one size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
        return None
    return font if font.scalable else None
