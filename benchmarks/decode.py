"""``decode``: the inference head up to NMS."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import inputs
from benchmarks.eager.decode import FORMS, PRE_TOPK
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import BATCHES, CLASSES, REG_MAX, SIZES, Inputs, Operation
from gflv2 import ops
from gflv2.ops.reference.decode import decode as reference


class Decode(Operation):
    name = "decode"
    axes = ("batch", "size", "classes", "reg_max", "dtype", "layout")
    curves = {"size": SIZES, "batch": BATCHES, "classes": CLASSES, "reg_max": REG_MAX}
    mode = "forward"
    forms = FORMS

    def run(self, *args, **kwargs) -> ops.Decoded:
        return ops.decode(*args, **kwargs)

    def reference(self, *args, **kwargs) -> ops.Decoded:
        return reference(*args, **kwargs)

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        head = inputs.head(case, device, seed)
        sizes = torch.tensor([case.size] * case.batch, device=device)
        kwargs: dict[str, Any] = {**head.arguments, "image_sizes": sizes}
        return Inputs(_plain((head.class_logits, head.box_logits)), _plain(kwargs))

    def moved(self, case: Case) -> dict[str, int]:
        """All logits decide which points stay; boxes, scores and places of these are written."""
        logits = case.batch * case.points * (case.classes + 4 * case.bins) * case.itemsize
        kept = sum(min(PRE_TOPK, height * width) for height, width in case.level_shapes)
        return {"forward": logits + case.batch * kept * (4 * 4 + 4 * case.classes + 8)}


def _plain(value: Any) -> Any:
    """The same without gradients."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, value)


OPERATION = Decode()
