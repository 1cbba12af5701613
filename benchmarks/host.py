"""Host time of the operations: what Python and the bindings take before a kernel runs.

    python -m benchmarks.host                      # this checkout
    # Beside another commit, in one process, in turns. The library is the one that was built from that commit.
    python -m benchmarks.host --against 458407d --library build/458407d/_native.so

On a GPU a kernel takes microseconds, so that an eager call is as fast as its host side. It is measured in three ways. A
stub, which does nothing, takes the place of the native library, once on the way of a CPU and once on that of a GPU. The
real CPU library on maps of one cell adds what the bindings take, and a kernel of a microsecond or two.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import machine, table

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = "device library operation host_us before_us ratio torch commit before".split()
SHOWN = COLUMNS[1:6]
STUB_CPU, STUB_GPU, REAL = WAYS = ("stub, as on a CPU", "stub, as on a GPU", "real, few cells")
STRIDES = [8.0, 16.0, 32.0, 64.0, 128.0]
CALLS, TURNS = 1000, 10  # calls of a median, and turns in which they are made


class Stub(ModuleType):
    """A native library whose functions do nothing."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("__"):
            raise AttributeError(name)
        function = lambda *_, **__: 0  # noqa: E731
        setattr(self, name, function)  # a module that lacks a name takes microseconds to say so
        return function


class Package:
    """One state of the package: its operations, and its way to a native library."""

    def __init__(self, name: str, library: str | None = None) -> None:
        """Import it.

        Args:
            library: file of its native library, where the package cannot find it.
        """
        self.ops = importlib.import_module(f"{name}.ops")
        self.backends = importlib.import_module(f"{name}.ops.backends")
        self.loading = importlib.import_module(f"{name}.ops.native.loading")
        self.real = self.loading._load if library is None else lambda: (found, None)
        found = None if library is None else self.loading._import_file(f"{name}._native", library)
        self.real()  # a second library of that name must not come first

    @contextmanager
    def library(self, way: str) -> Iterator[None]:
        """Calls go to the stub on the way of a CPU or of a GPU, or to the real library."""
        stub = (Stub("stub"), None)
        before = self.loading._load, self.loading._emulation
        self.loading._load = self.loading._emulation = self.real if way == REAL else lambda: stub
        try:
            with self.backends.use_backend("simt" if way == STUB_GPU else "cpu"):
                yield
        finally:
            self.loading._load, self.loading._emulation = before


def is_commit(name: str) -> bool:
    command = ["git", "rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def before(commit: str, folder: Path) -> str:
    """Put the package of a commit into a folder under another name, and return that name."""
    name = "gflv2_before"
    archive = subprocess.run(["git", "archive", commit, "gflv2", "kernels"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "gflv2").rename(folder / name)
    kernels = folder / name / "kernels"
    if kernels.is_symlink():
        kernels.unlink()
    (folder / "kernels").rename(kernels)
    for path in (folder / name).rglob("*.py"):
        path.write_text(re.sub(r"\bgflv2\b", name, path.read_text()))
    sys.path.insert(0, str(folder))
    return name


def calls(package: Package, *, batch: int, boxes: int, cells: int) -> dict[str, Callable[[], Any]]:
    """The measured calls, by name. ``cells``: a side of the largest map; the others have half of it each."""
    ops, draw = package.ops, torch.Generator().manual_seed(0)
    sides = [max(cells >> level, 1) for level in range(5)]
    shapes = [(side, side) for side in sides]

    def maps(channels: int) -> list[Tensor]:
        return [torch.randn(batch, channels, side, side, generator=draw).requires_grad_() for side in sides]

    class_logits, box_logits = maps(3), maps(68)
    corners = 8 * cells * torch.rand(batch, boxes, 4, generator=draw) / 2
    images = [torch.cat([image[:, :2], image[:, :2] + image[:, 2:] + 1], 1) for image in corners]
    labels = [torch.zeros(boxes, dtype=torch.int64) for _ in range(batch)]
    layers = [torch.randn(*shape, generator=draw) for shape in ((64, 20, 1, 1), (64,), (1, 64, 1, 1), (1,))]
    predictor = ops.Predictor(*(layer.requires_grad_() for layer in layers))
    scales = torch.ones(5).requires_grad_()
    head = {"strides": STRIDES, "scales": scales, "projection": torch.arange(17.0), "predictor": predictor}
    leaves = [*class_logits, *box_logits, scales, *predictor[:4]]
    maps_of_head = (class_logits, box_logits)

    # A stub writes nothing, so that the assignment is made here.
    points = sum(side * side for side in sides)
    index = torch.zeros(batch, points, dtype=torch.int64)
    index[:, :boxes] = torch.arange(1, boxes + 1)[: min(boxes, points)]
    assignment = ops.Assignment(index, torch.rand(batch, points, generator=draw), index.clamp(max=0))
    with package.backends.use_backend("reference"):
        targets = ops.gfl_targets(*maps_of_head, assignment, images, **head)
        normalisers = ops.normalisers(targets.sums)

    def integral() -> Tensor:
        with torch.no_grad():
            return ops.integral(box_logits, strides=STRIDES, projection=head["projection"], scales=scales)

    def integral_both() -> None:
        out = ops.integral(box_logits, strides=STRIDES, projection=head["projection"], scales=scales)
        torch.autograd.grad(out, [*box_logits, scales], out)

    def atss() -> Any:
        return ops.atss(images, labels, shapes, STRIDES)

    def gfl_targets() -> Any:
        return ops.gfl_targets(*maps_of_head, assignment, images, **head)

    def loss_of(wanted: Any) -> None:
        losses = ops.gfl_loss(*maps_of_head, wanted, normalisers, **head)
        torch.autograd.grad(losses, leaves, [one, one, one])

    def whole_head() -> None:
        atss()
        found = gfl_targets()
        ops.normalisers(found.sums)
        loss_of(found)

    def decode() -> Any:
        return ops.decode(*maps_of_head, **head)

    rows, distances = torch.randn(100, 17, generator=draw).requires_grad_(), torch.rand(100, generator=draw)
    one = torch.ones(())

    def dfl() -> None:
        torch.autograd.grad(ops.dfl(rows, distances), rows)

    describe = package.backends._describers

    def checks(op: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        return lambda: describe[op](*arguments, **options)

    return {
        "integral forward": integral,
        "integral": integral_both,
        "atss": atss,
        "gfl_targets": gfl_targets,
        "gfl_loss": lambda: loss_of(targets),
        "head": whole_head,
        "decode": decode,
        "dfl": dfl,
        "checks of integral": checks("integral", box_logits),
        "checks of atss": checks("atss", images, labels, shapes, STRIDES),
        "checks of the head": checks("gfl_loss", *maps_of_head, **head),
    }


def microseconds(functions: list[Callable[[], Any]]) -> list[float]:
    """Median time of a call of each; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        for _ in range(CALLS // 20):
            function()
    for _ in range(TURNS):
        for found, function in zip(times, functions, strict=True):
            for _ in range(CALLS // TURNS):
                start = time.perf_counter()
                function()
                found.append(time.perf_counter() - start)
    return [1e6 * statistics.median(found) for found in times]


def measure(packages: list[Package], *, batch: int, boxes: int, cells: int) -> Iterator[dict[str, str]]:
    """Rows of the table: this package, and beside it the other one, or itself again (then the ratio is the noise)."""
    for way in WAYS:
        # A real kernel of a few cells takes little beside what is measured.
        size = (1, 1) if way == REAL else (batch, cells)
        made = [calls(package, batch=size[0], boxes=boxes, cells=size[1]) for package in packages]
        with contextlib.ExitStack() as stack:
            for package in dict.fromkeys(packages):
                stack.enter_context(package.library(way))
            for name in made[0]:
                now, then = microseconds([functions[name] for functions in made])
                numbers = {"host_us": now, "before_us": then, "ratio": now / then}
                yield {"library": way, "operation": name} | {key: f"{value:.3g}" for key, value in numbers.items()}


def section(path: Path) -> Iterator[str]:
    """Lines of the report for one table."""
    rows = table.read(path, COLUMNS)
    first = rows[0]
    beside = f"commit {first['before']}" if first["before"] else "itself, as a figure of the noise"
    yield f"### {first['device']}: commit {first['commit'] or 'unknown'} beside {beside} (torch {first['torch']})\n"
    yield f"| {' | '.join(SHOWN)} |"
    yield "|" + "---|" * len(SHOWN)
    for row in rows:
        yield f"| {' | '.join(row[column] for column in SHOWN)} |"
    yield ""


def main(arguments: list[str] | None = None) -> None:
    """The command line. It leaves the process as it was but for the number of threads, 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="measure this commit beside the checkout")
    parser.add_argument("--library", metavar="FILE", help="the native library of that commit")
    parser.add_argument("--batch", type=int, default=16, help="images (default: 16)")
    parser.add_argument("--boxes", type=int, default=10, help="boxes an image (default: 10)")
    parser.add_argument("--cells", type=int, default=32, help="cells a side of the largest map (default: 32)")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the table there")
    options = parser.parse_args(arguments)
    if (options.against is None) != (options.library is None):
        given, absent = ("--against", "--library") if options.library is None else ("--library", "--against")
        parser.error(f"{given}: expected {absent} with it: a commit, and the native library that was built from it")
    if options.library is not None and not Path(options.library).is_file():
        parser.error(f"--library: no such file: {options.library}")
    if options.against is not None and not is_commit(options.against):
        parser.error(f"--against: expected a commit of this repository, got {options.against!r}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        packages = [Package("gflv2")]
        packages.append(
            Package(before(options.against, Path(folder)), options.library) if options.against else packages[0]
        )
        rows, device = [], machine.device_text(torch.device("cpu"))
        software = machine.software("cpu")
        known = {"device": device, "torch": software["torch"], "commit": software["commit"]}
        print(f"{device}, torch {torch.__version__}")
        print("".join(f"{column:<20}" for column in SHOWN))
        for row in measure(packages, batch=options.batch, boxes=options.boxes, cells=options.cells):
            rows.append(known | {"before": options.against or ""} | row)
            print("".join(f"{row[column]:<20}" for column in SHOWN), flush=True)
    if options.output:
        table.write(options.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
