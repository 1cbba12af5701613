"""Decoding and NMS together: from the logits of a batch to detections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import decode, peers
from benchmarks.eager.decode import FORMS
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs
from gflv2 import ops
from gflv2.ops.reference.decode import decode as reference


def _then_nms(form: Callable[..., ops.Decoded]) -> Callable[..., list[ops.Detections]]:
    def both(*args: Any, **kwargs: Any) -> list[ops.Detections]:
        return ops.batched_nms(form(*args, **kwargs))

    return both


class Detect(decode.Decode):
    name = "detect"
    curves = {}
    compiles = False  # the NMS is torchvision's; `decode` alone is compiled
    forms = {name: _then_nms(form) for name, form in FORMS.items()}
    peers = {"mmdet (GFLV1)": peers.mmdet.detect}

    def run(self, *args, **kwargs) -> list[ops.Detections]:
        return ops.batched_nms(ops.decode(*args, **kwargs))

    def reference(self, *args, **kwargs) -> list[ops.Detections]:
        return ops.batched_nms(reference(*args, **kwargs))

    def calls(self, inputs: Inputs) -> list:
        return [("decode", inputs.args, inputs.kwargs)]

    def moved(self, case: Case) -> dict[str, int]:
        return {}  # what NMS has to move depends on the boxes


OPERATION = Detect()
