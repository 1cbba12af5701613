"""Options of ``make bench``, the list of cases, the table that is written, and the summary that is printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Both are read when torch is imported: its profiler reports on itself otherwise, and threads that spin while they wait
# slow down every candidate on a machine that is not idle.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from benchmarks.harness import machine, table
from benchmarks.harness.candidates import Settings
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Operation
from benchmarks.integrations import integrations
from benchmarks.registry import operations

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gflv2 benchmarks")
    group.addoption("--devices", default=None, help="cpu, cuda or cpu,cuda (default: all that there are)")
    group.addoption("--integration", default=None, help="another package's detector instead of the operations")
    group.addoption("--seconds", type=float, default=None, help="time for the rounds of a case (4; curves 1)")
    group.addoption("--runs", type=int, default=5, help="runs of a case: rows of each candidate (5)")
    group.addoption(
        "--compile",
        default=None,
        choices=("none", "operations", "all"),
        help="what is also measured with torch.compile (default: operations; on a GPU all, whole models too)",
    )
    group.addoption("--compile-seconds", type=float, default=120.0, help="longest time for one compilation (120)")
    group.addoption("--no-peers", action="store_true", help="leave out other packages")
    group.addoption("--no-curves", action="store_true", help="leave out the scaling curves")
    group.addoption("--tiny", action="store_true", help="one tiny case of each operation: tests the machinery")
    group.addoption("--output", type=Path, default=None, help="CSV file (default: benchmarks/results/DEVICE.csv)")


class Recorder:
    """Collects rows and notes, and writes after every case: an interrupted run keeps what it has."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.notes: list[str] = []
        self.files: dict[Path, list[table.Row]] = {}

    def settings(self, operation: Operation, case: Case, device: torch.device, full: bool) -> Settings:
        option = self.config.getoption
        gpu = device.type == "cuda"
        compiled = option("--compile") or ("all" if gpu else "operations")
        if not gpu and not option("--tiny") and case != operation.bases(device)[0]:
            compiled = "none"  # a compilation takes longer than all the rest of a case
        return Settings(
            seconds=option("--seconds") or (4.0 if full else 1.0),
            runs=option("--runs"),
            compile=compiled,
            compile_seconds=option("--compile-seconds"),
            peers=not option("--no-peers"),
            reductions=("reduce-overhead",) if gpu else (),
        )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def add(self, rows: list[table.Row]) -> None:
        path = self.config.getoption("--output") or RESULTS / f"{machine.slug(rows[0]['device'])}.csv"
        table.merge(path, rows)
        self.files.setdefault(path, []).extend(rows)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Recorder(config)
    if all(device.type == "cpu" for device in devices(config)):
        machine.limit_memory()


_KEY = pytest.StashKey[Recorder]()


@pytest.fixture
def recorder(request: pytest.FixtureRequest) -> Recorder:
    return request.config.stash[_KEY]


def devices(config: pytest.Config) -> list[torch.device]:
    asked = config.getoption("--devices")
    if asked is None:
        return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    return [torch.device(name) for name in asked.split(",")]


def cases(config: pytest.Config) -> Iterator:
    """(operation, case, device, full), named by them."""
    for device in devices(config):
        package = config.getoption("--integration")
        every = operations() if package is None else integrations(package)
        if device.type == "cuda":  # a card may be lent for minutes: what matters most comes first
            every = sorted(every, key=lambda operation: operation.name != "head")
        for operation in every:
            if config.getoption("--tiny"):
                chosen = [(operation.tiny(), True)]
            else:
                chosen = [(case, True) for case in operation.bases(device)]
                if not config.getoption("--no-curves"):
                    chosen += [(case, False) for case in operation.curve_cases(device) if (case, True) not in chosen]
            for case, full in chosen:
                name = f"{device.type}-{operation.name}-{case.text(operation.axes).replace(' ', ',')}"
                yield pytest.param(operation, case, device, full, id=name + ("" if full else "-curve"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operation" in metafunc.fixturenames:
        metafunc.parametrize("operation, case, device, full", list(cases(metafunc.config)))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    recorder = config.stash[_KEY]
    for path, rows in recorder.files.items():
        terminalreporter.section(f"median milliseconds (more in {path})")
        for key, runs in table.by_key(rows).items():
            _, operation, backend, mode, case = key
            if mode == "backward":
                continue
            eager = table.median(runs, "vs_eager")
            ratio = "" if eager is None else f"{eager:8.2f} × eager"
            line = f"{operation:<16} {mode:<8} {backend:<28} {table.median(runs, 'ms'):10.3f} {ratio:<17} {case}"
            terminalreporter.write_line(line)
    for note in recorder.notes:
        terminalreporter.write_line(f"note: {note}")
