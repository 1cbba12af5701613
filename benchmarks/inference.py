"""Inference of a named model from images to detections: latency at batch 1, throughput at larger batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.detect import OPERATION as DETECT
from benchmarks.eager.head import with_flat_weights
from benchmarks.harness.candidates import BEST, Candidate, Settings
from benchmarks.harness.cases import Case
from benchmarks.harness.operation import Inputs, Operation
from benchmarks.training_step import images_of, model_of
from gflv2 import GFLV2
from gflv2.models.dense_head import HeadOutput


class Inference(Operation):
    name = "inference"
    axes = ("model", "batch", "size", "dtype", "layout")
    mode = "forward"

    def bases(self, device: torch.device) -> list[Case]:
        if device.type == "cuda":
            case = Case(model="gflv2_r50_fpn_1x", batch=1, dtype="bfloat16", layout="channels_last")
            return [case, case.but(batch=16)]
        case = Case(model="gflv2_lite0", batch=1, size=(320, 320), layout="channels_last")
        return [case, case.but(batch=4)]

    def curve_base(self, device: torch.device) -> Case:
        return self.bases(device)[0]

    def tiny(self) -> Case:
        return Case(model="gflv2_lite0", batch=1, size=(64, 64))

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        return Inputs((model_of(case, device), images_of(case, device, seed)))

    def candidates(self, case: Case, device: torch.device, settings: Settings) -> list[Candidate]:
        sizes = torch.tensor([case.size] * case.batch, device=device)

        def whole(forward: Any, head: Any) -> Any:
            @torch.no_grad()
            def call(model: GFLV2, images: Tensor) -> Any:
                model.eval()
                half = case.torch_dtype if case.dtype != "float32" else torch.bfloat16
                with torch.autocast(images.device.type, dtype=half, enabled=case.dtype != "float32"):
                    output = forward(model, images)
                return head(model, output)

            return call

        def eager(form: Any) -> Any:
            def head(model: GFLV2, output: HeadOutput) -> Any:
                options = {"strides": model.bbox_head.strides, "scales": output.scales, "image_sizes": sizes}
                options["predictor"] = with_flat_weights(output.predictor)
                return form(output.class_logits, output.box_logits, **options)

            return head

        def plain(model: GFLV2, images: Tensor) -> HeadOutput:
            return model(images)

        found = [Candidate(BEST, whole(plain, lambda model, output: model.bbox_head.detect(output, sizes)), "ours")]
        found += [
            Candidate(f"eager: {name}", whole(plain, eager(form)), "eager", "reference")
            for name, form in DETECT.forms.items()
        ]
        if settings.compile == "all":
            for mode in (None, *settings.reductions):
                compiled = torch.compile(plain, mode=mode, dynamic=False)
                head = eager(DETECT.forms["rows"])
                found.append(Candidate(f"compile: {mode or 'default'}", whole(compiled, head), "compile", "reference"))
        return found


OPERATION = Inference()
