"""One whole training step of a named model: forward, assignment, loss, backward, optimiser.

Two candidates tell the head's share: ``best`` with the whole step, and ``without the loss``, where a fixed gradient
enters in place of targets, losses and their backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.eager.head import FORMS, with_flat_weights
from benchmarks.harness.candidates import BEST, Candidate, Settings
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, Operation
from gflv2 import GFLV2
from gflv2.models.dense_head import HeadOutput

WITHOUT_LOSS = "without the loss"


class TrainingStep(Operation):
    name = "training_step"
    axes = ("model", "batch", "size", "boxes", "dtype", "layout")
    mode = "both"

    def bases(self, device: torch.device) -> list[Case]:
        if device.type == "cuda":
            case = Case(model="gflv2_r50_fpn_1x", batch=16, dtype="bfloat16", layout="channels_last")
            return [case, case.but(boxes=100)]
        return [Case(model="gflv2_lite0", size=(320, 320), layout="channels_last")]

    def curve_base(self, device: torch.device) -> Case:
        return self.bases(device)[0]

    def tiny(self) -> Case:
        return Case(model="gflv2_lite0", batch=1, size=(64, 64), boxes=2)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """All sets share one model; its optimiser's rate is 0, so that every candidate works on the same weights."""
        model = model_of(case, device).train()
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)
        return Inputs((model, optimiser, images_of(case, device, seed), *inputs.boxes(case, device, seed)))

    def candidates(self, case: Case, device: torch.device, settings: Settings) -> list[Candidate]:
        plain = [
            Candidate(f"eager: {name}", step(_eager(form), case, plain=True), "eager", "reference")
            for name, form in FORMS.items()
        ]
        given = self.inputs(case, device, 0)
        times = {candidate.name: min(_seconds(candidate, given) for _ in range(3)) for candidate in plain}
        found = [Candidate(BEST, step(_ours, case), "ours"), min(plain, key=lambda candidate: times[candidate.name])]
        found.append(Candidate(WITHOUT_LOSS, step(_constant, case), "part"))
        if settings.compile == "all":
            for mode in (None, *settings.reductions):
                static = step(_eager(FORMS["static"]), case, forward=lambda f, mode=mode: torch.compile(f, mode=mode))
                found.append(Candidate(f"compile: {mode or 'default'}", static, "compile", "reference"))
        return found


def _seconds(candidate: Candidate, given: Inputs) -> float:
    start = time.perf_counter()
    with candidate.running():
        candidate(given)
    return time.perf_counter() - start


Loss = Callable[..., Tensor]


def step(
    loss: Loss, case: Case, *, forward: Callable[[Any], Any] = lambda function: function, plain: bool = False
) -> Callable[..., Tensor]:
    """A training step with the given loss of (model, head output, boxes, labels); ``plain``: with PyTorch's own choice
    of convolutions.
    """

    @forward
    def total(model: GFLV2, images: Tensor, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
        half = case.torch_dtype if case.dtype != "float32" else torch.bfloat16
        with torch.autocast(images.device.type, dtype=half, enabled=case.dtype != "float32"):
            output = model.bbox_head(model.features(images)) if plain else model(images)
        return loss(model, output, boxes, labels)

    def call(model: GFLV2, optimiser: torch.optim.Optimizer, images: Tensor, boxes: Any, labels: Any) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        value = total(model, images, boxes, labels)
        value.backward()
        optimiser.step()
        return value.detach()

    return call


def _ours(model: GFLV2, output: HeadOutput, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
    return sum(model.bbox_head.loss(output, boxes, labels).values())


def _eager(form: Callable[..., Tensor]) -> Loss:
    def loss(model: GFLV2, output: HeadOutput, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
        options = {"strides": model.bbox_head.strides, "scales": output.scales}
        options["predictor"] = with_flat_weights(output.predictor)
        return form(output.class_logits, output.box_logits, boxes, labels, **options)

    return loss


def _constant(model: GFLV2, output: HeadOutput, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
    return sum(level.float().sum() for level in (*output.class_logits, *output.box_logits)) * 1e-3


def model_of(case: Case, device: torch.device) -> GFLV2:
    """A model with random weights, the same for every call with the same case."""
    key = (case.model, case.layout, device)
    if key not in _models:
        torch.manual_seed(0)
        model = GFLV2(case.model, data__long_side=max(case.size), data__test_short_side=min(case.size)).to(device)
        last = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
        _models[key] = model.to(memory_format=last)
    return _models[key]


_models: dict[tuple[str, str, torch.device], GFLV2] = {}


def images_of(case: Case, device: torch.device, seed: int) -> Tensor:
    """Normal noise in place of normalised images."""
    images = torch.randn(case.batch, 3, *case.size, generator=inputs.generator(device, seed), device=device)
    last = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    return images.contiguous(memory_format=last)


OPERATION = TrainingStep()
