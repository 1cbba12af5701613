"""The start of the quality predictor: what its ReLUs do before and after training."""

from __future__ import annotations

import pytest
import torch

from gflv2.config import list_models, load_config
from gflv2.engine.schedule import lr_factor, make_optimizer
from gflv2.models.gfl_head import GFLHead
from gflv2.nn.quality import INITS, QualityPredictor, sample_statistics
from gflv2.ops import qfl
from gflv2.ops.reference.dgqp import dgqp_statistics

CHOSEN = {"add_topk": True, "add_mean": True, "add_variance": False}
STEPS = 200


def boxes_of_step(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of 512 boxes, and IoUs: flat distributions at first, ever sharper ones as training goes on."""
    sharpness = torch.rand(512, 1, 1, generator=generator)
    spread = 0.5 * 16 ** (1 - sharpness)
    centre = torch.rand(512, 4, 1, generator=generator) * 16
    logits = -(torch.arange(17.0) - centre).square() / (2 * spread.square()) * min(1.0, 2 * step / STEPS)
    iou = (0.2 + 0.6 * sharpness.flatten() + 0.1 * torch.randn(512, generator=generator)).clamp(0, 1)
    return dgqp_statistics(logits, topk=4, mean=True), iou


def silent_units(predictor: QualityPredictor, statistics: torch.Tensor) -> int:
    weight, bias = predictor[0].weight.flatten(1), predictor[0].bias
    return int((statistics @ weight.t() + bias <= 0).all(0).sum())


def trained(init: str) -> int:
    """Silent units after training with the light recipe's optimiser."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    predictor = QualityPredictor(20, 64, init, sample_statistics(reg_max=16, topk=4, **CHOSEN))
    recipe = load_config("gflv2_lite0").train
    optimiser = make_optimizer(predictor.parameters(), recipe)
    factor = lambda step: lr_factor(step, recipe, iterations_per_epoch=25, iterations=STEPS)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    for step in range(STEPS):
        statistics, iou = boxes_of_step(step, generator)
        found = torch.rand(512, generator=generator) < 0.2  # the others are background
        target = torch.where(found, 0, 1), torch.where(found, iou, 0.0)
        quality = predictor(statistics[:, :, None, None]).flatten()
        logits = torch.where(found, 1.0, -3.0)[:, None] * min(1.0, 2 * step / STEPS)
        loss = qfl(target, class_logits=logits, quality_logits=quality, avg_factor=float(found.sum()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return silent_units(predictor, boxes_of_step(STEPS, generator)[0])


def test_the_light_recipes_units_outlive_adamw():
    start = load_config("gflv2_lite0").model.head.quality_init
    assert trained(start) <= 1
    # Otherwise this training would not tell a good start from a bad one.
    assert trained("normal") >= 24 and trained("kaiming") >= 6


@pytest.mark.parametrize("statistics", [{}, {"add_mean": False}, {"add_topk": False}, {"add_variance": True}])
@pytest.mark.parametrize("topk", [1, 8])
def test_all_but_few_hinges_lie_among_the_inputs(statistics, topk):
    torch.manual_seed(2)
    options = {"reg_max": 8, "topk": topk, **CHOSEN, **statistics}
    samples = sample_statistics(**options)
    first = QualityPredictor(samples.shape[1], 64, "hinge", samples)[0]
    before = samples @ first.weight.flatten(1).t() + first.bias
    torch.testing.assert_close(before.std(0), torch.ones(64))
    active = (before > 0).float().mean(0)
    outside = (active == 0) | (active == 1)
    assert outside.sum() <= 3, "of 64; 2 at most in a hundred draws"


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 9, "add_topk": False, "add_mean": True, "add_variance": False},  # all probabilities: 1/9
        {"topk": 1, "add_topk": False, "add_mean": False, "add_variance": True},  # of one number: 0
    ],
)
def test_statistics_that_are_constant_give_a_usable_start(options):
    torch.manual_seed(2)
    samples = sample_statistics(reg_max=8, **options)
    first = QualityPredictor(samples.shape[1], 64, "hinge", samples)[0]
    assert first.weight.isfinite().all() and first.weight.abs().max() < 10 and first.bias.isfinite().all()


@pytest.mark.parametrize("quality", ["statistics", "cls", "reg", "both"])
def test_every_start_of_a_head(quality):
    for init in INITS:
        torch.manual_seed(3)
        head = GFLHead(2, 16, feat_channels=16, stacked_convs=1, gn_groups=4, quality=quality, quality_init=init)
        output = head([torch.randn(1, 16, 4 - level // 2, 4 - level // 2) for level in range(5)])
        scores = torch.cat([level.flatten() for level in head.joint_scores(output)])
        assert scores.isfinite().all() and scores.min() > 0
        assert sorted(head.reg_conf.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_the_authors_start_is_the_default():
    torch.manual_seed(4)
    predictor = QualityPredictor(20)
    torch.manual_seed(4)
    other = QualityPredictor(20, init="kaiming")
    assert predictor[0].weight.std() < 0.012 and not predictor[0].bias.any() and not other[0].bias.any()
    for name in list_models():
        config = load_config(name)
        adam = config.train.optimizer == "adamw" and config.model.head.quality == "statistics"
        assert config.model.head.quality_init == ("hinge" if adam else "normal"), name
