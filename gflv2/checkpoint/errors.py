"""The one error of this package, and how long lists of keys are shortened in messages."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A file that cannot be read safely, or weights that do not fit a model."""


def shorten(items: Iterable[str], limit: int = 8) -> str:
    """The first ``limit`` items, and how many more there are."""
    items = list(items)
    text = ", ".join(items[:limit])
    return text if len(items) <= limit else f"{text}, … and {len(items) - limit} more"
