"""The named models: one YAML file each, in `configs/`."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from gflv2.config import config_names

if TYPE_CHECKING:
    from gflv2.models.detector import GFLV2


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``GFLV2(name)`` accepts, sorted; ``pattern`` as in a shell, for example ``"*dcn*"``."""
    return [name for name in config_names() if fnmatch(name, pattern)]


def create_model(name: str, **options: Any) -> GFLV2:
    """The detector of that name; the same as ``GFLV2(name, **options)``.

    Raises:
        FileNotFoundError: no such name; the message lists them.
    """
    from gflv2.models.detector import GFLV2

    return GFLV2(name, **options)
