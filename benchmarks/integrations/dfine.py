"""D-FINE as transformers has it, with and without ``accelerate()``, with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import inputs
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, leaf
from benchmarks.integrations import InPlace, accelerated

# The backbone and the depth of the authors' size S.
BACKBONE = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "hidden_sizes": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "out_features": ["stage2", "stage3", "stage4"],
}
SIZE_S = {"encoder_in_channels": [256, 512, 1024], "decoder_layers": 3, "depth_mult": 0.34, "hidden_expansion": 0.5}
TINY = {**SIZE_S, "d_model": 32, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3, "decoder_layers": 2}
MODELS = {"dfine_s": SIZE_S, "dfine_tiny": {**TINY, "num_queries": 10, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}}
BINS = 33


def detector(case: Case, device: torch.device) -> nn.Module:
    """A detector in training mode, with seeded weights."""
    _patched()  # before the import, for the sake of a checkout: see gflv2.integrations.dfine
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.DFineConfig(backbone_config=BACKBONE, num_labels=case.classes, **MODELS[case.model])
    return transformers.DFineForObjectDetection(config).to(device).train()


def _patched() -> Any:
    integration = importlib.import_module("gflv2.integrations.dfine")
    integration.accelerate()
    integration.restore()
    return integration


class _DFine(InPlace):
    package = "dfine"

    def with_ours(self, call: Callable[..., Any]) -> Callable[..., Any]:
        modeling = importlib.import_module("transformers.models.d_fine.modeling_d_fine")
        criterion = importlib.import_module("transformers.loss.loss_d_fine").DFineLoss
        criterion.loss_boxes = criterion.loss_boxes  # its own, so that there is something to take out and put back
        places = [(modeling.DFineIntegral, "forward"), (modeling.DFineLQE, "forward"), (modeling, "weighting_function")]
        places += [(criterion, "loss_local"), (criterion, "loss_boxes")]
        return accelerated(_patched(), places, call)

    def tiny(self) -> Case:
        return Case(model="dfine_tiny", batch=1, size=(64, 64), classes=3, boxes=2, rows=10)


class Step(_DFine):
    """Forward, matching, losses, backward and optimiser of a whole detector."""

    name = "dfine_step"
    what = "training step"
    axes = ("model", "batch", "size", "boxes")
    mode = "both"

    def bases(self, device: torch.device) -> list[Case]:
        size = (640, 640) if device.type == "cuda" else (320, 320)
        return [Case(model="dfine_s", batch=16 if device.type == "cuda" else 2, size=size)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        images = torch.randn(case.batch, 3, *case.size, generator=inputs.generator(device, seed), device=device)
        limit = torch.tensor([case.size[1], case.size[0]], device=device).repeat(2)
        targets = []
        for corners, labels in zip(*inputs.boxes(case, device, seed), strict=True):
            corners = corners / limit
            sides = [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]]
            targets.append({"class_labels": labels, "boxes": torch.cat(sides, dim=1)})
        return Inputs((images, targets))

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        model = detector(case, device)
        # Rate 0: every candidate works on the same weights all the time.
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)

        def step(images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            torch.manual_seed(0)  # of the denoising queries
            value = model(pixel_values=images, labels=targets).loss
            value.backward()
            optimiser.step()
            return value.detach()

        return step


class Head(_DFine):
    """What each decoder layer does with its distributions: W(n), distances, location quality; with all gradients."""

    name = "dfine_head"
    what = "integral and location quality of all decoder layers"
    part_of = "dfine_step"
    axes = ("model", "batch", "rows", "classes")

    def bases(self, device: torch.device) -> list[Case]:
        return [Case(model="dfine_s", batch=16 if device.type == "cuda" else 2, rows=500)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """``rows`` queries an image: 300, and those of the denoising."""
        draw = inputs.generator(device, seed)
        corners = 2 * torch.randn(case.batch, case.rows, 4 * BINS, generator=draw, device=device)
        scores = torch.randn(case.batch, case.rows, case.classes, generator=draw, device=device)
        return Inputs((corners, scores), {}, leaf([corners, scores]))

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        decoder = detector(case, device).model.decoder
        modeling = importlib.import_module("transformers.models.d_fine.modeling_d_fine")

        def head(corners: Tensor, scores: Tensor) -> Tensor:
            values = modeling.weighting_function(decoder.max_num_bins, decoder.up, decoder.reg_scale)
            parts = [decoder.integral(corners, values).sum() + lqe(scores, corners).sum() for lqe in decoder.lqe_layers]
            return torch.stack(parts).sum()

        return head


class Losses(_DFine):
    """What the criterion does with the distributions and boxes of three layers and of their denoising queries.

    With the gradients. The matching is given; class losses are left out.
    """

    name = "dfine_losses"
    what = "box losses of three layers, with distillation"
    part_of = "dfine_step"
    axes = ("model", "batch", "rows", "boxes")

    def bases(self, device: torch.device) -> list[Case]:
        return [Case(model="dfine_s", batch=16 if device.type == "cuda" else 2, rows=500, boxes=10)]

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """``rows`` queries an image: 300, and those of the denoising. Each box is matched with five of them."""
        draw, groups = inputs.generator(device, seed), 5
        kind = {"generator": draw, "device": device}

        def boxes(count: int) -> Tensor:
            centre, size = torch.rand(2, case.batch, count, 2, **kind)
            return torch.cat([0.2 + 0.6 * centre, 0.05 + 0.3 * size], dim=-1)

        corners = leaf([2 * torch.randn(case.batch, case.rows, 4 * BINS, **kind) for _ in range(3)])
        predicted = leaf([boxes(case.rows) for _ in range(3)])
        scores = torch.randn(case.batch, case.rows, case.classes, **kind)
        shared = {"ref_points": boxes(case.rows), "teacher_corners": corners[-1], "teacher_logits": scores}
        layers = [
            {"pred_corners": logits, "pred_boxes": sides, **shared}
            for logits, sides in zip(corners, predicted, strict=True)
        ]
        targets = [{"boxes": image} for image in boxes(case.boxes)]
        count = min(groups * case.boxes, case.rows)
        matched = [
            (torch.randperm(case.rows, **kind)[:count], torch.arange(count, device=device) % case.boxes)
            for _ in range(case.batch)
        ]
        return Inputs((layers, targets, matched), {}, [*corners, *predicted])

    def call(self, case: Case, device: torch.device) -> Callable[..., Tensor]:
        criterion = importlib.import_module("transformers.loss.loss_d_fine").DFineLoss(detector(case, device).config)

        def losses(layers: list[dict], targets: list[dict], matched: list) -> Tensor:
            count, found = float(sum(len(queries) for queries, _ in matched)), []
            for layer in layers:
                found += criterion.loss_local(layer, targets, matched, count).values()
                found += criterion.loss_boxes(layer, targets, matched, count).values()
            return torch.stack(found).sum()

        return losses


OPERATIONS = [Step(), Head(), Losses()]
