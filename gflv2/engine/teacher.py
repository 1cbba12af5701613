"""The trained detector that teaches another one in training (``train.distill``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gflv2 import checkpoint
from gflv2.checkpoint.integrity import fingerprint
from gflv2.checkpoint.loading import model_config
from gflv2.config import Config
from gflv2.models.detector import SingleStageDetector
from gflv2.models.distillation import Teaching
from gflv2.models.gfl_head import GFLHead
from gflv2.ops.checks import bad_value


class Teacher:
    """A detector that stays as it is: no parameter of the run's model, in no checkpoint, always in eval mode.

    Args:
        config: of the run; ``train.distill.teacher`` names the weights.
        student: the model that learns.

    Raises:
        FileNotFoundError, ValueError: there are no such weights, or their head's distributions are not the student's:
            another number of bins, other strides or points.
    """

    def __init__(self, config: Config, student: SingleStageDetector) -> None:
        self.settings = config.train.distill
        name = str(self.settings.teacher)
        source = checkpoint.read(checkpoint.find_weights(name) or name)
        self.model = SingleStageDetector(model_config(source))
        checkpoint.load_weights(self.model, source)
        _check(self.model.bbox_head, student.bbox_head)
        self.model.eval().requires_grad_(False)
        self.fingerprint = fingerprint(self.model.state_dict())
        # From the student's normalised pixels to the teacher's: x·factor + shift.
        ours, theirs = config.data, self.model.config.data
        self._factor = [mine / other for mine, other in zip(ours.std, theirs.std, strict=True)]
        means = zip(ours.mean, theirs.mean, theirs.std, strict=True)
        self._shift = [(mine - other) / std for mine, other, std in means]
        self._same_pixels = set(self._factor) == {1.0} and set(self._shift) == {0.0}

    def to(self, device: torch.device | str) -> None:
        """Move it to where its images will be."""
        self.model.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Teaching:
        """(B, 3, H, W) images as the student gets them, and their sizes without padding."""
        output = self.model(self._own_pixels(images, image_sizes))
        return Teaching(output.box_logits, output.scales, self.settings)

    def _own_pixels(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        if self._same_pixels:
            return images
        factor, shift = (images.new_tensor(values)[:, None, None] for values in (self._factor, self._shift))
        images = images * factor + shift
        for image, (height, width) in zip(images, image_sizes, strict=True):
            image[:, height:] = image[:, :, width:] = 0  # the padding is the mean colour of either of them
        return images


def _check(teacher: Any, student: Any) -> None:
    what = "train.distill.teacher"
    for who, head in (("teacher", teacher), ("student", student)):
        if not isinstance(head, GFLHead):
            bad_value(what, f"a {who} whose boxes are distributions (a GFL head)", type(head).__name__)
    for name, mine, theirs in (
        ("reg_max", student.reg_max, teacher.reg_max),
        ("strides", student.strides, teacher.strides),
        ("grid", student.grid, teacher.grid),
    ):
        if mine != theirs:
            bad_value(what, f"a teacher with the student's head.{name} = {mine}", theirs)
