"""The recording itself: captured training and inference against plain loops, on the GPU, for each kind of kernel.

The rest of what they promise is tested on a CPU (tests/engine/test_cuda_graph.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gflv2 import use_backend
from gflv2.ops import backends
from tests.engine.captured import (
    MAX_BOXES,
    SHAPE,
    assert_same_curves,
    batch,
    learning,
    padded,
    plain_loop,
    tiny_model,
)
from tests.gpu.test_device import synchronising_is_an_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LR = 2.0**-7


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    reason = backends.unavailable(request.param, "cuda")
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def the_same_numbers_each_time() -> Iterator[None]:
    """Convolutions in float32, and of their algorithms those that add in a fixed order."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


def make_optimizer(kind: str, model: Any, *, capturable: bool) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(learning(model), lr=LR, momentum=0.5, fused=True)
    return torch.optim.AdamW(learning(model), lr=LR / 4, fused=True, capturable=capturable)


def values(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss.detach().float() for loss in losses.values()])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sgd", {}),
        ("adamw", {"clip_grad_norm": 1.0}),
        ("sgd", {"autocast": torch.bfloat16}),
        ("adamw", {"autocast": torch.float16, "scaler": True}),
    ],
    ids=["SGD", "AdamW", "bf16", "fp16 and scaler"],
)
def test_fifty_steps_are_those_of_a_plain_loop(backend: str, kind: str, options: dict[str, Any]) -> None:
    batches = [batch(seed, "cuda") for seed in range(50)]
    plain = tiny_model().cuda().train()
    captured = copy.deepcopy(plain)
    scalers = [torch.amp.GradScaler("cuda", init_scale=2.0**8) if "scaler" in options else None for _ in range(2)]
    optimizers = [make_optimizer(kind, model, capturable=model is captured) for model in (plain, captured)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 20)) for optimizer in optimizers
    ]
    step = captured.capture_training_step(
        optimizers[1], SHAPE, max_boxes=MAX_BOXES, **{**options, "scaler": scalers[1]}
    )
    wanted = plain_loop(
        plain,
        optimizers[0],
        batches,
        scaler=scalers[0],
        autocast=options.get("autocast"),
        clip=options.get("clip_grad_norm"),
        after=schedules[0].step,
    )
    found = []
    for number, (images, boxes, labels) in enumerate(batches):
        losses = step(images, **padded(boxes, labels)) if number % 2 else step(images, boxes, labels)
        schedules[1].step()
        found.append(values(losses))
    # On a CPU the two agree bit for bit. Here a convolution may choose another algorithm while it is recorded.
    tolerance = 1e-4 if options.get("autocast") is None else 2e-2
    curve = torch.tensor([list(losses.values()) for losses in wanted])
    torch.testing.assert_close(torch.stack(found).cpu(), curve, rtol=tolerance, atol=tolerance * float(curve.mean()))


def test_a_step_does_not_wait(backend: str) -> None:
    model = tiny_model().cuda().train()
    optimizer = make_optimizer("adamw", model, capturable=True)
    step = model.capture_training_step(
        optimizer, SHAPE, max_boxes=MAX_BOXES, scaler=torch.amp.GradScaler("cuda"), autocast=torch.float16
    )
    given = [batch(seed, "cuda") for seed in range(3)]
    step(*given[0])  # the first page-locked memory is allocated
    with synchronising_is_an_error():
        first = step(*given[0])
        at_once = values(first).clone()
        for images, boxes, labels in given[1:]:
            step(images, boxes, labels)
    assert torch.equal(values(first), at_once), "a later step wrote into earlier losses"


def test_inference_is_that_of_detect(backend: str) -> None:
    model = tiny_model().cuda().eval()
    options = {"score_thr": 0.005, "max_detections": 20, "return_distributions": True}
    detect = model.capture_inference(SHAPE, **options)
    sizes, factors = [(60, 90), (64, 70)], torch.tensor([[0.5, 0.5], [1.0, 2.0]], device="cuda")
    kept = []
    for seed in range(3):
        images = batch(seed, "cuda")[0]
        wanted = model.detect(images, sizes, factors, **options)
        with synchronising_is_an_error():
            detect.decode(images, sizes, factors)
        found = detect(images, sizes, factors)
        kept.append((found, copy.deepcopy(found)))
        for a, b in zip(found, wanted, strict=True):
            assert len(a.boxes) > 2
            torch.testing.assert_close(a._asdict(), b._asdict(), rtol=1e-4, atol=1e-4)
    for found, before in kept:
        for a, b in zip(found, before, strict=True):
            assert torch.equal(a.boxes, b.boxes), "a later call wrote into an earlier result"


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_thirty_steps_are_those_of_the_definition(backend: str, autocast: torch.dtype | None) -> None:
    assert_same_curves(backend, "cuda", autocast)
