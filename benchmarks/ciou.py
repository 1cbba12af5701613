"""``ciou``: the CIoU loss of aligned boxes, in Ultralytics' convention."""

from __future__ import annotations

from torch import Tensor

from benchmarks import peers
from benchmarks.eager.ciou import FORMS
from benchmarks.giou import GIoU
from gflv2 import ops
from gflv2.ops.reference.ciou import ciou as reference


class CIoU(GIoU):
    name = "ciou"
    forms = FORMS
    peers = {"ultralytics": peers.ultralytics.ciou}

    def run(self, *args, **kwargs) -> Tensor:
        return ops.ciou(*args, **kwargs)

    def reference(self, *args, **kwargs) -> Tensor:
        return reference(*args, **kwargs)


OPERATION = CIoU()
