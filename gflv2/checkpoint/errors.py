"""The one error of this package, and how long lists of keys are shortened in messages."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A file that cannot be read safely, or weights that do not fit a model."""


def exported(path: object) -> CheckpointError:
    """The error for a file of `gflv2 export`, which holds a network and no weights under their names."""
    return CheckpointError(
        f"weights: {path} is an exported file, not a checkpoint; `gflv2 predict` and `gflv2 val` take exported .onnx "
        "files, everything else needs the checkpoint that it was made from"
    )


def shorten(items: Iterable[str], limit: int = 8) -> str:
    """The first ``limit`` items, and how many more there are."""
    items = list(items)
    text = ", ".join(items[:limit])
    return text if len(items) <= limit else f"{text}, … and {len(items) - limit} more"
