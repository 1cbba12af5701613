"""The quality predictor of GFLV2: two 1×1 convolutions on distribution statistics or on convolutional features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gflv2.nn.distribution import whole_number
from gflv2.ops import dgqp
from gflv2.ops.checks import bad_value, check_choice
from gflv2.ops.reference.dgqp import dgqp_statistics

INITS = ("normal", "kaiming", "hinge")
SAMPLES = 1024  # inputs that "hinge" looks at
FLAT = 1e-6  # a smaller standard deviation is rounding
SPREADS = 0.5, 8.0  # bins; standard deviations of sharp and of blurred sides, in training and after it


def statistics_width(*, reg_max: int, topk: int, add_topk: bool, add_mean: bool, add_variance: bool) -> int:
    """Number of statistics of one point: four sides × (top-k values, their mean, their variance).

    Raises:
        ValueError: k outside 1 … reg_max + 1, or no statistic chosen.
    """
    if not 1 <= topk <= reg_max + 1:
        bad_value("reg_topk", f"1 to {reg_max + 1}, the number of bins", topk)
    width = topk * add_topk + add_mean + add_variance
    if width == 0:
        bad_value("add_topk, add_mean, add_variance", "at least one of them true", (add_topk, add_mean, add_variance))
    return 4 * width


def sample_statistics(*, reg_max: int, topk: int, add_topk: bool, add_mean: bool, add_variance: bool) -> Tensor:
    """(1024, F) statistics of made-up boxes: Gaussian sides, somewhere on the bins, the four of a box equally wide."""
    bins = torch.arange(reg_max + 1.0)
    centres = torch.rand(SAMPLES, 4, 1) * reg_max
    low, high = (math.log(spread) for spread in SPREADS)
    spreads = torch.empty(SAMPLES, 1, 1).uniform_(low, high).exp()
    logits = -(bins - centres).square() / (2 * spreads.square())
    found = dgqp_statistics(logits, topk=topk, mean=add_mean, variance=add_variance)
    return found if add_topk else without_topk(found, topk)


def without_topk(statistics: Tensor, topk: int) -> Tensor:
    """(…, F) statistics that begin, on each side, with the k largest → the others alone."""
    return statistics.unflatten(-1, (4, -1))[..., topk:].flatten(-2)


class QualityPredictor(nn.Sequential):
    """1×1 convolution → ReLU → 1×1 convolution to one quality logit.

    On statistics a head never calls it: its four tensors go to the fused operations ``dgqp``, ``gfl_loss`` and
    ``decode``.

    Args:
        inputs, hidden: channels.
        init: the start, ``model.head.quality_init``: "normal" is N(0, 0.01), "kaiming" is Kaiming's, "hinge" sees to
            it that every ReLU is active for some inputs and silent for others.
        samples: (M, inputs) inputs as they may come, for "hinge"; None: ReLUs of Gaussian numbers, as a tower gives.
    """

    def __init__(self, inputs: int, hidden: int = 64, init: str = "normal", samples: Tensor | None = None) -> None:
        super().__init__(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))
        check_choice(init, "head.quality_init", INITS)
        for layer in (self[0], self[2]):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        if init == "kaiming":
            nn.init.kaiming_normal_(self[0].weight, nonlinearity="relu")
            nn.init.kaiming_normal_(self[2].weight, nonlinearity="linear")
        if init == "hinge":
            self._place_hinges(torch.randn(SAMPLES, inputs).relu() if samples is None else samples)

    @torch.no_grad()
    def _place_hinges(self, samples: Tensor) -> None:
        """Pre-activations of standard deviation 1 over the samples, each of them 0 at a sample of its own.

        The inputs are positive, and almost parallel while training begins. A ReLU with bias 0 is then on for all of
        them or for none, and starts within a few of Adam's steps, which have the same size for every weight, of being
        off for good. Unit variance puts it hundreds of steps away (as LSUV does, arXiv 1511.06422), and a bend among
        the inputs keeps it from being linear there (arXiv 1903.11482). The second layer stays N(0, 0.01): the
        quality starts at 1/2 for every box, and has nothing to unlearn.
        """
        weight, bias = self[0].weight.flatten(1), self[0].bias
        weight.normal_()
        spread = (samples @ weight.t()).std(0, keepdim=True).t()
        # Statistics may be constant: the mean of all probabilities, the variance of a single one.
        weight /= torch.where(spread > FLAT, spread, 1.0)
        own = samples[torch.arange(len(weight)) % len(samples)]
        bias.copy_(-(weight * own).sum(1))


class DGQP(QualityPredictor):
    """Distribution-Guided Quality Predictor (arXiv 2011.12885, section 3.2): the quality logit of a box.

    Its parameters are named ``0.weight``, ``0.bias``, ``2.weight``, ``2.bias``: as the attribute ``reg_conf`` of a head
    it loads the authors' files.

    Args:
        reg_max: n; there are n + 1 bins.
        reg_topk: number k of largest probabilities of a side.
        reg_channels: hidden units.
        add_mean: also the mean of these k.
    """

    def __init__(self, reg_max: int = 16, reg_topk: int = 4, reg_channels: int = 64, add_mean: bool = True) -> None:
        for name, value in (("reg_max", reg_max), ("reg_topk", reg_topk), ("reg_channels", reg_channels)):
            whole_number(value, name)
        inputs = statistics_width(reg_max=reg_max, topk=reg_topk, add_topk=True, add_mean=add_mean, add_variance=False)
        super().__init__(inputs, reg_channels)
        self.reg_max, self.reg_topk, self.add_mean = reg_max, reg_topk, add_mean

    def forward(self, box_logits: Tensor | Sequence[Tensor], scales: Tensor | None = None) -> Tensor:
        """Quality logits r; the joint score of a class logit c is sigmoid(c)·sigmoid(r).

        Args:
            box_logits: levels (B, 4·(n + 1), H_l, W_l), or rows (M, 4, n + 1).
            scales: (L,) one factor a level; None: 1.

        Returns:
            (B, A) with A = Σ H_l·W_l points, level-major, then row-major; or (M,).

        Raises:
            TypeError, ValueError: a wrong shape, dtype or device; the message names the argument.
        """
        first, _, second = self
        return dgqp(
            list(box_logits) if isinstance(box_logits, tuple) else box_logits,
            first.weight,
            first.bias,
            second.weight,
            second.bias,
            scales=scales,
            topk=self.reg_topk,
            mean=self.add_mean,
        )
