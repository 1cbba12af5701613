"""``python -m benchmarks.loader``: how fast images become batches, and what that is of a training step.

    python -m benchmarks.loader --against 458407d --output benchmarks/results/loader-DEVICE.csv

In one process and one thread, without workers, the candidates take turns on the same images with the same random
transforms: the options off, twice (the second is the noise), decoding at reduced scale, images kept in memory, both,
and another commit's loader. Each batch is then trained on by the same model. Processor time is measured, which other
programs disturb less than the clock; ratios are medians over the rounds, each against the first candidate of its round.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from benchmarks import host
from benchmarks.harness import machine, table
from benchmarks.harness.table import Row
from benchmarks.harness.turns import turned
from benchmarks.training_pair import Trainee
from gflv2 import GFLV2, data
from gflv2.config import load_config
from tests.shared import shared_folder

COLUMNS = (
    "device config data pixels batch rounds loader load_ms images_per_s load_ratio step_ms step_ratio torch commit"
).split()
SHOWN = COLUMNS[COLUMNS.index("loader") : COLUMNS.index("torch")]
OPTIONS: dict[str, dict[str, bool]] = {
    "options off": {},
    "options off again": {},
    "reduced_decode": {"reduced_decode": True},
    "cache_images": {"cache_images": True},
    "both": {"reduced_decode": True, "cache_images": True},
}


class Candidate(NamedTuple):
    """A data set and the function that makes a batch of its samples."""

    name: str
    dataset: Any
    collate: Callable[[Sequence[Any]], Any]

    def batch(self, keys: Sequence[tuple[int, int]]) -> Any:
        return self.collate([self.dataset[key] for key in keys])


def enlarged(file: Path, images: Path, folder: Path, factor: int, count: int) -> Path:
    """A COCO file of the first images, enlarged: photographs as cameras make them, which no test data holds."""
    content = json.loads(file.read_text())
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    (folder / "images").mkdir(parents=True)
    for image in content["images"]:
        with Image.open(images / image["file_name"]) as picture:
            size = picture.width * factor, picture.height * factor
            picture.convert("RGB").resize(size).save(folder / "images" / image["file_name"], quality=90)
        image["width"], image["height"] = size
    for row in content["annotations"]:
        row["bbox"] = [factor * value for value in row["bbox"]]
        row["area"] *= factor**2
        row.pop("segmentation", None)
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def candidates(file: Path, images: Path, settings: Any, other: str | None) -> Iterator[Candidate]:
    """Those of this checkout, and that of the package ``other``."""
    for name, options in OPTIONS.items():
        config = dataclasses.replace(settings, **options)
        yield Candidate(name, data.CocoDetection(file, images, config=config, train=True), data.collate)
    if other is not None:
        theirs, module = importlib.import_module(f"{other}.data"), importlib.import_module(f"{other}.config")
        known = {field.name: getattr(settings, field.name, None) for field in dataclasses.fields(module.DataConfig)}
        dataset = theirs.CocoDetection(file, images, config=module.DataConfig(**known), train=True)
        yield Candidate("before", dataset, theirs.collate)


def measure(found: Sequence[Candidate], trainee: Trainee, batch: int, rounds: int) -> Iterator[dict[str, float]]:
    """Median load and step times of each candidate in seconds, and their ratios to the first."""
    times: dict[str, list[tuple[float, float]]] = {candidate.name: [] for candidate in found}
    length = min(len(candidate.dataset) for candidate in found)
    last = trainee.model.config.train.channels_last
    layout = torch.channels_last if last else torch.contiguous_format
    for number in range(-1, rounds):  # the first one warms up
        keys = [(item % length, 1000 * number + item) for item in range(number * batch, (number + 1) * batch)]
        for candidate in turned(found, number):
            start = time.process_time()
            made = candidate.batch(keys)
            loaded = time.process_time() - start
            made.images = made.images.contiguous(memory_format=layout)
            took = trainee.step(made, time.process_time).seconds
            if number >= 0:
                times[candidate.name].append((loaded, loaded + took))
    base = times[found[0].name]
    for candidate in found:
        own = times[candidate.name]
        ratios = [[a[k] / b[k] for a, b in zip(own, base, strict=True)] for k in (0, 1)]
        load, step = (statistics.median(row[k] for row in own) for k in (0, 1))
        yield {
            "load_ms": 1e3 * load,
            "images_per_s": batch / load,
            "load_ratio": statistics.median(ratios[0]),
            "step_ms": 1e3 * step,
            "step_ratio": statistics.median(ratios[1]),
        }


def run(
    sets: dict[str, tuple[Path, Path]],
    *,
    config: Any = "gflv2_lite0",
    batch: int,
    rounds: int,
    other: str | None = None,
) -> Iterator[Row]:
    """Rows of the table.

    Args:
        sets: name → COCO file and folder of images.
        other: a package whose loader takes part, for ``before``.
    """
    settings = load_config(config)
    for name, (file, images) in sets.items():
        found = list(candidates(file, images, settings.data, other))
        settings.model.num_classes = found[0].dataset.num_classes
        torch.manual_seed(0)
        model = GFLV2(settings, class_names=found[0].dataset.class_names).train()
        if settings.train.channels_last:
            model.to(memory_format=torch.channels_last)
        trainee = Trainee("both", None, model, rounds, rounds)
        sizes = [height * width for height, width in map(found[0].dataset.size, range(len(found[0].dataset)))]
        known = {
            "device": machine.device_text(torch.device("cpu")),
            "config": settings.name,
            "data": name,
            "pixels": f"{statistics.median(sizes) / 1e6:.2g} million",
            "batch": str(batch),
            "rounds": str(rounds),
            "torch": torch.__version__,
            "commit": machine.software("cpu")["commit"],
        }
        for candidate, numbers in zip(found, measure(found, trainee, batch, rounds), strict=True):
            yield known | {"loader": candidate.name} | {key: f"{value:.3g}" for key, value in numbers.items()}


def section(path: Path) -> Iterator[str]:
    """Lines of the report for one table."""
    rows = table.read(path, COLUMNS)
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        first = own[0]
        yield f"### {name}, {first['device']}\n"
        about = f"images of {first['pixels']} pixels (median), batches of {first['batch']}, {first['rounds']} rounds"
        software = f"torch {first['torch']}, commit {first['commit'] or 'unknown'}"
        yield f"{first['config']}; {about}; {software}.\n"
        yield f"| {' | '.join(SHOWN)} |"
        yield "|" + "---|" * len(SHOWN)
        for row in own:
            yield f"| {' | '.join(row[column] for column in SHOWN)} |"
        yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "coco_mini")
    parser.add_argument("--against", metavar="COMMIT", help="a commit whose loader takes part")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--factor", type=int, default=4, help="how much the large photographs are enlarged (4)")
    parser.add_argument("--images", type=int, default=16, help="number of large photographs (16)")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the table there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file, images = options.data / "instances_train.json", options.data / "images"
    with tempfile.TemporaryDirectory() as folder:
        large = enlarged(file, images, Path(folder) / "large", options.factor, options.images)
        name = options.data.name
        sets = {name: (file, images), f"{name}, enlarged {options.factor}×": (large, large.parent / "images")}
        other = host.before(options.against, Path(folder)) if options.against else None
        rows = []
        for row in run(sets, batch=options.batch, rounds=options.rounds, other=other):
            if row["loader"] == "before":
                row["loader"] = f"commit {options.against}"
            rows.append(row)
            print("  ".join(f"{row[column]:<18}" for column in ("data", *SHOWN)), flush=True)
    if options.output is not None:
        table.write(options.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
