"""``python -m benchmarks.light_ap``: the AP of the light model on BCCD under each faster path of convolutions.

    python -m benchmarks.light_ap --options none products columns both rounding --seeds 0 1 2 3 4

The training is that of GFLV2 in the study ``baselines``, with one thread, minutes a seed; a seed that is there is not
trained again. ``rounding`` is ``none`` from start weights that are multiplied by 1 ± 1e-7: what is left of a difference
between options when only the rounding differs. The report has the table beside that of ``benchmarks.light_step``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness import table
from benchmarks.light_report import AP_COLUMNS, ROUNDING, scores
from gflv2.engine.study import study
from gflv2.models import detector
from gflv2.models.cpu_convolutions import CPUConvolutions
from tests.shared import shared_folder

NOISE = 1e-7
PATHS = {
    "none": {"columns": False, "products": False},
    "products": {"columns": False, "products": True},
    "columns": {"columns": True, "products": False},
    "both": {"columns": True, "products": True},
}


@contextlib.contextmanager
def taken(option: str) -> Iterator[None]:
    """Detectors that are made and trained in it do so under that option."""
    begin = detector.SingleStageDetector.__init__

    def moved(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        generator = torch.Generator().manual_seed(1)  # apart from the one that data and starts come from
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator))

    def faster_on(images: Tensor, training: bool) -> contextlib.AbstractContextManager[Any]:
        paths = PATHS.get(option, PATHS["none"])
        return CPUConvolutions(**paths) if training and any(paths.values()) else contextlib.nullcontext()

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(detector, "faster_on", faster_on))
        if option == ROUNDING:
            stack.enter_context(mock.patch.object(detector.SingleStageDetector, "__init__", moved))
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.light_ap", description=__doc__.split("\n\n")[0])
    parser.add_argument("--options", nargs="+", choices=[*PATHS, ROUNDING], default=[*PATHS, ROUNDING])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "bccd")
    parser.add_argument("--runs", type=Path, default=Path("runs/light_ap"), help="folder of the trainings")
    parser.add_argument("--quick", action="store_true", help="the study's quick form, on generated images")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / f"{table.LIGHT_AP}.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files = [options.data / name for name in ("instances_train.json", "instances_val.json", "images")]
    which = {"quick": True, "only": ["shapes"]} if options.quick else {"data": {"bccd": files}, "only": ["bccd"]}
    for seed in options.seeds:
        for option in options.options:
            folder = options.runs / option
            with taken(option):
                given = {"rows": ["GFLV2"], "seeds": [seed], "devices": ["cpu"], "cost": False, "progress": False}
                study("baselines", output=folder, **given, **which)
            with open(folder / "runs.csv", newline="") as file:
                found = {row["seed"]: float(row["AP"]) for row in csv.DictReader(file)}
            known = scores(options.output)
            known[option] = known.get(option, {}) | found
            rows = [
                {"option": name, "seed": number, "ap": f"{ap:.6f}"}
                for name, own in known.items()
                for number, ap in sorted(own.items(), key=lambda pair: int(pair[0]))
            ]
            table.write(options.output, rows, AP_COLUMNS)
            print(f"{option}, seed {seed}: AP {found[str(seed)]:.4f}", flush=True)


if __name__ == "__main__":
    main()
