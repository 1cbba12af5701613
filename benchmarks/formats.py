"""``python -m benchmarks.formats``: train one detector on the same data as COCO, YOLO and Pascal VOC files, for several
seeds. Every digit of the AP and every bit of the weights must agree; it ends with status 1 where they do not.

    python -m benchmarks.formats --output benchmarks/results/formats-DEVICE.csv
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine, table
from benchmarks.harness.table import Row
from gflv2.checkpoint.integrity import fingerprint
from tests.data.formats import write_voc, write_yolo
from tests.shared import shared_folder

FORMATS = ("coco", "yolo", "voc")
SPLITS = {"train": "instances_train.json", "val": "instances_test.json"}
COLUMNS = "device config data images epochs seed format ap ap50 weights seconds torch commit".split()
SAME = ("ap", "ap50", "weights")
SETTINGS = {"data.short_side": [224, 256], "data.test_short_side": 256, "data.workers": 0}


def sources(data: Path, images: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Format → arguments of ``train``, for copies of a COCO data set in ``folder``."""
    made: dict[str, dict[str, Any]] = {name: {} for name in FORMATS}
    for split, name in SPLITS.items():
        content = json.loads((data / name).read_text())
        made["coco"][f"{split}_data"], made["coco"][f"{split}_images"] = data / name, images
        made["yolo"][f"{split}_data"] = write_yolo(content, images, folder / f"yolo {split}", split)
        made["voc"][f"{split}_data"] = write_voc(content, images, folder / f"voc {split}", split, labels=True)
    return made


def run(data: Path, images: Path, seeds: Sequence[int], epochs: int, config: Any, pretrained: bool) -> Iterator[Row]:
    """Train each seed from each format, and give a row of the table as each is done."""
    from gflv2.config import load_config
    from gflv2.engine.train import train

    config = load_config(config)
    known = {
        "device": machine.device_text(torch.device("cpu")),
        "config": config.name,
        "data": data.name,
        "epochs": str(epochs),
        "torch": torch.__version__,
        "commit": machine.software("cpu")["commit"],
    }
    with tempfile.TemporaryDirectory() as folder:
        made = sources(data, images, Path(folder))
        for seed in seeds:
            for name in FORMATS:
                start = time.perf_counter()
                result = train(
                    config,
                    **made[name],
                    overrides={**SETTINGS, "train.epochs": epochs, "train.seed": seed, "train.evaluate_every": epochs},
                    output=Path(folder) / f"{name} {seed}",
                    pretrained=pretrained,
                    accelerator="cpu",
                    progress=False,
                )
                yield known | {
                    "images": str(result.metrics["images"]),
                    "seed": str(seed),
                    "format": name,
                    "ap": repr(result.metrics["AP"]),
                    "ap50": repr(result.metrics["AP50"]),
                    "weights": fingerprint(torch.load(result.last_weights, weights_only=True)["state_dict"]),
                    "seconds": f"{time.perf_counter() - start:.1f}",
                }


def differing(rows: Sequence[Row]) -> list[str]:
    """What is not the same for all formats of a seed."""
    wrong = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        for column in SAME:
            values = {row["format"]: row[column] for row in rows if row["seed"] == seed}
            if len(set(values.values())) > 1:
                wrong.append(f"seed {seed}: {column} differs: {values}")
    return wrong


def section(path: Path) -> Iterator[str]:
    """Lines of the report for one table."""
    rows = table.read(path, COLUMNS)
    first = rows[0]
    yield f"### {first['config']} on {first['data']}, {first['device']}\n"
    software = f"torch {first['torch']}, commit {first['commit'] or 'unknown'}"
    yield f"{first['epochs']} epochs, AP on {first['images']} images; {software}.\n"
    yield f"| seed | {' | '.join(FORMATS)} | weights |"
    yield "|" + "---|" * (len(FORMATS) + 2)
    for seed in dict.fromkeys(row["seed"] for row in rows):
        of = {row["format"]: row for row in rows if row["seed"] == seed}
        sums = {row["weights"] for row in of.values()}
        cells = [of[name]["ap"] if name in of else "" for name in FORMATS]
        yield f"| {seed} | {' | '.join(cells)} | {'the same bits' if len(sums) == 1 else 'differ'} |"
    yield ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "bccd")
    parser.add_argument("--images", type=Path, help="default: the folder images below the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--config", default="gflv2_lite0")
    parser.add_argument("--random", dest="pretrained", action="store_false", help="no ImageNet weights to start from")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the table there, row by row")
    options = parser.parse_args(arguments)
    images = options.images or options.data / "images"
    rows: list[Row] = []
    for row in run(options.data, images, options.seeds, options.epochs, options.config, options.pretrained):
        rows.append(row)
        print(f"seed {row['seed']}, {row['format']}: AP {row['ap']}, weights {row['weights']}", flush=True)
        if options.output is not None:
            table.write(options.output, rows, COLUMNS)
    wrong = differing(rows)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
