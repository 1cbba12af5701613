"""What the files of a data set get wrong: told as one line that refuses, or mended and counted, never passed over."""

from __future__ import annotations

import logging
import os
import reprlib
from typing import Any

_log = logging.getLogger(__name__)

_EXAMPLES = 5


class Problems:
    """What was left out, replaced or cut while a data set was read: counts by kind, each with its first records.

    Attributes:
        name: the file, for messages.
        counts: kind → number of records. A kind is a phrase that says what is wrong and what was done.
        examples: kind → the first few records.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, record: str) -> None:
        """Count one record."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(record)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """One line for each kind: file, kind, number, first record."""
        return [f"{self.name}: {kind}: {n}; first: {self.examples[kind][0]}" for kind, n in self.counts.items()]

    def log(self) -> None:
        """Say every kind once. Of several processes that read the same data, the first of a machine speaks."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            for line in self.lines():
                _log.warning("%s", line)


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


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    for types, name in (((int, float), "a number"), (str, "text"), (dict, "an object"), ((list, tuple), "a list")):
        if isinstance(value, types):
            return name
    return type(value).__name__
