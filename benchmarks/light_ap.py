"""``python -m benchmarks.light_ap``: the AP of the light model on BCCD under each remedy of its training step.

    python -m benchmarks.light_ap --options none both folded all rounding --seeds 0 1 2 3 4

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
from benchmarks.light_remedies import REMEDIES, Remedy, entered, fused_adamw, pairs_of
from benchmarks.light_report import AP_COLUMNS, ROUNDING, scores
from gflv2.engine import lightning_module
from gflv2.engine.study import study
from gflv2.models import detector
from tests.shared import shared_folder

NOISE = 1e-7
OPTIONS = {remedy.ap: remedy for remedy in REMEDIES.values() if remedy.ap} | {ROUNDING: Remedy()}


@contextlib.contextmanager
def taken(option: str) -> Iterator[None]:
    """Detectors that are made and trained in it do so under that option, but for what `settings` asks for."""
    remedy, kind = OPTIONS[option], detector.SingleStageDetector
    begin, plain = kind.__init__, kind.forward
    pairs: dict[Any, Any] = {}  # of each model whose norms are folded

    def moved(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        generator = torch.Generator().manual_seed(1)  # apart from the one that data and starts come from
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator))

    def forward(self: Any, images: Tensor) -> Any:
        if not self.training:
            return plain(self, images)
        if remedy.fold and self not in pairs:
            pairs[self] = []  # while the model runs to find them
            pairs[self] = pairs_of(self, images)
        with entered(remedy._replace(bf16=False), pairs.get(self, [])):
            return plain(self, images)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(kind, "forward", forward))
        if remedy.fused:
            stack.enter_context(mock.patch.object(lightning_module, "make_optimizer", fused_adamw))
        if option == ROUNDING:
            stack.enter_context(mock.patch.object(kind, "__init__", moved))
        yield


def settings(option: str) -> dict[str, Any]:
    """Of the recipe, what the option sets."""
    remedy = OPTIONS[option]
    found: dict[str, Any] = {"train.fast_convolutions": False}  # the remedy's paths stand in for them
    if remedy.bf16:
        found["train.precision"] = "bf16"
    return found if remedy.last else found | {"train.channels_last": False}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.light_ap", description=__doc__.split("\n\n")[0])
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
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
                study("baselines", output=folder, overrides=settings(option), **given, **which)
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
