"""Distance and quality of a predicted box from the distributions of its sides."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.models.quality import QualityPredictor, statistics_width
from gflv2.ops import dgqp, integral
from gflv2.ops.checks import bad_type, bad_value, check_number


class Integral(nn.Module):
    """Softmax over the bins of each side and the expectation of 0, 1, …, n (arXiv 2006.04388, equation 5).

    Args:
        reg_max: n; there are n + 1 bins.

    Attributes:
        project: (n + 1,) buffer, the values of the bins. Another vector, also a non-uniform one, may be put in.
    """

    project: Tensor

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = _count(reg_max, "reg_max")
        self.register_buffer("project", torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, x: Tensor) -> Tensor:
        """(…, 4·(n + 1)) logits, side-major → (rows, 4) distances, all leading dimensions in one; float32.

        Raises:
            TypeError, ValueError: no float tensor, or a last dimension that is not 4·(n + 1).
        """
        bins = self.reg_max + 1
        if not isinstance(x, Tensor):
            bad_type("x", f"a tensor (…, {4 * bins})", x)
        if x.dim() == 0 or x.shape[-1] != 4 * bins:
            bad_value("x", f"{4 * bins} = 4·(reg_max + 1) logits in the last dimension", x)
        return integral(x.reshape(-1, 4, bins), self.project)


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
            _count(value, name)
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


def _count(value: Any, name: str) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        bad_type(name, "an integer", value)
    return check_number(value, name, least=1)
