"""The quality predictor of GFLV2: two 1×1 convolutions on distribution statistics or on convolutional features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gflv2.nn.distribution import whole_number
from gflv2.ops import dgqp
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

    On statistics a head never calls it: its four tensors go to the fused operations ``dgqp``, ``gfl_loss`` and
    ``decode``.
    """

    def __init__(self, inputs: int, hidden: int = 64, init: str = "normal") -> None:
        super().__init__(nn.Conv2d(inputs, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))
        check_choice(init, "head.quality_init", ("normal", "kaiming"))
        for layer in (self[0], self[2]):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        if init == "kaiming":
            nn.init.kaiming_normal_(self[0].weight, nonlinearity="relu")
            nn.init.kaiming_normal_(self[2].weight, nonlinearity="linear")


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
