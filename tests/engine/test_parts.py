"""Gradient accumulation: a batch in parts is the whole batch, for the losses, the gradient, the run and its resume."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from gflv2 import GFLV2
from gflv2.config import load_config
from gflv2.data import CocoDetection, make_loader, shapes
from gflv2.engine.lightning_module import DetectorModule
from gflv2.engine.parts import recomputed, slices
from gflv2.engine.schedule import lr_factor
from gflv2.engine.train import train
from tests.engine.test_train import TINY
from tests.engine.waits import NoHostWait, forbid
from tests.faults.kill import differences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=5, val=2, size=64)


def step(data, parts: int, **overrides):
    """Losses, clamped sides and gradient of the same first batch of 5 images, one of them without boxes."""
    torch.manual_seed(0)
    config = load_config(TINY, {"train.accumulate": parts, "model.num_classes": 5, **overrides})
    module = DetectorModule(GFLV2(config)).train()
    dataset = CocoDetection(data.train, config=config.data, train=True)
    batch = next(iter(make_loader(dataset, 5, train=True, config=config.data, workers=0)))
    batch.boxes[1], batch.labels[1] = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    losses, clamped = module._losses(batch)
    sum(losses.values()).backward()
    module.images_of_step = batch.images
    norm = next(m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d))
    module.kept_mean = norm.running_mean.clone()
    learning = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    return {name: float(value.detach()) for name, value in losses.items()}, clamped, learning, module


@pytest.mark.parametrize("head", ["gfl", "atss"])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_losses_and_gradient_are_those_of_the_whole_batch(data, head, parts) -> None:
    whole, in_parts = (step(data, number, **{"model.head.kind": head}) for number in (1, parts))
    assert in_parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert all(value > 0 for value in whole[0].values())
    norm = torch.stack([g.norm() for g in whole[2].values()]).norm()
    error = torch.stack([(in_parts[2][name] - g).norm() for name, g in whole[2].items()]).norm()
    assert error < 3e-6 * norm
    if head == "gfl":
        assert torch.equal(whole[1], in_parts[1]) and whole[1][1] > 0
    else:
        assert whole[1] is None and in_parts[1] is None


def test_the_mean_of_the_parts_would_be_another_gradient(data) -> None:
    """What makes the test above fail: each part divided by its own sums. (One image has no box.)"""
    torch.manual_seed(0)
    config = load_config(TINY, {"model.num_classes": 5})
    model = GFLV2(config).train()
    dataset = CocoDetection(data.train, config=config.data, train=True)
    batch = next(iter(make_loader(dataset, 5, train=True, config=config.data, workers=0)))
    batch.boxes[1], batch.labels[1] = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    whole = sum(model.loss(batch.images, batch.boxes, batch.labels, batch.padded_sizes).values())
    mean = 0.0
    for rows in slices(5, 5):
        given = (batch.images[rows], batch.boxes[rows], batch.labels[rows], batch.padded_sizes[rows])
        mean += float(sum(model.loss(*given).values()).detach()) / 5
    assert mean < 0.9 * float(whole.detach())


def test_batch_norm_counts_each_part_once(data) -> None:
    *_, module = step(data, 2, **{"model.backbone.norm_eval": False, "model.backbone.frozen_stages": 0})
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2} and {norm.momentum for norm in norms} == {0.1}
    # The first layer's mean after two updates of 1/10, from 0.
    seen = []
    with torch.no_grad():
        first = norms[0].register_forward_pre_hook(lambda norm, given: seen.append(given[0]))
        for rows in slices(5, 2):
            module.model(module.images_of_step[rows])
        first.remove()
    means = [x.mean((0, 2, 3)) for x in seen]
    torch.testing.assert_close(module.kept_mean, 0.1 * means[1] + 0.09 * means[0])


def test_one_part_is_in_memory_at_a_time() -> None:
    """Of what a forward pass saves nothing is left but the parts' inputs, until backward computes a part again."""
    alive: list[int] = []
    layer = torch.nn.Linear(4, 4)

    class Counted(torch.autograd.Function):
        held = 0

        @staticmethod
        def forward(ctx, x):
            Counted.held += 1
            ctx.save_for_backward(x)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            (_,) = ctx.saved_tensors
            alive.append(Counted.held)
            return grad

    rows = torch.randn(6, 4)
    order: list[slice] = []

    def part(which: slice) -> torch.Tensor:
        order.append(which)
        return Counted.apply(layer(rows[which])).square().sum()

    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        total = torch.stack(recomputed(part, slices(6, 3), layer)).sum()
    assert sum(saved) == 0, "the forward pass saves no activation"
    assert len(order) == 3
    total.backward()
    assert order[3:] == order[2::-1] and len(alive) == 3, "each part once more, the last one first"


@pytest.mark.parametrize(("length", "parts", "lengths"), [(5, 2, [2, 3]), (4, 4, [1] * 4), (2, 3, [1, 1]), (3, 1, [3])])
def test_parts_of_a_batch(length, parts, lengths) -> None:
    found = slices(length, parts)
    assert [s.stop - s.start for s in found] == lengths
    assert [i for s in found for i in range(length)[s]] == list(range(length))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_step_waits_for_no_value(data, parts, monkeypatch) -> None:
    config = load_config(TINY, {"train.accumulate": parts, "model.num_classes": 5})
    module = DetectorModule(GFLV2(config)).train()
    dataset = CocoDetection(data.train, config=config.data, train=True)
    batch = next(iter(make_loader(dataset, 4, train=True, config=config.data, workers=0)))
    logged = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **options: logged.update(values))
    monkeypatch.setattr(module, "log", lambda name, value, **options: logged.update({name: value}))
    with monkeypatch.context() as patched, NoHostWait():
        forbid(patched)
        for _ in range(2):
            module.training_step(batch, 0).backward()
    assert set(logged) == {"loss", "qfl", "giou", "dfl", "clamped_targets"}
    assert module._clamped[1] == 2 * 4 * (module._clamped[1] / 8).round() > 0


def run(data, output, **options):
    settings = {"train.epochs": 1, "train.accumulate": 2, **options.pop("overrides", {})}
    if "resume" not in options:
        options |= {"config": TINY, "train_data": data.train, "val_data": data.val, "overrides": settings}
    return train(output=output, pretrained=False, accelerator="cpu", progress=False, **options).output


def test_a_run_in_parts_is_resumed_inside_an_epoch_with_the_same_bits(data, tmp_path) -> None:
    steps = []

    class Steps(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            steps.append((trainer.global_step, optimizer.param_groups[0]["lr"]))

    whole = run(data, tmp_path / "whole", callbacks=[Steps()])
    config = load_config(TINY).train
    rates = [0.004 * lr_factor(i, config, iterations_per_epoch=2, iterations=2) for i in range(2)]
    assert [number for number, _ in steps] == [0, 1], "accumulation changes no iteration"
    assert [rate for _, rate in steps] == pytest.approx(rates), "warm-up and schedule count optimiser steps"
    part = run(data, tmp_path / "parts", max_steps=1)
    run(data, None, resume=part)
    assert differences(whole, part) == []


def test_more_parts_than_images_are_refused(data, tmp_path) -> None:
    with pytest.raises(ValueError, match="train.accumulate: expected at most the 4 images of a device's batch.* got 5"):
        run(data, tmp_path / "run", overrides={"train.accumulate": 5})
    assert not (tmp_path / "run").exists()
