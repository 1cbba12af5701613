"""The quality predictor of GFLV2: two 1×1 convolutions on distribution statistics or on convolutional features."""

from __future__ import annotations

from torch import nn

from gflv2.models.conv import init_normal
from gflv2.ops.checks import bad_value, check_choice


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


class QualityPredictor(nn.Sequential):
    """1×1 convolution → ReLU → 1×1 convolution to one quality logit.

    On statistics the head never calls it: its four tensors go to the fused operations ``dgqp``, ``gfl_loss`` and
    ``decode``.
    """

    def __init__(self, inputs: int, hidden: int = 64, init: str = "normal") -> None:
        super().__init__(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))
        check_choice(init, "head.quality_init", ("normal", "kaiming"))
        init_normal(self)
        if init == "kaiming":
            nn.init.kaiming_normal_(self[0].weight, nonlinearity="relu")
            nn.init.kaiming_normal_(self[2].weight, nonlinearity="linear")
