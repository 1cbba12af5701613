"""Where the time of a plain training step is, and what the processor could do: kinds of work, kinds of convolutions."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import machine
from benchmarks.light_remedies import LAST, PLAIN, REMEDIES, Remedy, Steps, paths

COPIED = 1 << 24  # bytes of the copy that tells the bandwidth: the size of a large activation
COPY = "copy"
# Kinds of work by words in the names of operators, the first that fits.
KINDS = {
    "gradients of convolutions": ("conv2d_backward", "convolution_backward"),
    "convolutions": ("convolution", "conv2d"),
    "BatchNorm in eval mode, and gradients": ("batch_norm",),
    "GroupNorm, and gradients": ("group_norm",),
    "ReLUs, and gradients": ("hardtanh", "clamp", "threshold", "relu"),
    "the head's fused operations": ("gflv2::",),
    "copies, padding, zeros": ("copy", "pad", "fill_", "zero", "contiguous", "clone", "empty", "resize"),
}
OPTIMISER, OTHER = "clipping, optimiser, averaged weights", "everything else"


def kinds(steps: Steps, repeats: int) -> Iterator[dict[str, Any]]:
    """Share of each kind of work in a plain step, by torch's profiler; medians."""
    steps.lay_out(True)
    steps(REMEDIES[PLAIN])
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        found: Counter[str] = Counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            _named_phases(steps)
        for event in profile.events():
            found[_kind(event)] += event.self_cpu_time_total
        for name in (*KINDS, OPTIMISER, OTHER):
            shares[name].append(found[name] / found.total())
    for name, values in shares.items():
        yield {"part": "kinds", "name": name, "share": statistics.median(values)}


def _named_phases(steps: Steps) -> None:
    with torch.profiler.record_function(OTHER):
        phases = steps.phases(Remedy(), steps.optimisers[False])
        for phase in phases:
            if phase == "optimiser":
                break
    with torch.profiler.record_function(OPTIMISER):
        for _ in phases:
            pass


def _kind(event: Any) -> str:
    top = event
    while top.cpu_parent is not None:
        top = top.cpu_parent
    if top.name == OPTIMISER:
        return OPTIMISER
    return next((kind for kind, words in KINDS.items() if any(word in event.name for word in words)), OTHER)


def layers(steps: Steps, repeats: int, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Rows of every kind of convolution: forward, gradient of the input, gradient of the kernel; PyTorch's own way, and
    that of both faster paths. Then the copy.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for key, count in _seen(steps).items():
        for name, gflop, gbyte, plain, fast in _passes(*key, repeats, clock):
            total = sums.setdefault((_shape(key[1], key[3]), name), [0.0] * 5)
            for place, value in enumerate((1, gflop, gbyte, plain, fast)):
                total[place] += count * value
    for (kind, name), (count, gflop, gbyte, plain, fast) in sorted(sums.items()):
        times = {"ms": 1e3 * plain, "fast_ms": 1e3 * fast}
        yield {"part": kind, "name": name, "count": int(count), "gflop": gflop, "gbyte": gbyte, **times}
    speed = machine.copy_bandwidth.__wrapped__(COPIED, torch.device("cpu"))  # which keeps that of one number of threads
    yield {"part": COPY, "name": COPY, "gbyte": 1e-9 * COPIED, "ms": 1e3 * COPIED / speed}


def _shape(kernel: tuple[int, ...], groups: int) -> str:
    return f"{kernel[2]}×{kernel[3]}{' depthwise' if groups > 1 else ''}"


def _seen(steps: Steps) -> Counter[tuple[Any, ...]]:
    """(input, kernel, stride, groups, whether the input and the kernel have gradients) → number of layers."""
    steps.lay_out(True)
    seen: Counter[tuple[Any, ...]] = Counter()

    def spy(module: nn.Conv2d, given: tuple[Tensor, ...], output: Tensor) -> None:
        # The input that gives this output without padding.
        sides = [
            (out - 1) * step + k
            for out, step, k in zip(output.shape[2:], module.stride, module.kernel_size, strict=True)
        ]
        wanted = given[0].requires_grad, module.weight.requires_grad
        shape = (*given[0].shape[:2], *sides)
        seen[(shape, tuple(module.weight.shape), module.stride, module.groups, *wanted)] += 1

    hooks = [each.register_forward_hook(spy) for each in steps.model.modules() if isinstance(each, nn.Conv2d)]
    steps.forward(steps.images)
    for hook in hooks:
        hook.remove()
    return seen


def _passes(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    groups: int,
    input_learns: bool,
    kernel_learns: bool,
    repeats: int,
    clock: Callable[[], float],
) -> Iterator[tuple[str, float, float, float, float]]:
    """(pass, GFLOP, GB that must move, seconds of PyTorch's way, seconds of the faster paths)."""
    x, weight = torch.randn(shape).contiguous(**LAST), torch.randn(kernel).contiguous(**LAST)

    def forward() -> Tensor:
        return F.conv2d(x, weight, None, stride, 0, 1, groups)

    y = forward()
    gradient = torch.randn_like(y)
    gflop = 2e-9 * y.numel() * kernel[1] * kernel[2] * kernel[3]
    gbyte = 4e-9 * (x.numel() + weight.numel() + y.numel())
    learns = {"gradient of the input": (input_learns, x), "gradient of the kernel": (kernel_learns, weight)}
    times: dict[str, list[float]] = defaultdict(list)
    for remedy in (Remedy(), Remedy(columns=True, products=True)):
        with paths(remedy):
            weight.requires_grad_(kernel_learns)
            times["forward"].append(_best(forward, repeats, clock))
            weight.requires_grad_(False)
            for name, (wanted, leaf) in learns.items():
                if wanted:
                    # Of this one alone: a path of Python computes what any of its inputs asks for.
                    leaf.requires_grad_(True)
                    y = forward()

                    def backward(y: Tensor = y, leaf: Tensor = leaf) -> Any:
                        return torch.autograd.grad(y, leaf, gradient, retain_graph=True)

                    times[name].append(_best(backward, repeats, clock))
                    leaf.requires_grad_(False)
    for name, (plain, fast) in times.items():
        yield name, gflop, gbyte, plain, fast


def _best(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)
