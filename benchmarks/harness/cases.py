"""One size of input, and its text in the column ``case``: ``batch=2 size=800x1344 reg_max=16 dtype=float32``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Case:
    """The facts of a case; an operation names in its ``axes`` those that matter to it."""

    batch: int = 2
    size: tuple[int, int] = (800, 1344)  # height and width of the images in pixels
    classes: int = 80
    reg_max: int = 16
    boxes: int = 10  # in each image
    rows: int = 8192  # of operations that read rows
    dtype: str = "float32"  # of the logits
    layout: str = "nchw"  # or "channels_last"
    form: str = "joint"  # of the quality focal loss: "joint" or "logits"; the kind of the focal losses
    model: str = "gflv2_lite0"  # a named configuration

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def text(self, axes: tuple[str, ...]) -> str:
        values = {name: getattr(self, name) for name in axes}
        if "size" in values:
            values["size"] = "x".join(map(str, self.size))
        return " ".join(f"{name}={value}" for name, value in values.items())

    @property
    def level_shapes(self) -> list[tuple[int, int]]:
        """(H_l, W_l) of the pyramid."""
        return [tuple(-(-side // stride) for side in self.size) for stride in STRIDES]

    @property
    def points(self) -> int:
        """A, points of one image."""
        return sum(height * width for height, width in self.level_shapes)

    @property
    def bins(self) -> int:
        """R = reg_max + 1."""
        return self.reg_max + 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of one logit."""
        return self.torch_dtype.itemsize


TINY = Case(batch=2, size=(64, 96), classes=3, reg_max=7, boxes=3, rows=32)


def facts(text: str) -> dict[str, str]:
    """The facts of a text that ``Case.text`` wrote."""
    return dict(word.split("=", 1) for word in text.split())


def read(text: str) -> Case:
    """The case of a text; facts that it does not name have their defaults."""
    values: dict[str, Any] = facts(text)
    for name, value in values.items():
        if name == "size":
            values[name] = tuple(int(side) for side in value.split("x"))
        elif name in ("batch", "classes", "reg_max", "boxes", "rows"):
            values[name] = int(value)
    return Case(**values)
