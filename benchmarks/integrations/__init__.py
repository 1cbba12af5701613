"""Other people's detectors with and without this project's operations, in one process: one file a package.

``benchmarks/integrations/PACKAGE.py`` holds ``OPERATIONS``, a list of `Integration`. It imports its package inside
functions only, since the report and the guide read the list where the package is absent. ``make bench-integrations``
runs each file in the environment of tests/integrations/requirements/PACKAGE.txt.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from benchmarks.harness.candidates import BEST, Candidate, Settings
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Operation

_OTHER_MODULES = {"guide"}
AGAIN = "again"


class Integration(Operation):
    """A benchmark of a package; its name is PACKAGE_step or PACKAGE_head.

    In the table, the candidate ``best`` is the package with this project's operations, the one named like the package
    is the package alone, and the column ``vs_eager`` says how many times faster than the latter. ``again`` is the
    package alone a second time, in which nothing is replaced: how far it is from 1 is the noise.

    Attributes:
        package: the name of the file.
        what: a few words for the guide.
        part_of: name of the benchmark of a training step that this is a part of.
    """

    package = ""
    what = ""
    part_of = ""
    compiles = False

    def plain(self, case: Case, device: torch.device) -> Callable[..., Any]:
        """The package alone: a function of what ``inputs`` gives."""
        raise NotImplementedError

    def ours(self, case: Case, device: torch.device) -> Callable[..., Any]:
        """The same with this project's operations."""
        raise NotImplementedError

    def others(self, case: Case, device: torch.device) -> dict[str, Callable[..., Any]]:
        """Further candidates by name."""
        return {}

    def candidates(self, case: Case, device: torch.device, settings: Settings) -> list[Candidate]:
        found = [Candidate(BEST, self.ours(case, device), "ours")]
        found.append(Candidate(self.package, self.plain(case, device), "eager"))
        found.append(Candidate(AGAIN, self.plain(case, device), "peer"))
        return found + [Candidate(name, call, "peer") for name, call in self.others(case, device).items()]


class InPlace(Integration):
    """For integrations that change classes for the whole process: both candidates are the same call."""

    def call(self, case: Case, device: torch.device) -> Callable[..., Any]:
        """The package: a function of what ``inputs`` gives."""
        raise NotImplementedError

    def with_ours(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call with this project's operations, by ``accelerated``."""
        raise NotImplementedError

    def plain(self, case: Case, device: torch.device) -> Callable[..., Any]:
        return self.call(case, device)

    def ours(self, case: Case, device: torch.device) -> Callable[..., Any]:
        return self.with_ours(self.call(case, device))


def accelerated(integration: ModuleType, places: Sequence[tuple[Any, str]], call: Callable[..., Any]) -> Callable:
    """The call, during which an integration's replacements stand in their places.

    For integrations that change classes for the whole process: the package alone takes turns with it in the same one.
    What ``accelerate()`` puts in is taken out and kept once, so that a call pays for a few assignments only.

    Args:
        places: (owner, attribute) of all that ``accelerate()`` replaces.
    """
    theirs = [vars(owner)[name] for owner, name in places]
    integration.accelerate()
    ours = [vars(owner)[name] for owner, name in places]
    integration.restore()

    def put(values: Sequence[Any]) -> None:
        for (owner, name), value in zip(places, values, strict=True):
            setattr(owner, name, value)

    @functools.wraps(call)
    def with_ours(*args: Any, **kwargs: Any) -> Any:
        put(ours)
        try:
            return call(*args, **kwargs)
        finally:
            put(theirs)

    return with_ours


def packages() -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(__path__) if name not in _OTHER_MODULES]


def integrations(package: str | None = None) -> list[Integration]:
    """The benchmarks of a package, or of all."""
    names = packages() if package is None else [package]
    return [one for name in names for one in importlib.import_module(f"{__name__}.{name}").OPERATIONS]
