"""``python -m benchmarks.light_step``: where a training step of the light model spends its time on a CPU, and what each
remedy gains, alone and together.

    python -m benchmarks.light_step --output benchmarks/results/light_step-DEVICE.csv

Remedies take turns in one process, another one first each time; a ratio is the median over the rounds of plain time to
own time, and the second plain step is the noise. With one thread the clock is the processor time of the process, which
other programs disturb little; with several it is the wall's, so the machine must be quiet.

Layers: each convolution of the model in channels_last, forward and both gradients, against the fastest of its kind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import inputs
from benchmarks.harness import machine, table
from benchmarks.harness.cases import Case
from benchmarks.harness.table import Row
from gflv2 import GFLV2
from gflv2.engine.memory import keep_freed_memory
from gflv2.models.cpu_convolutions import CPUConvolutions

COLUMNS = ("device config batch size rounds load part name count gflop ms gflops ratio low high torch commit").split()
LAST = {"memory_format": torch.channels_last}
ALL = (True, True, True)  # gradients of input, kernel, bias


class Remedy(NamedTuple):
    """What is changed in a step.

    Attributes:
        mode: of the convolutions; None: PyTorch's own choice.
        fused: AdamW in one kernel. bf16: autocast of the forward pass. last: channels_last.
    """

    mode: dict[str, bool] | None = None
    fused: bool = False
    bf16: bool = False
    last: bool = True


REMEDIES = {
    "plain": Remedy(),
    "plain again": Remedy(),
    "gradients of wide depthwise kernels in columns": Remedy({"columns": True, "products": False}),
    "1×1 kernels by oneDNN": Remedy({"columns": False, "products": True}),
    "both (train.fast_convolutions)": Remedy({"columns": True, "products": True}),
    "fused AdamW": Remedy(fused=True),
    "autocast to bfloat16": Remedy(bf16=True),
    "NCHW": Remedy(last=False),
    "both, fused AdamW": Remedy({"columns": True, "products": True}, fused=True),
}


class Steps:
    """One model and a batch; rates of 0 keep its weights."""

    def __init__(self, config: str, batch: int, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.model = GFLV2(config, num_classes=3).train()
        cpu = torch.device("cpu")
        case = Case(model=config, batch=batch, size=size)
        self.boxes, self.labels = inputs.boxes(case, cpu, 0)
        self.labels = [labels % 3 for labels in self.labels]
        self.images = torch.randn(batch, 3, *size)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimisers = {fused: torch.optim.AdamW(trained, lr=0.0, fused=fused) for fused in (False, True)}
        self.last: bool | None = None

    def lay_out(self, last: bool) -> None:
        if last != self.last:
            kind = torch.channels_last if last else torch.contiguous_format
            self.model.to(memory_format=kind)
            self.images, self.last = self.images.contiguous(memory_format=kind), last

    def __call__(self, remedy: Remedy) -> Tensor:
        mode = contextlib.nullcontext() if remedy.mode is None else CPUConvolutions(**remedy.mode)
        head = self.model.bbox_head
        with mode, torch.autocast("cpu", dtype=torch.bfloat16, enabled=remedy.bf16):
            output = head(self.model.features(self.images))  # without what `forward` takes by itself
        optimiser = self.optimisers[remedy.fused]
        optimiser.zero_grad()
        loss = sum(head.loss(output, self.boxes, self.labels).values())
        loss.backward()
        optimiser.step()
        return loss.detach()


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(function: Callable[[], Any]) -> float:
    start = clock()
    function()
    return clock() - start


def remedies(steps: Steps, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each remedy."""
    times: dict[str, list[float]] = {name: [] for name in REMEDIES}
    for number in range(-1, rounds):  # the first one warms up
        names = list(REMEDIES)
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            steps.lay_out(REMEDIES[name].last)
            took = seconds(lambda name=name: steps(REMEDIES[name]))
            if number >= 0:
                times[name].append(took)
    for name, own in times.items():
        ratios = sorted(a / b for a, b in zip(times["plain"], own, strict=True))
        numbers = {"ms": 1e3 * statistics.median(own), "ratio": statistics.median(ratios)}
        yield {"part": "step", "name": name, **numbers, "low": ratios[0], "high": ratios[-1]}


def layers(steps: Steps, repeats: int) -> Iterator[dict[str, Any]]:
    """Rows of every kind of convolution: forward, gradient of the input, gradient of the kernel."""
    steps.lay_out(True)
    seen: Counter[tuple[Any, ...]] = Counter()

    def spy(module: nn.Conv2d, given: tuple[Tensor, ...], output: Tensor) -> None:
        shape = (*given[0].shape[:2], output.shape[2], output.shape[3])
        seen[shape, tuple(module.weight.shape), module.stride, module.groups, module.weight.requires_grad] += 1

    hooks = [each.register_forward_hook(spy) for each in steps.model.modules() if isinstance(each, nn.Conv2d)]
    with torch.no_grad():
        steps.model(steps.images)
    for hook in hooks:
        hook.remove()
    sums: dict[tuple[str, str], list[float]] = {}
    for (shape, kernel, stride, groups, trained), count in seen.items():
        kind = f"{kernel[2]}×{kernel[3]}{' depthwise' if groups > 1 else ''}"
        # The input that gives this output without padding.
        sides = [(out - 1) * step + k for out, step, k in zip(shape[2:], stride, kernel[2:], strict=True)]
        x, weight = torch.randn(*shape[:2], *sides).contiguous(**LAST), torch.randn(kernel).contiguous(**LAST)
        y = F.conv2d(x, weight, None, stride, 0, 1, groups)
        gradient = torch.randn_like(y)
        gflop = 2e-9 * y.numel() * kernel[1] * kernel[2] * kernel[3] * count

        def backward(*wanted: bool, given=(gradient, x, weight, None, stride, (0, 0), (1, 1), False, (0, 0), groups)):
            return torch.ops.aten.convolution_backward(*given, wanted)

        passes = {"forward": lambda: F.conv2d(x, weight, None, stride, 0, 1, groups)}  # noqa: B023
        if trained:
            passes["gradient of the input"] = lambda: backward(True, False, False)  # noqa: B023
            passes["gradient of the kernel"] = lambda: backward(False, True, False)  # noqa: B023
        for name, call in passes.items():
            call()
            took = count * min(seconds(call) for _ in range(repeats))
            total = sums.setdefault((kind, name), [0.0, 0.0, 0.0])
            total[:] = [total[0] + count, total[1] + gflop, total[2] + took]
    for (kind, name), (count, gflop, took) in sorted(sums.items()):
        numbers = {"count": int(count), "gflop": gflop, "ms": 1e3 * took, "gflops": gflop / took}
        yield {"part": kind, "name": name, **numbers}


def run(config: str, batch: int, size: tuple[int, int], rounds: int) -> Iterator[Row]:
    """Rows of the table: the remedies, then the layers."""
    steps = Steps(config, batch, size)
    known = {
        "device": machine.device_text(torch.device("cpu")),
        "config": config,
        "batch": str(batch),
        "size": f"{size[0]}×{size[1]}",
        "rounds": str(rounds),
        "torch": torch.__version__,
        "commit": machine.software("cpu")["commit"],
    }
    for rows in (remedies(steps, rounds), layers(steps, 3)):
        for row in rows:
            load = {"load": f"{os.getloadavg()[0]:.1f}"}
            values = {name: v if isinstance(v, str) else table.text(v) for name, v in row.items()}
            yield known | load | values


def section(path: Path) -> Iterator[str]:
    """Lines of the report for one table."""
    rows = table.read(path, COLUMNS)
    first = rows[0]
    yield f"### {first['config']}, {first['device']}\n"
    about = f"Batch {first['batch']} at {first['size']}, {first['rounds']} rounds, load {first['load']}"
    yield f"{about}; torch {first['torch']}, commit {first['commit'] or 'unknown'}.\n"
    yield "| step | ms | times as fast as plain | least | most |"
    yield "|" + "---|" * 5
    for row in (row for row in rows if row["part"] == "step"):
        ratios = " | ".join(f"{float(row[name]):.3f}" for name in ("ratio", "low", "high"))
        yield f"| {row['name']} | {table.shown(float(row['ms']))} | {ratios} |"
    own = [row for row in rows if row["part"] != "step"]
    best = max(float(row["gflops"]) for row in own)
    yield f"\nConvolutions of a plain step; the floor is the time at {best:.0f} GFLOP/s, as the fastest kind.\n"
    yield "| kernels | pass | layers | GFLOP | ms | GFLOP/s | floor in ms |"
    yield "|" + "---|" * 7
    for row in own:
        gflop, took, speed = (float(row[name]) for name in ("gflop", "ms", "gflops"))
        cells = f"{gflop:.2f} | {took:.1f} | {speed:.0f} | {1e3 * gflop / best:.1f}"
        yield f"| {row['part']} | {row['name']} | {row['count']} | {cells} |"
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.light_step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="gflv2_lite0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 416])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the table there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    for row in run(options.config, options.batch, tuple(options.size), options.rounds):
        rows.append(row)
        print("  ".join(row.get(name, "") for name in ("part", "name", "ms", "gflops", "ratio")), flush=True)
        if options.output is not None:
            table.write(options.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
