"""What ``accelerate()`` answers: what was replaced where, and what stayed with the package and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

_log = logging.getLogger("gflv2")
_said: set[str] = set()


class Replaced(NamedTuple):
    """One replacement.

    Attributes:
        what: the package's class or method, by its full name.
        by: ours, by its full name.
        where: the modules, registries or parts of a model that have ours now.
    """

    what: str
    by: str
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} -> {self.by}" + (f" (in {', '.join(self.where)})" if self.where else "")


class Stayed(NamedTuple):
    """What goes on running the package's own code.

    Attributes:
        what: a class, a method, an algorithm, or a part of a model.
        why: in a few words.
    """

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Report:
    """The answer of an integration; printed, it is a list of lines.

    Attributes:
        package: what was changed: the name of a package, or a model of it.
        replaced: what this call has replaced.
        before: what an earlier call had replaced already.
        stayed: what stayed with the package.
    """

    package: str
    replaced: tuple[Replaced, ...] = ()
    before: tuple[Replaced, ...] = ()
    stayed: tuple[Stayed, ...] = ()

    def __str__(self) -> str:
        if self.replaced:
            head = f"{self.package}: gflv2 replaced"
        elif self.before:
            head = f"{self.package}: nothing is left to replace; gflv2 replaced before"
        else:
            head = f"{self.package}: gflv2 replaced nothing"
        lines = [head, *(f"  {one}" for one in self.replaced or self.before)]
        if self.replaced and self.before:
            lines += ["replaced before", *(f"  {one}" for one in self.before)]
        if self.stayed:
            lines += ["stayed with the package", *(f"  {one}" for one in self.stayed)]
        return "\n".join(lines)


def answer(
    package: str, found: Iterable[Replaced], earlier: Iterable[Replaced] = (), stayed: Iterable[Stayed] = ()
) -> Report:
    """The report of a call, which is logged (logger "gflv2", level INFO) unless the same was logged before.

    Args:
        found: all that is replaced now.
        earlier: what was replaced before the call.
        stayed: as `Report` has it.
    """
    known, found = set(earlier), tuple(found)
    new = tuple(one for one in found if one not in known)
    report = Report(package, new, tuple(one for one in found if one in known), tuple(stayed))
    say(str(report))
    return report


def say(text: str) -> None:
    """Log a text (logger "gflv2", level INFO), the first time that it is said in this process."""
    if text not in _said:
        _said.add(text)
        _log.info("%s", text)


def full_name(thing: Any) -> str:
    """Module and name of a class or function; of a Python module its name, of another object those of its class."""
    if isinstance(thing, ModuleType):
        return thing.__name__
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"
