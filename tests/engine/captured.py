"""A small detector, its batches, and the plain loop that a captured step must agree with; for CPU and GPU tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gflv2 import GFLV2, use_backend

SHAPE = (2, 3, 64, 96)
MAX_BOXES = 6
# Every part of a detector, in 60 ms a step on one core.
TINY = {
    "name": "tiny",
    "model": {
        "num_classes": 3,
        "backbone": {"name": "test_efficientnet", "frozen_stages": 1},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
}


def tiny_model(seed: int = 0, **settings: Any) -> GFLV2:
    torch.manual_seed(seed)
    return GFLV2(TINY, **settings)


def learning(model: GFLV2) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def batch(seed: int, device: torch.device | str = "cpu") -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images, and 0 to ``MAX_BOXES`` boxes in each: other numbers for each seed, every third image has none."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(SHAPE, generator=draw)
    boxes, labels = [], []
    for image in range(SHAPE[0]):
        count = 0 if (seed + image) % 3 == 0 else 1 + (seed + 2 * image) % MAX_BOXES
        corner = torch.rand(count, 2, generator=draw) * torch.tensor([60.0, 40.0])
        boxes.append(torch.cat([corner, corner + 6 + 30 * torch.rand(count, 2, generator=draw)], 1).to(device))
        labels.append(torch.randint(3, (count,), generator=draw).to(device))
    return images.to(device), boxes, labels


def padded(boxes: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
    """The same boxes as padded tensors. What does not exist looks like a box that would be assigned to some points."""
    device = boxes[0].device
    counts = torch.tensor([len(image) for image in boxes], device=device)
    rows = torch.tensor([20.0, 10.0, 60.0, 50.0], device=device).repeat(len(boxes), MAX_BOXES, 1)
    numbers = torch.full(rows.shape[:2], 2, device=device)
    for image, count in enumerate(counts.tolist()):
        rows[image, :count], numbers[image, :count] = boxes[image], labels[image]
    return {"boxes": rows, "labels": numbers, "counts": counts}


def plain_loop(
    model: GFLV2,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Any, ...]],
    *,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    clip: float | None = None,
    after: Callable[[], Any] = lambda: None,
) -> list[dict[str, float]]:
    """The usual training loop with ragged boxes; the losses of each step."""
    history = []
    for images, boxes, labels in batches:
        with torch.autocast(images.device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            losses = model.loss(images, boxes, labels)
        total = sum(losses.values())
        optimizer.zero_grad()
        (total if scaler is None else scaler.scale(total)).backward()
        if clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(learning(model), clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        after()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    return history


def curves(backend: str, device: str, autocast: torch.dtype | None, *, change: float = 0.0, steps: int = 30) -> Tensor:
    """(steps, 3) losses of a training from the same seed on the same data.

    Args:
        change: every pixel is changed by up to this share of itself.
    """
    draw = torch.Generator().manual_seed(99)
    model = tiny_model().to(device).train()
    batches = []
    for images, boxes, labels in map(batch, range(steps)):
        images = images * (1 + change * (2 * torch.rand(SHAPE, generator=draw) - 1))
        batches.append((images.to(device), *([row.to(device) for row in rows] for rows in (boxes, labels))))
    with use_backend(backend):
        # A rate at which the loss falls by a third within these steps.
        found = plain_loop(
            model, torch.optim.SGD(learning(model), lr=2.0**-5, momentum=0.9), batches, autocast=autocast
        )
    return torch.tensor([list(losses.values()) for losses in found])


def assert_same_curves(backend: str, device: str, autocast: torch.dtype | None) -> None:
    """The losses of every step agree with the reference's.

    float32: to 1e-4 of their mean. Both round differently, at 1e-7 a step; over 30 steps that came to 2e-5 of the class
    loss, where a change of one loss's weight by a thousandth came to 6e-3 and more of some loss. bfloat16: a training
    in it has no such digits to agree in, so the two may differ by twice what two trainings with the reference do whose
    images differ by a rounding.
    """
    wanted, found = (curves(name, device, autocast) for name in ("reference", backend))
    assert wanted.sum(1)[-3:].mean() < 0.85 * wanted.sum(1)[:3].mean(), "there must be something to learn"
    error = (found - wanted).abs().amax(0)
    allowed = 1e-4 * wanted.mean(0)
    if autocast is not None:
        other = curves("reference", device, autocast, change=torch.finfo(autocast).eps / 2)
        allowed = 2 * (other - wanted).abs().amax(0)
    assert bool((error <= allowed).all()), f"off by {error.tolist()}, allowed {allowed.tolist()}"
