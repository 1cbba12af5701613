"""The golden head cases without the head module: plain functions for its convolutions, the operations for the rest.

The convolutions run in float64 and are rounded to float32 once: in float32 they differ from processor to processor, and
a ReLU that flips would move gradients further than the arrays' round-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, relu

from gflv2.ops import Assignment, GFLTargets, Predictor, atss, gfl_targets
from tests.shared import Golden, golden, head_weights


@dataclass
class Head:
    """A golden case, run forward.

    Attributes:
        weights: state_dict of the head, leaves that require gradients.
        features, class_logits, box_logits: one tensor a level; the features are leaves.
    """

    arrays: Golden
    weights: dict[str, Tensor]
    features: list[Tensor]
    class_logits: list[Tensor]
    box_logits: list[Tensor]
    scales: Tensor
    predictor: Predictor

    @property
    def meta(self) -> dict:
        return self.arrays.meta

    @property
    def images(self) -> range:
        return range(len(self.meta["img_metas"]))

    @property
    def boxes(self) -> list[Tensor]:
        return [self.arrays[f"gt_bboxes.{image}"] for image in self.images]

    @property
    def labels(self) -> list[Tensor]:
        return [self.arrays[f"gt_labels.{image}"] for image in self.images]

    @property
    def padded_sizes(self) -> list[tuple[int, int]]:
        return [tuple(image["pad_shape"][:2]) for image in self.meta["img_metas"]]

    @property
    def options(self) -> dict:
        """Keywords of gfl_targets, gfl_loss and decode."""
        return {"strides": self.meta["strides"], "scales": self.scales, "predictor": self.predictor}

    def assign(self) -> Assignment:
        shapes = [tuple(level.shape[2:]) for level in self.class_logits]
        sizes = self.padded_sizes
        return atss(
            self.boxes, self.labels, shapes, self.meta["strides"], topk=self.meta["atss_topk"], padded_sizes=sizes
        )

    def targets(self) -> GFLTargets:
        return gfl_targets(
            self.class_logits,
            self.box_logits,
            self.assign(),
            self.boxes,
            padded_sizes=self.padded_sizes,
            **self.options,
        )


def run_head(case: str) -> Head:
    arrays = golden(case)
    meta = arrays.meta
    weights = {key: value.clone().requires_grad_() for key, value in head_weights(arrays).items()}
    features = [level.requires_grad_() for level in arrays.levels("feat")]

    def exact(key: str) -> Tensor:
        return weights[key].double()

    def tower(name: str, x: Tensor) -> Tensor:
        for index in range(meta["stacked_convs"]):
            x = conv2d(x, exact(f"{name}.{index}.conv.weight"), padding=1)
            gamma, beta = exact(f"{name}.{index}.gn.weight"), exact(f"{name}.{index}.gn.bias")
            x = relu(group_norm(x, meta["gn_groups"], gamma, beta))
        return x

    def output(name: str, x: Tensor) -> Tensor:
        return conv2d(x, exact(f"{name}.weight"), exact(f"{name}.bias"), padding=1).float()

    class_logits = [output("gfl_cls", tower("cls_convs", x.double())) for x in features]
    box_logits = [output("gfl_reg", tower("reg_convs", x.double())) for x in features]
    scales = torch.stack([weights[f"scales.{level}.scale"] for level in range(len(features))])
    layers = [weights[f"reg_conf.{layer}.{kind}"] for layer in (0, 2) for kind in ("weight", "bias")]
    predictor = Predictor(*layers, topk=meta["reg_topk"], mean=meta["add_mean"])
    return Head(arrays, weights, features, class_logits, box_logits, scales, predictor)


@lru_cache(maxsize=16)
def inference_head(case: str) -> Head:
    """The same without gradients; shared between tests, so not to be changed."""
    with torch.no_grad():
        return run_head(case)
