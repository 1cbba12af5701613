"""What ncu has measured of the forecast's workload, as a table that the forecast reads.

    python -m tests.gpu.ncu ncu-cuda.csv ncu-triton.csv --output benchmarks/results/ncu-NAME.csv --device "NVIDIA H200"

The input is what ``ncu --csv --page raw --print-units base --print-kernel-base mangled --metrics METRICS`` prints of
`tests.gpu.workload`. A launch that the forecast does not know is left out, and counted.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness import table
from tests.gpu.workload import STAGES
from tests.kernels.hot import Hot
from tests.kernels.launches import hot

COLUMNS = "device operation mode source kernel us instructions load_sectors store_sectors bytes registers".split()
# Column of the table → metric and what one of its units is in ours.
_METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "instructions": ("smsp__inst_executed.sum", 1.0),
    "load_sectors": ("l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum", 1.0),
    "store_sectors": ("l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum", 1.0),
    "bytes": ("dram__bytes.sum", 1.0),
    "registers": ("launch__registers_per_thread", 1.0),
}
METRICS = ",".join(metric for metric, _ in _METRICS.values())
_MARK = "spin_kernel"  # of torch.cuda._sleep


def launches(text: str) -> list[dict[str, str]]:
    """The rows of ncu's output, without its messages and its line of units.

    Raises:
        ValueError: there is no table, or a metric is missing.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError("ncu: expected a table, found none")
    missing = [metric for metric, _ in _METRICS.values() if metric not in rows[0]]
    if "Kernel Name" not in rows[0] or missing:
        raise ValueError(f"ncu: expected the columns Kernel Name and {METRICS}; missing: {', '.join(missing)}")
    return [row for row in rows if row["ID"]]


def read(text: str, device: str) -> tuple[list[table.Row], int]:
    """Rows of the table, one a launch of the forecast (the first, where there are several), and how many others.

    Raises:
        ValueError: see `launches`; a launch stands before the first mark; there are other marks than stages.
    """
    stage, found, others = -1, {}, 0
    for row in launches(text):
        name = row["Kernel Name"]
        if _MARK in name:
            stage += 1
            continue
        if not 0 <= stage < len(STAGES):
            raise ValueError(f"ncu: expected {len(STAGES)} marks, each before its launches; {name} stands outside")
        _, mode, operations = STAGES[stage]
        item = _launch(name, mode, operations)
        if item is None:
            others += 1
        elif item.name not in found:
            numbers = {column: _number(row[metric]) * unit for column, (metric, unit) in _METRICS.items()}
            known = {"device": device, "operation": item.operation, "mode": item.mode, "source": item.source}
            found[item.name] = known | {"kernel": item.kernel} | {k: table.text(v) for k, v in numbers.items()}
    if stage + 1 != len(STAGES):
        raise ValueError(f"ncu: expected {len(STAGES)} marks, found {stage + 1}")
    return list(found.values()), others


def _launch(name: str, mode: str, operations: Iterable[str]) -> Hot | None:
    """The forecast's launch of a kernel: by its mangled name, or, of Triton, by its own."""
    for item in hot():
        if item.mode == mode and item.operation in operations:
            cuda = item.backend == "cuda" and item.kernel in name and re.search(item.instance, name)
            if cuda or (item.backend == "triton" and name == item.kernel):
                return item
    return None


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.ncu", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="what ncu has printed")
    parser.add_argument("--output", type=Path, help="the table")
    parser.add_argument("--device", default="", help="its name")
    parser.add_argument("--metrics", action="store_true", help="print what ncu must be asked for")
    options = parser.parse_args(arguments)
    if options.metrics:
        print(METRICS)
        return 0
    rows: list[table.Row] = []
    for path in options.files:
        try:
            found, others = read(path.read_text(), options.device)
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
        print(f"{path}: {len(found)} launches of the forecast, {others} others")
        rows += found
    table.write(options.output, rows, COLUMNS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
