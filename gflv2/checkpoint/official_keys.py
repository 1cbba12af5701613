"""The official key layout: our ``state_dict`` keys ↔ those in the authors' checkpoints.

Neck and head have the authors' names already, and so have ResNet and ResNeXt; Res2Net's deep stem is ``conv1`` and
``bn1`` in timm and one sequence ``stem`` there. Other backbones have no official layout: their keys are timm's.
"""

from __future__ import annotations

_RES2NET_STEM = (("backbone.conv1.", "backbone.stem."), ("backbone.bn1.", "backbone.stem.7."))


def _has_deep_stem(backbone: str) -> bool:
    """Res2Net's "d" variants of timm (v1b and v1d of its authors) have a stem of three convolutions."""
    return backbone.startswith("res2net") and backbone.split(".")[0].endswith("d")


def to_official(key: str, backbone: str) -> str:
    """One key of our ``state_dict`` → the authors' key. ``backbone``: the timm name in the configuration."""
    if _has_deep_stem(backbone):
        for ours, theirs in _RES2NET_STEM:
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
    return key


def from_official(key: str, backbone: str) -> str:
    """One key of the authors' files → ours; the inverse of ``to_official``."""
    if _has_deep_stem(backbone):
        # The norm first: its prefix begins with the other one.
        for ours, theirs in reversed(_RES2NET_STEM):
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
    return key
