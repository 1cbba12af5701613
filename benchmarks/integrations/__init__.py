"""Other people's detectors with and without this project's operations, in one process: one file a package.

``benchmarks/integrations/PACKAGE.py`` holds ``OPERATIONS``, a list of `Integration`. It imports its package inside
functions only, since the report and the guide read the list where the package is absent. ``make bench-integrations``
runs each file in the environment of tests/integrations/requirements/PACKAGE.txt.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness.candidates import BEST, Candidate, Settings
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Operation

_OTHER_MODULES = {"guide"}


class Integration(Operation):
    """A benchmark of a package; its name is PACKAGE_step or PACKAGE_head.

    In the table, the candidate ``best`` is the package with this project's operations, the one named like the package
    is the package alone, and the column ``vs_eager`` says how many times faster than the latter.

    Attributes:
        package: the name of the file.
        what: a few words for the guide.
    """

    package = ""
    what = ""
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
        return found + [Candidate(name, call, "peer") for name, call in self.others(case, device).items()]


def packages() -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(__path__) if name not in _OTHER_MODULES]


def integrations(package: str | None = None) -> list[Integration]:
    """The benchmarks of a package, or of all."""
    names = packages() if package is None else [package]
    return [one for name in names for one in importlib.import_module(f"{__name__}.{name}").OPERATIONS]
