"""``python -m benchmarks.training_pair``: train the same model twice on the same data, with the reference and with the
kernels, and write both loss curves, times and final AP to ``results/training_pair-DEVICE.csv``.

Both start from the same weights and see the same batches; they take turns, step by step, another one first each time,
so that a busy moment of the machine meets both. A step is timed in two parts: targets, losses and their backward as
far as the head's outputs, and everything else.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import machine, pairs, table
from gflv2 import GFLV2, use_backend
from gflv2.config import Config, load_config
from gflv2.data import Batch, CocoDetection, make_loader
from gflv2.engine.evaluate import evaluate
from gflv2.engine.memory import keep_freed_memory
from gflv2.engine.schedule import lr_factor, make_optimizer
from gflv2.models.dense_head import HeadOutput
from gflv2.ops import backends

RESULTS = Path(__file__).parent / "results"
BCCD = machine.ROOT.parent / "shared" / "data" / "bccd"
FUSED = "fused"  # the best backend of each operation


class Measured(NamedTuple):
    """One step; times in seconds."""

    losses: dict[str, float]
    seconds: float
    head_seconds: float


class Trainee:
    """One of the two: a model, its optimiser and the backend that it runs on (None: the best)."""

    def __init__(self, name: str, backend: str | None, model: GFLV2, iterations: int, per_epoch: int) -> None:
        self.name, self.backend, self.model = name, backend, model
        self.optimizer = make_optimizer(model.parameters(), model.config.train)

        def factor(step: int) -> float:
            return lr_factor(step, model.config.train, iterations_per_epoch=per_epoch, iterations=iterations)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.rows: list[pairs.Row] = []

    def step(self, batch: Batch, clock: Callable[[], float]) -> Measured:
        """One step of training, as `gflv2.engine.lightning_module` makes it."""
        with use_backend(self.backend):
            start = clock()
            output = self.model(batch.images)
            cut = cut_off(output)
            before = clock()
            arguments = (batch.boxes, batch.labels, batch.padded_sizes)
            losses = self.model.bbox_head.loss(cut, *arguments, ignore_boxes=batch.ignore_boxes)
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            after = clock()
            given, found = joints(output, cut)
            torch.autograd.backward(given, found)
            clip = self.model.config.train.clip_grad_norm
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.schedule.step()
            end = clock()
        values = {name.removeprefix("loss_"): float(value.detach()) for name, value in losses.items()}
        return Measured(values, end - start, after - before)


def cut_off(output: HeadOutput) -> HeadOutput:
    """The same numbers as leaves, at which the backward of the losses ends. The predictor's tensors stay parameters."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().requires_grad_()

    return output._replace(
        class_logits=[leaf(level) for level in output.class_logits],
        box_logits=[leaf(level) for level in output.box_logits],
        scales=leaf(output.scales),
        quality_logits=leaf(output.quality_logits),
    )


def joints(output: HeadOutput, cut: HeadOutput) -> tuple[list[Tensor], list[Tensor]]:
    """The network's outputs, and the gradients that arrived at their copies."""
    outputs, leaves = ([*o.class_logits, *o.box_logits, o.scales, o.quality_logits] for o in (output, cut))
    both = [
        (o, leaf.grad) for o, leaf in zip(outputs, leaves, strict=True) if leaf is not None and leaf.grad is not None
    ]
    return [o for o, _ in both], [gradient for _, gradient in both]


def run(
    train_file: Path,
    test_file: Path,
    *,
    config: str | Config = "gflv2_lite0",
    epochs: int = 6,
    iterations: int | None = None,
    batch_size: int = 8,
    short_side: tuple[int, int] = (288, 320),
    seed: int = 0,
    device: str = "cpu",
    pretrained: bool | None = None,
    say: Callable[[str], Any] = print,
) -> list[pairs.Row]:
    """Train the pair and return the rows of its table.

    Args:
        train_file, test_file: COCO JSON files.
        epochs: over the training images. iterations: steps instead, where given.
        short_side: of the training images, pixels; the test images have the larger one.
        pretrained: ImageNet weights of the backbone; None: where their package is installed.
        say: gets a line now and then.
    """
    settings = load_config(
        config,
        {"data.short_side": list(short_side), "data.test_short_side": short_side[1], "train.batch_size": batch_size},
    )
    train_set = CocoDetection(train_file, config=settings.data, train=True)
    settings.model.num_classes = train_set.num_classes
    settings.train.base_batch_size = batch_size
    loader = make_loader(train_set, batch_size, train=True, config=settings.data, workers=0, seed=seed)
    total = iterations if iterations is not None else epochs * len(loader)
    settings.train.warmup_iterations = min(settings.train.warmup_iterations, total // 4)
    keep_freed_memory()

    torch.manual_seed(seed)
    carried = str(settings.model.backbone.pretrained).partition(":")[2]
    if pretrained is None:
        pretrained = bool(carried) and importlib.util.find_spec(carried) is not None
    model = GFLV2(settings, class_names=train_set.class_names, pretrained=pretrained).to(device).train()
    layout = torch.channels_last if settings.train.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    trainees = [
        Trainee(name, backend, copy.deepcopy(model), total, len(loader))
        for name, backend in (("reference", "reference"), (FUSED, None))
    ]

    where = torch.device(device)
    known = {
        "device": machine.device_text(where),
        "config": settings.name,
        "data": f"{Path(train_file).parent.name}/{Path(train_file).name}",
        "images": str(len(train_set)),
        "batch": str(batch_size),
        "start": "ImageNet" if pretrained else "random",
        **machine.software(where.type),
    }
    step, epoch = 0, 0
    while step < total:
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            if step == total:
                break
            batch = batch.to(where)
            batch.images = batch.images.contiguous(memory_format=layout)
            for trainee in trainees if step % 2 else trainees[::-1]:
                found = trainee.step(batch, clock_of(where))
                trainee.rows.append(known | row_of(trainee, step, found, where))
            if step % 20 == 0 or step == total - 1:
                losses = ", ".join(f"{t.name} {float(t.rows[-1]['loss']):.4f}" for t in trainees)
                say(f"step {step + 1} of {total}: {losses}")
            step += 1
        epoch += 1

    for trainee in trainees:
        with use_backend(trainee.backend):
            result = evaluate(trainee.model, test_file, batch_size=1, workers=0, progress=False)
        trainee.rows[-1] |= {"ap": table.text(result["AP"]), "ap50": table.text(result["AP50"])}
        say(f"{trainee.name}: AP {result['AP']:.4f}, AP50 {result['AP50']:.4f} on {result.images} test images")
    return [row for trainee in trainees for row in trainee.rows]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds, after all that was asked of the device."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def row_of(trainee: Trainee, step: int, found: Measured, device: torch.device) -> pairs.Row:
    """What changes from row to row."""
    numbers = {
        "loss": sum(found.losses.values()),
        **{name: found.losses.get(name) for name in ("qfl", "giou", "dfl")},
        "seconds": found.seconds,
        "head_seconds": found.head_seconds,
    }
    named = {"backend": trainee.name, "kernels": kernels_of(trainee.backend, device), "step": str(step)}
    return named | {"ap": "", "ap50": ""} | {name: table.text(value) for name, value in numbers.items()}


def kernels_of(backend: str | None, device: torch.device) -> str:
    """Which backend is behind a request, for operations on this device."""
    if backend is not None:
        return backend
    usable = [name for name in ("cuda", "triton", "cpu") if backends.unavailable(name, device.type) is None]
    return usable[0] if usable else "reference"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_pair", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=BCCD, help="folder with instances_train.json and _test.json")
    parser.add_argument("--config", default="gflv2_lite0")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--iterations", type=int, help="steps, instead of epochs")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--short-side", type=int, nargs=2, default=(288, 320), metavar=("LEAST", "MOST"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/training_pair-DEVICE.csv")
    options = parser.parse_args(arguments)
    files = [options.data / f"instances_{split}.json" for split in ("train", "test")]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        wanted = " and ".join(file.name for file in files)
        print(f"error: --data: expected a folder with {wanted}; no file {missing[0]}", file=sys.stderr)
        return 2
    rows = run(
        *files,
        config=options.config,
        epochs=options.epochs,
        iterations=options.iterations,
        batch_size=options.batch_size,
        short_side=tuple(options.short_side),
        seed=options.seed,
        device=options.device,
    )
    output = options.output or RESULTS / f"{pairs.PREFIX}{machine.slug(rows[0]['device'])}.csv"
    pairs.write(output, rows)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
