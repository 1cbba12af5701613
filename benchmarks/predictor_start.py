"""``python -m benchmarks.predictor_start``: what the quality predictor's ReLUs do from each start under the light
recipe, for several seeds.

    python -m benchmarks.predictor_start --output benchmarks/results/predictor_start-DEVICE.csv
    python -m benchmarks.predictor_start --trained --seeds 0 1 2 --output OTHER.csv

*Replayed* (seconds a seed): one training is recorded, statistics, class logits and targets of each step; then
predictors of every start learn from the recording, with the recipe's optimiser and at a multiple of its rate.
*Trained* (minutes a seed): the whole recipe, with AP.

A unit is *silent* if its ReLU gives 0 at every point of the validation images, *linear* if at none of them. The others
bend among the points; without them the quality is a weighted sum of the statistics.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import machine, table
from benchmarks.harness.table import Row
from gflv2 import GFLV2
from gflv2.config import Config, load_config
from gflv2.data import CocoDetection, make_loader
from gflv2.engine.analysis.relations import pearson
from gflv2.engine.memory import keep_freed_memory
from gflv2.engine.schedule import lr_factor, make_optimizer, scaled_lr
from gflv2.nn.quality import INITS, QualityPredictor, sample_statistics
from gflv2.ops import dgqp_statistics, normalisers, qfl
from gflv2.ops.levels import flatten_levels
from gflv2.ops.reference.dgqp import quality_of
from tests.shared import shared_folder

COLUMNS = (
    "device config data kind steps short_side start lr seed units silent_before silent linear quality_iou quality_std "
    "score_iou qfl ap torch commit"
).split()
SHOWN = {
    "silent_before": "silent before",
    "silent": "silent after",
    "linear": "linear after",
    "quality_iou": "Pearson: quality, IoU",
    "quality_std": "spread of the quality",
    "score_iou": "Pearson: score, IoU",
    "qfl": "QFL",
    "ap": "AP",
}
FACTORS = (1.0, 10.0)  # of the learning rate; the second also stands for a training of ten times the length
NEGATIVES = 800  # points of the background that a recorded batch keeps
LAST = 50  # steps whose mean loss is told


class Points(NamedTuple):
    """Some points of a batch.

    Attributes:
        statistics: (N, F). logits: (N, C), of the classes. labels: (N,), C for the background. iou: (N,), the targets.
        weight: (N,) of their losses. divisor: of their sum.
    """

    statistics: Tensor
    logits: Tensor
    labels: Tensor
    iou: Tensor
    weight: Tensor
    divisor: Tensor


class Units(NamedTuple):
    """Hidden units of a predictor: all, those that no point activates, those that every point activates."""

    all: int
    silent: int
    linear: int


@torch.no_grad()
def units_of(predictor: QualityPredictor, rows: Tensor) -> Units:
    """What the units say at points (N, F)."""
    active = rows @ predictor[0].weight.flatten(1).t() + predictor[0].bias > 0
    return Units(active.shape[1], int((~active).all(0).sum()), int(active.all(0).sum()))


@torch.no_grad()
def points_of(model: GFLV2, output: Any, assignment: Any, targets: Any, negatives: int) -> Points:
    """All positive points of a batch and so many others, which then count for all others."""
    head, count = model.bbox_head, model.config.model.num_classes
    statistics = dgqp_statistics(output.box_logits, scales=output.scales, **statistics_options(model.config))
    labels = assignment.labels.flatten()
    labels = torch.where(labels < 0, count, labels)
    positive = labels < count
    others = (~positive).nonzero()[:, 0]
    kept = others[torch.randperm(len(others))[:negatives]]
    chosen = torch.cat([positive.nonzero()[:, 0], kept])
    weight = torch.cat([torch.ones(int(positive.sum())), torch.full((len(kept),), len(others) / max(len(kept), 1))])
    norm = normalisers(targets.sums, weight_floor=head.weight_floor)[0]
    values = (statistics.flatten(0, 1), flatten_levels(output.class_logits).flatten(0, 1), labels)
    return Points(*(each[chosen] for each in (*values, targets.scores.flatten())), weight, norm)


def statistics_options(config: Config) -> dict[str, Any]:
    """Of ``dgqp_statistics``."""
    head = config.model.head
    return {"topk": head.reg_topk, "mean": head.add_mean, "variance": head.add_variance}


def fresh(config: Config, start: str, seed: int) -> QualityPredictor:
    """A predictor as a head of this configuration has it."""
    head = config.model.head
    options = {"reg_max": head.reg_max, "topk": head.reg_topk, "add_topk": True}
    torch.manual_seed(seed)
    samples = sample_statistics(**options, add_mean=head.add_mean, add_variance=head.add_variance)
    return QualityPredictor(samples.shape[1], head.reg_channels, start, samples)


def record(
    config: Config, train_set: CocoDetection, val_set: CocoDetection, steps: int, pretrained: bool
) -> tuple[list[Points], list[Points]]:
    """Train for some steps; the points of each, and then those of the validation images."""
    loader = make_loader(train_set, config.train.batch_size, train=True, config=config.data, workers=0, seed=0)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model = GFLV2(config, class_names=train_set.class_names, pretrained=pretrained).train().to(memory_format=layout)
    optimiser, schedule = recipe(model.parameters(), config, steps, 1.0)
    head = model.bbox_head

    def look(batch: Any, negatives: int) -> tuple[Points, dict[str, Tensor]]:
        output = model(batch.images.contiguous(memory_format=layout))
        truth = (batch.boxes, batch.padded_sizes)
        assignment = head.assign(output, batch.boxes, batch.labels, batch.padded_sizes, batch.ignore_boxes)
        targets = head.targets(output, assignment, *truth)
        return points_of(model, output, assignment, targets, negatives), head.losses(output, assignment, *truth)

    seen: list[Points] = []
    for epoch in range(math.ceil(steps / len(loader))):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            if len(seen) == steps:
                break
            points, losses = look(batch, NEGATIVES)
            seen.append(points)
            optimiser.zero_grad()
            sum(losses.values()).backward()
            if config.train.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_grad_norm)
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        held = [look(batch, 8 * NEGATIVES)[0] for batch in make_loader(val_set, 8, train=False, config=config.data)]
    return seen, held


def recipe(parameters: Any, config: Config, steps: int, factor: float) -> tuple[Any, Any]:
    """Optimiser and schedule of a configuration, at a multiple of its learning rate."""
    options = load_config(config, {"train.lr": config.train.lr * factor}).train
    optimiser = make_optimizer(parameters, options)

    def rate(step: int) -> float:
        return lr_factor(step, options, iterations_per_epoch=steps, iterations=steps)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def quality_at(predictor: QualityPredictor, rows: Tensor) -> Tensor:
    """(N, F) statistics → (N,) quality logits."""
    first, _, second = predictor
    return quality_of(rows, first.weight, first.bias, second.weight, second.bias)


def replay(predictor: QualityPredictor, seen: Sequence[Points], config: Config, factor: float) -> float:
    """Train a predictor on a recording; the mean QFL of its last steps."""
    optimiser, schedule = recipe(predictor.parameters(), config, len(seen), factor)
    losses = []
    for points in seen:
        quality = quality_at(predictor, points.statistics)
        arguments = {"class_logits": points.logits, "quality_logits": quality, "beta": config.model.head.beta}
        loss = qfl((points.labels, points.iou), **arguments, weight=points.weight, avg_factor=points.divisor)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return statistics.mean(losses[-LAST:])


@torch.no_grad()
def relations(predictor: QualityPredictor, held: Sequence[Points], classes: int) -> dict[str, float]:
    """How the quality and the score go with the IoU at positive points, and how much the quality varies."""
    quality, score, iou = [], [], []
    for points in held:
        inside = points.labels < classes
        found = quality_at(predictor, points.statistics[inside]).sigmoid()
        own = points.logits[inside].gather(1, points.labels[inside, None])[:, 0].sigmoid()
        quality.append(found)
        score.append(found * own)
        iou.append(points.iou[inside])
    q, s, y = (torch.cat(parts).double().numpy() for parts in (quality, score, iou))
    return {"quality_iou": pearson(q, y), "score_iou": pearson(s, y), "quality_std": float(q.std())}


def replayed(
    config: Config, train_set: CocoDetection, val_set: CocoDetection, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of all starts, seeds and learning rates from one recording."""
    steps = options.epochs * math.ceil(len(train_set) / config.train.batch_size)
    seen, held = record(config, train_set, val_set, steps, options.pretrained)
    rows = torch.cat([points.statistics for points in held])
    for seed in options.seeds:
        for start in options.starts:
            for factor in FACTORS:
                predictor = fresh(config, start, seed)
                before = units_of(predictor, rows)
                loss = replay(predictor, seen, config, factor)
                after = units_of(predictor, rows)
                found = {"kind": "replayed", "start": start, "seed": seed, "steps": steps, "qfl": loss}
                found |= {"lr": factor * scaled_lr(config.train), "silent_before": before.silent}
                yield found | after_of(after) | relations(predictor, held, config.model.num_classes)


def after_of(units: Units) -> dict[str, int]:
    return {"units": units.all, "silent": units.silent, "linear": units.linear}


def trained(
    config: Config, train_set: CocoDetection, val_set: CocoDetection, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of all seeds and starts, each of a training of its own."""
    from gflv2.engine.analysis import analyze
    from gflv2.engine.train import train

    loader = make_loader(val_set, 8, train=False, config=config.data, workers=0)
    for seed in options.seeds:
        for start in options.starts:
            own = load_config(config, {"train.seed": seed, "model.head.quality_init": start})
            with tempfile.TemporaryDirectory() as folder:
                given = {
                    "train_data": train_set.annotation_file,
                    "val_data": val_set.annotation_file,
                }
                given |= {"output": folder, "overwrite": True, "accelerator": "cpu", "progress": False}
                result = train(own, pretrained=options.pretrained, **given)
                model = GFLV2(weights=result.last_weights).eval()
            with torch.no_grad():
                outputs = [model(batch.images) for batch in loader]
                kinds = statistics_options(own)
                parts = [dgqp_statistics(o.box_logits, scales=o.scales, **kinds).flatten(0, 1) for o in outputs]
            rows = torch.cat(parts)
            found = analyze(model, val_set, workers=0, progress=False)
            yield {
                "kind": "trained",
                "start": start,
                "seed": seed,
                "steps": options.epochs * math.ceil(len(train_set) / config.train.batch_size),
                "lr": scaled_lr(own.train),
                "silent_before": units_of(fresh(own, start, seed), rows).silent,
                **after_of(units_of(model.bbox_head.reg_conf, rows)),
                "quality_iou": found.pearson["quality_iou_points"],
                "quality_std": float(found.observations.points["quality"].std()),
                "score_iou": found.pearson["score_iou_points"],
                "ap": found.ap["AP"],
            }


def run(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one data set."""
    train_file, *others = (next(folder.rglob(f"instances_{split}.json"), None) for split in ("train", "test", "val"))
    low, high = options.short_side
    sizes = {"data.short_side": [low, high], "data.test_short_side": high, "data.long_side": 3 * high // 2}
    epochs = {"train.epochs": options.epochs, "train.evaluate_every": options.epochs}
    config = load_config(options.config, {**sizes, **epochs, "data.workers": 0})
    train_set = CocoDetection(train_file, config=config.data, train=True)
    val_set = CocoDetection(next(filter(None, others)), config=config.data, train=False)
    config.model.num_classes = train_set.num_classes
    known = {
        "device": machine.device_text(torch.device("cpu")),
        "config": config.name,
        "data": folder.name,
        "short_side": f"{low}-{high}",
        "torch": torch.__version__,
        "commit": machine.software("cpu")["commit"],
    }
    for row in (trained if options.trained else replayed)(config, train_set, val_set, options):
        yield known | {name: value if isinstance(value, str) else table.text(value) for name, value in row.items()}


def mean_and_error(rows: Sequence[Row], column: str) -> str:
    """Mean ± standard error, three significant digits; empty without numbers."""
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return ""
    mean = statistics.mean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return f"{mean:.3g}" + (f" ± {error:.1g}" if error else "")


def section(path: Path) -> Iterator[str]:
    """Lines of the report for one table."""
    rows = table.read(path, COLUMNS)
    for data, kind in dict.fromkeys((row["data"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["data"], row["kind"]) == (data, kind)]
        first = own[0]
        yield f"### {first['config']} on {data}, {kind}, {first['device']}\n"
        about = f"{first['steps']} steps at {first['short_side'].replace('-', ' to ')} pixels; {first['units']} units"
        yield f"{about}; torch {first['torch']}, commit {first['commit'] or 'unknown'}.\n"
        columns = [column for column in SHOWN if any(row[column] for row in own)]
        yield f"| start | learning rate | seeds | {' | '.join(SHOWN[column] for column in columns)} |"
        yield "|" + "---|" * (len(columns) + 3)
        for start, rate in dict.fromkeys((row["start"], row["lr"]) for row in own):
            of = [row for row in own if (row["start"], row["lr"]) == (start, rate)]
            cells = " | ".join(mean_and_error(of, column) for column in columns)
            yield f"| `{start}` | {rate} | {len(of)} | {cells} |"
        yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictor_start", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[shared_folder() / "data" / "bccd"])
    parser.add_argument("--trained", action="store_true", help="whole trainings in place of a recording")
    parser.add_argument("--starts", nargs="+", choices=INITS, default=INITS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--config", default="gflv2_lite0")
    parser.add_argument("--short-side", type=int, nargs=2, default=[160, 192])
    parser.add_argument("--random", dest="pretrained", action="store_false", help="no ImageNet weights to start from")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the table there, row by row")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: list[Row] = []
    for folder in options.data:
        for row in run(folder, options):
            rows.append(row)
            print("  ".join(f"{name} {row.get(name, '')}" for name in ("start", "lr", "seed", *SHOWN)), flush=True)
            if options.output is not None:
                table.write(options.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
