"""Other packages' versions of the operations, where they are installed; never a dependency.

Each builder takes a case and returns a function of the operation's own arguments, or None where the other package has
nothing for this case. What it must do to these arguments (mmdet permutes every level to rows, say) is part of it.
"""

from __future__ import annotations


class Absent(Exception):
    """The package is not installed; the message holds the line that installs it."""


from benchmarks.peers import mmdet, torchvision, ultralytics  # noqa: E402

__all__ = ["Absent", "mmdet", "torchvision", "ultralytics"]
