"""The forecast: how long each kernel should take on a GPU, predicted from its machine code; and what CI holds.

``python -m tests.kernels.forecast`` compiles every kernel for the forecast's architectures and writes docs/forecast.md,
expectation.json and gflv2/ops/preference.py. With ``--check`` it writes nothing and fails where a hot path has more
instructions an element than expected, narrower loads or stores, or spilled registers, or where another backend would
come first. ``matrix`` does both with the machine code that it compiles anyway. What is declared of a launch: ``hot``;
the machine code: ``machine_code``; the times: ``model``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import table
from tests.kernels.hot import WORKLOAD, Hot
from tests.kernels.launches import hot
from tests.kernels.machine_code import Facts
from tests.kernels.model import GPUS, UTILISATION, Forecast, Gpu, Launch, forecast

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "forecast.md"
EXPECTATION = Path(__file__).with_name("expectation.json")
PREFERENCE = ROOT / "gflv2" / "ops" / "preference.py"
RESULTS = ROOT / "benchmarks" / "results"
CHECKED = 90  # architecture whose machine code is held

# More than this share is growth. The same compiler writes the same code: the rest is room for a change elsewhere.
_GROWTH = 0.03
# The head in training, and how the benchmarks name its parts.
HEAD = {
    "forward": ("atss", "gfl_targets", "dgqp", "qfl", "gfl_loss"),
    "backward": ("qfl", "gfl_loss"),
}


class Line(NamedTuple):
    """One launch, compiled."""

    hot: Hot
    facts: Facts
    launch: Launch
    stack: int

    @property
    def per_element(self) -> float:
        """Instructions of a thread an element."""
        return self.facts.instructions * self.launch.blocks * self.launch.warps * 32 / self.hot.elements

    def held(self) -> dict[str, float]:
        """What is compared."""
        return {
            "instructions": round(self.per_element, 3),
            "load_width": round(self.facts.load_width, 3),
            "store_width": round(self.facts.store_width, 3),
            "local": round(self.facts.local, 3),
        }


def lines(results: Iterable[Any], architecture: int) -> list[Line]:
    """The launches among what ``matrix.compile_all`` returns, in the order of their names."""
    found = []
    for result in results:
        for usage in result if isinstance(result, list) else ():
            if usage.architecture == architecture and usage.launched is not None:
                item = usage.launched
                launch = Launch(item.blocks, item.warps, usage.registers, item.shared, item.hot.bytes, item.last)
                found.append(Line(item.hot, item.facts, launch, usage.stack))
    return sorted(found, key=lambda line: line.hot.name)


# What CI holds.


def compilers() -> dict[str, str]:
    """Their versions by backend: another one writes other machine code."""
    import triton

    nvcc = shutil.which("nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    release = re.search(r"release (\d+\.\d+)", text)
    return {"cuda": release[1] if release else "", "triton": ".".join(triton.__version__.split(".")[:2])}


def problems(results: Sequence[Any]) -> list[str]:
    """What became worse, one text each. A backend compiled by another compiler is only looked at for spills."""
    from tests.kernels import preference  # it is derived from this module's sums

    expected = json.loads(EXPECTATION.read_text())
    found = lines(results, CHECKED)
    if not any(usage.architecture == CHECKED for result in results if isinstance(result, list) for usage in result):
        return []  # another one was asked for
    here, texts = compilers(), []
    for backend, version in here.items():
        if version and version != expected["compilers"][backend]:
            print(f"forecast: {backend} {version} here, {expected['compilers'][backend]} expected: not compared")
    same = {backend for backend, version in here.items() if version == expected["compilers"][backend]}
    names = {line.hot.name for line in found}
    sources = {usage.source for result in results if isinstance(result, list) for usage in result}
    for item in hot():
        # A source that was left out, or did not compile, has its own message.
        if item.backend in same and item.source in sources and item.name not in names:
            texts.append(f"{item.name}: no machine code fits what HOT in tests/kernels/launches declares")
    for line in found:
        before = expected["kernels"].get(line.hot.name)
        texts += compare(line.hot.name, line.held(), before, same=line.hot.backend in same)
    if len(same) == len(here):
        texts += preference.problems(results)
    return texts


def compare(name: str, now: Mapping[str, float], before: Mapping[str, float] | None, *, same: bool = True) -> list[str]:
    """What became worse of one launch. ``same``: both by the same compiler."""
    if before is None:
        return [f"{name}: not in the expectation; run make forecast"]
    worse = []
    if same and now["instructions"] > before["instructions"] * (1 + _GROWTH):
        worse.append(("instructions", "instructions an element"))
    for kind in ("load", "store"):
        if same and now[f"{kind}_width"] < before[f"{kind}_width"] * (1 - _GROWTH):
            worse.append((f"{kind}_width", f"bytes a {kind}"))
    if now["local"] > before["local"]:
        worse.append(("local", "loads and stores of spilled registers"))
    return [f"{name}: {now[key]:.2f} {what}, {before[key]:.2f} expected" for key, what in worse]


# What has been measured.


def measured(folder: Path, gpu: Gpu) -> dict[tuple[str, str, str], float]:
    """Seconds by operation, mode and backend, of the workload on this GPU, from the benchmarks' tables."""
    found = {}
    for path in table.files(folder):
        for row in table.read(path):
            # "H200" of "NVIDIA H200"; a CPU has no driver.
            if (
                row["driver"]
                and re.search(rf"\b{gpu.name}\b", row["device"])
                and row["ms"]
                and _is_workload(row["case"])
            ):
                found[row["operation"], row["mode"], row["backend"]] = float(row["ms"]) / 1e3
    return found


def profiled(folder: Path, gpu: Gpu) -> dict[str, table.Row]:
    """What ncu has measured of each launch on this GPU, by the launch's name."""
    from tests.gpu import ncu

    found = {}
    for path in sorted(folder.glob(f"{table.NCU}*.csv")):
        for row in table.read(path, ncu.COLUMNS):
            if re.search(rf"\b{gpu.name}\b", row["device"]):
                found[f"{row['operation']} {row['mode']}: {row['source']} {row['kernel']}"] = row
    return found


def _is_workload(case: str) -> bool:
    values = dict(item.split("=", 1) for item in case.split())
    wanted = {
        "batch": "16",
        "size": "800x1344",
        "dtype": "bfloat16",
        "layout": "nchw",
        "form": "joint",
        "classes": "80",
    }
    wanted |= {"reg_max": "16", "boxes": "100"}
    return "batch" in values and all(values.get(name, value) == value for name, value in wanted.items())


def totals(found: Sequence[Line], gpu: Gpu) -> dict[tuple[str, str, str], float]:
    """Predicted seconds by operation, mode and backend; of the head where all its operations are there."""
    sums: dict[tuple[str, str, str], float] = {}
    for line in found:
        key = (line.hot.operation, line.hot.mode, line.hot.backend)
        sums[key] = sums.get(key, 0.0) + line.hot.launches * forecast(line.facts, line.launch, gpu).seconds
    for backend in ("cuda", "triton"):
        for mode, operations in HEAD.items():
            parts = [sums.get((operation, mode, backend)) for operation in operations]
            if None not in parts:
                sums["head", mode, backend] = sum(part for part in parts if part is not None)
    return sums


# The document.


def render(results: Sequence[Any], folder: Path = RESULTS) -> str:
    """docs/forecast.md."""
    by_architecture = {gpu.architecture: lines(results, gpu.architecture) for gpu in GPUS}
    first = GPUS[0]
    parts = [_TOP, _facts(by_architecture[first.architecture], first), _BETWEEN, _times(by_architecture)]
    parts += [_TOTALS, _sums(by_architecture), _missing(results)]
    for gpu in GPUS:
        times = measured(folder, gpu)
        if times:
            parts.append(_measured(by_architecture[gpu.architecture], times, gpu))
        kernels = profiled(folder, gpu)
        if kernels:
            parts.append(_profiled(by_architecture[gpu.architecture], kernels, gpu))
    return "\n".join([*parts, _hardware()])


_TOP = f"""# The forecast

**Every time on this page is a prediction**, unless a column says "measured". Written by `make forecast` from the
machine code of the kernels, which needs no GPU; nothing in it is typed. The workload:
{WORKLOAD}.

time = max(bytes ÷ bandwidth, issue, LDS, MUFU, FP32, mma) ÷ {UTILISATION}, an assumed utilisation; or, where that is
longer, the latency of one block times the rounds that the grid needs (a serial tail). Where the block that ends last
adds up what the others have left, its time comes on top. What the machine code does not say, how often a loop runs and
which side of a branch is the usual one, is declared in `HOT` beside each operation's launches
(`tests/kernels/launches`). `make forecast FORECAST_ARGS=--check`, and CI, refuse a hot path with 3 % more
instructions an element, narrower loads or stores, or spilled registers; what is expected stands in
`tests/kernels/expectation.json`. What `benchmarks/gpu_check.sh` measures on a GPU stands beside the predictions, and
the utilisation is fitted from it, once `benchmarks/results` has its tables. The same times decide which backend comes
first on a GPU (`gflv2/ops/preference.py`).

## The machine code

For sm_90, of one warp from its first to its last instruction on the hot path. An element is a logit, or a point where
a kernel has one value a point. Width: bytes a thread of the average load and store.
"""

_BETWEEN = """
## Each kernel

Predicted µs; of the first GPU also the memory floor, and what the kernel waits for.
"""

_TOTALS = """
## Each operation

Predicted µs, the launches of the table above one after the other, for operations all of whose launches stand there. The
head is the training head: assignment, targets and losses.
"""


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _heading(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def micro(seconds: float) -> str:
    """Microseconds for a reader."""
    return _number(seconds * 1e6)


def label(item: Hot) -> tuple[str, str]:
    """A launch as the tables of the document name it; times are of one launch."""
    times = f" × {item.launches}" if item.launches > 1 else ""
    return f"{item.operation} {item.mode}", f"{item.source} `{item.kernel}`{times}"


def _facts(found: Sequence[Line], gpu: Gpu) -> str:
    names = ("operation", "kernel", "warps", "registers", f"blocks an SM ({gpu.name})", "instructions")
    text = _heading(*names, "an element", "load width", "store width", "MUFU", "LDS", "mma", "barriers", "local memory")
    for line in found:
        facts, launch = line.facts, line.launch
        widths = [_number(width) if width else "–" for width in (facts.load_width, facts.store_width)]
        counts = [_number(item) for item in (facts.mufu, facts.shared, facts.mma, facts.barriers, facts.local)]
        occupancy = forecast(facts, launch, gpu).occupancy
        warps = f"{launch.blocks * launch.warps:,}"
        cells = (warps, launch.registers, occupancy, _number(facts.instructions), _number(line.per_element))
        text.append(_row(*label(line.hot), *cells, *widths, *counts))
    return "\n".join(text)


def _predicted(found: Mapping[int, Sequence[Line]], gpu: Gpu) -> dict[str, Forecast]:
    return {line.hot.name: forecast(line.facts, line.launch, gpu) for line in found[gpu.architecture]}


def _times(found: Mapping[int, Sequence[Line]]) -> str:
    first = GPUS[0]
    text = _heading("operation", "kernel", "floor", "waits for", *(f"{gpu.name}, predicted" for gpu in GPUS))
    predicted = [_predicted(found, gpu) for gpu in GPUS]
    for line in found[first.architecture]:
        own = predicted[0][line.hot.name]
        times = [micro(item[line.hot.name].seconds) if line.hot.name in item else "–" for item in predicted]
        text.append(_row(*label(line.hot), micro(own.limits["bytes"]), own.limit, *times))
    return "\n".join(text)


def _sums(found: Mapping[int, Sequence[Line]]) -> str:
    columns = [totals(found[gpu.architecture], gpu) for gpu in GPUS]
    text = _heading("operation", "kernels", *(f"{gpu.name}, predicted" for gpu in GPUS))
    for key in sorted(columns[0]):
        operation, mode, backend = key
        text.append(_row(f"{operation} {mode}", backend, *(micro(column[key]) for column in columns if key in column)))
    return "\n".join(text)


def _missing(results: Sequence[Any]) -> str:
    every = {(usage.source, usage.kernel) for result in results if isinstance(result, list) for usage in result}
    rest: dict[str, list[str]] = {}
    for source, kernel in sorted(every - {(item.source, item.kernel) for item in hot()}):
        rest.setdefault(source, []).append(f"`{kernel}`")
    text = "; ".join(f"{source} {', '.join(kernels)}" for source, kernels in rest.items())
    return f"\nNot in these tables, because the workload does not launch them or no loops are declared: {text}."


def _measured(found: Sequence[Line], times: Mapping[tuple[str, str, str], float], gpu: Gpu) -> str:
    predicted = totals(found, gpu)
    text = [f"\n## Predicted and measured: {gpu.name}\n"]
    text += _heading("operation", "kernels", "predicted µs", "measured µs", "measured ÷ predicted")
    ratios = []
    for key in sorted(predicted.keys() & times.keys()):
        ratios.append(times[key] / predicted[key])
        label = (f"{key[0]} {key[1]}", key[2])
        text.append(_row(*label, micro(predicted[key]), micro(times[key]), f"{ratios[-1]:.2f}"))
    if ratios:
        fitted = UTILISATION / statistics.median(ratios)
        text.append(f"\nThe utilisation that fits the median of these: {fitted:.2f} (assumed: {UTILISATION}).")
    return "\n".join(text)


def _profiled(found: Sequence[Line], kernels: Mapping[str, table.Row], gpu: Gpu) -> str:
    text = [f"\n## Predicted and measured, kernel by kernel: {gpu.name}\n"]
    names = ("predicted µs", "measured µs", "measured ÷ predicted", "predicted instructions", "measured instructions")
    text += _heading("operation", "kernel", *names)
    ratios = []
    for line in found:
        row = kernels.get(line.hot.name)
        if row is None:
            continue
        predicted = forecast(line.facts, line.launch, gpu)
        ratio = float(row["us"]) / 1e6 / predicted.seconds
        if predicted.limit != "latency":  # which no utilisation divides
            ratios.append(ratio)
        issued = line.facts.instructions * line.launch.blocks * line.launch.warps
        cells = (micro(predicted.seconds), _number(float(row["us"])), f"{ratio:.2f}")
        text.append(_row(*label(line.hot), *cells, f"{issued:,.0f}", f"{float(row['instructions']):,.0f}"))
    if ratios:
        fitted = UTILISATION / statistics.median(ratios)
        text.append(f"\nThe utilisation that fits the median of these, latency apart: {fitted:.2f}.")
    return "\n".join(text)


def _hardware() -> str:
    names = ("GPU", "machine code", "TB/s", "SMs", "GHz", "FP32 lanes an SM", "mma a cycle and SM", "source")
    text = ["\n## The hardware\n", *_heading(*names)]
    for gpu in GPUS:
        numbers = (f"{gpu.bandwidth / 1e12:.2f}", gpu.multiprocessors, f"{gpu.clock / 1e9:.2f}", gpu.fp32)
        text.append(_row(gpu.name, f"sm_{gpu.architecture}", *numbers, gpu.multiply_adds, gpu.source))
    return "\n".join([*text, ""])


def write(results: Sequence[Any]) -> None:
    """Write the document, the expectation and the backends' order from what ``matrix.compile_all`` has returned."""
    from tests.kernels import preference

    missing = {item.name for item in hot()} - {line.hot.name for line in lines(results, CHECKED)}
    if missing:
        raise ValueError(
            f"no machine code fits what HOT in tests/kernels/launches declares: {', '.join(sorted(missing))}"
        )
    DOCUMENT.write_text(render(results))
    kernels = {line.hot.name: line.held() for line in lines(results, CHECKED)}
    EXPECTATION.write_text(json.dumps({"compilers": compilers(), "kernels": kernels}, indent=2) + "\n")
    PREFERENCE.write_text(preference.render(preference.of_results(results)))
    files = (DOCUMENT, EXPECTATION, PREFERENCE)
    print("wrote", ", ".join(str(path.relative_to(ROOT)) for path in files))


def main(arguments: Sequence[str] | None = None) -> int:
    from tests.kernels import matrix

    parser = argparse.ArgumentParser(prog="python -m tests.kernels.forecast", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with the expectation")
    options = parser.parse_args(arguments)
    nvcc = shutil.which("nvcc") is not None
    results = matrix.compile_all([CHECKED] if options.check else list(matrix.FORECAST), options.jobs, cuda=nvcc)
    found = matrix.problems(results)
    if options.check:
        found += problems(results)
    elif nvcc and not found:
        write(results)
    if not nvcc:
        print("nvcc is not on PATH: the CUDA sources were not compiled, and nothing is written")
    for text in found:
        print(f"error: {text}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
