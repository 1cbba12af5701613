"""Learning rate over a training run, and the optimisers of the recipes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from gflv2.config import TrainConfig
from gflv2.ops.checks import check_choice


def warmup_factor(iteration: int, iterations: int, start: float) -> float:
    """1 − (1 − i / iterations)·(1 − start) while i < iterations, then 1."""
    if iteration >= iterations:
        return 1.0
    return 1.0 - (1.0 - iteration / iterations) * (1.0 - start)


def lr_factor(iteration: int, config: TrainConfig, *, iterations_per_epoch: int, iterations: int) -> float:
    """What the learning rate of one iteration is multiplied by: warm-up × schedule.

    Args:
        iteration: counted from 0 over the whole run.
        config: ``warmup_iterations``, ``warmup_factor``, ``schedule`` and, for "step", ``milestones`` (in epochs
            completed).
        iterations_per_epoch: of one process.
        iterations: of the whole run; the cosine reaches zero there.
    """
    warmup = warmup_factor(iteration, config.warmup_iterations, config.warmup_factor)
    if check_choice(config.schedule, "train.schedule", ("step", "cosine")) == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * min(iteration / max(iterations, 1), 1.0)))
    epoch = iteration // max(iterations_per_epoch, 1)
    return warmup * 0.1 ** sum(epoch >= milestone for milestone in config.milestones)


def scaled_lr(config: TrainConfig) -> float:
    """``config.lr`` × total batch / ``base_batch_size``, or ``config.lr`` where ``scale_lr`` is off."""
    return config.lr * config.batch_size / config.base_batch_size if config.scale_lr else config.lr


def optimizer_settings(config: TrainConfig) -> dict[str, float]:
    """Learning rate, weight decay and, for SGD, momentum, as torch's optimisers name them."""
    settings = {"lr": scaled_lr(config), "weight_decay": config.weight_decay}
    if check_choice(config.optimizer, "train.optimizer", ("sgd", "adamw")) == "sgd":
        settings["momentum"] = config.momentum
    return settings


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that train; weight decay on all of them, norms and biases included."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    settings = optimizer_settings(config)
    return torch.optim.SGD(trained, **settings) if "momentum" in settings else torch.optim.AdamW(trained, **settings)
