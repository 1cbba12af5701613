"""Detectors filled by the weight rule of the golden manifests."""

from __future__ import annotations

import torch
from torch import nn

from gflv2 import GFLV2
from gflv2.checkpoint.official_keys import to_official
from tests.shared import fill_weight

# The authors' configuration of each golden detector → ours; "nodcn" cases are the same models without deformation.
MODELS = {
    "r50": "gflv2_r50_fpn_ms2x",
    "r101": "gflv2_r101_fpn_ms2x",
    "r101_dcn": "gflv2_r101_dcn_fpn_ms2x",
    "x101": "gflv2_x101_dcn_fpn_ms2x",
    "r2n101": "gflv2_r2n101_dcn_fpn_ms2x",
}


def detector_of(case: str) -> GFLV2:
    """The detector that a ``structure_*`` or ``forward_*`` case describes, with the authors' background channel."""
    kind = case.split("_", 1)[1]
    if kind.endswith("_nodcn"):
        return GFLV2(MODELS[kind.removesuffix("_nodcn")], legacy=True, model__backbone__deform__stages=[])
    return GFLV2(MODELS.get(kind) or MODELS[kind.removesuffix("_dcn")], legacy=True)


def fill_detector(model: GFLV2, seed: int) -> None:
    """Every tensor by the rule, with the overrides that all ``forward_*`` cases share; keys are the official ones."""
    state = {}
    for key, value in model.state_dict().items():
        official = to_official(key, model.config.model.backbone.name)
        filled = fill_weight(seed, official, tuple(value.shape), value)
        if official.startswith("backbone.") and official.endswith("bn3.weight"):
            filled = filled * 0.3
        if "conv_offset" in official:
            filled = filled * 0.15
        if official == "bbox_head.gfl_cls.bias":
            filled = filled - 1.0
        state[key] = filled
    model.load_state_dict(state)


def without_gradient(module: nn.Module) -> list[str]:
    """Names of trainable parameters that a backward pass left without a gradient."""
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def on_meta(build) -> nn.Module:
    """What ``build()`` returns, without memory for its tensors."""
    with torch.device("meta"):
        return build()
