"""What the files of a data set get wrong: told as one line that refuses, or mended and counted, never passed over."""

from __future__ import annotations

import logging
import os
from typing import Any

from gflv2.shown import shown, shown_path

__all__ = ["Problems", "kind_of", "shown", "shown_path"]

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
