"""Values from outside as a message may print them."""

from __future__ import annotations

import reprlib
from typing import Any


class _Short(reprlib.Repr):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.maxstring = self.maxother = characters
        self.maxlist = self.maxtuple = self.maxdict = 8
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print numbers of more than 4300 digits.
        return repr(x) if abs(x) < 10**40 else f"a number of {x.bit_length()} bits"


_short, _long = _Short(80), _Short(400)


def shown(value: Any) -> str:
    """A value from a file as a message may print it: control characters escaped, long texts and lists cut."""
    return _short.repr(value)


def shown_path(path: Any) -> str:
    """A path as a message may print it: as ``shown``, but cut only where nobody would read on."""
    return _long.repr(str(path))
