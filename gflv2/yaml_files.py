"""YAML files that a name or a path stands for, and the one line that says what is wrong with one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gflv2.extras import missing_package


def read_named(
    source: str | Path, what: str, needs: str, known_as: str, folder: Path, names: Callable[[], list[str]]
) -> tuple[Path, Any]:
    """A file and what stands in it: one that has the suffix of YAML, or the one of that name in ``folder``.

    Args:
        what: "config" or the like, at the head of every message.
        needs: what needs the package yaml, where it is missing.
        known_as: what ``names`` are; they are asked only for the message.

    Raises:
        ModuleNotFoundError: yaml is not installed.
        FileNotFoundError: there is no such file and no such name.
        ValueError: it is no YAML, or no text; the message names file, line and column.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_package(error, needs) from error

    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{source}.yaml"
    if not path.is_file():
        known = names()
        near = difflib.get_close_matches(str(source), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise FileNotFoundError(f"{what}: no file and no {known_as} {str(source)!r}.{hint} Names: {', '.join(known)}")
    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ValueError(f"{what}: {path}{place}: {getattr(error, 'problem', None) or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what}: {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except (RecursionError, ValueError) as error:  # YAML's own conversions raise ValueError, for 2001-99-99 say
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{what}: {path} cannot be read: {reason}") from error
