"""The official detectors' keys, shapes, frozen parameters and counts."""

from __future__ import annotations

import pytest
from torch.nn.modules.batchnorm import _BatchNorm

from gflv2.checkpoint.official_keys import from_official, to_official
from tests.models.fill import detector_of, on_meta
from tests.shared import golden, golden_cases


@pytest.mark.parametrize("case", golden_cases("structure_*"))
def test_structure(case):
    meta = golden(case).meta
    model = on_meta(lambda: detector_of(case))
    name = model.config.model.backbone.name
    official = {key: to_official(key, name) for key in model.state_dict()}
    assert all(from_official(theirs, name) == ours for ours, theirs in official.items())

    parameters = dict(model.named_parameters())
    found = {}
    for key, value in model.state_dict(keep_vars=True).items():
        entry = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if key in parameters:
            found[official[key]] = {**entry, "kind": "parameter", "requires_grad": value.requires_grad}
        else:
            found[official[key]] = {**entry, "kind": "buffer"}
    assert found == meta["state_dict"]
    assert len(found) == meta["n_keys"]
    assert len(parameters) == meta["n_params"]
    assert sum(p.numel() for p in parameters.values()) == meta["numel_params"]
    assert sum(p.numel() for p in parameters.values() if p.requires_grad) == meta["numel_trainable"]
    for part, count in meta["numel_by_part"].items():
        assert sum(p.numel() for key, p in parameters.items() if key.startswith(part)) == count, part


@pytest.mark.parametrize("case", golden_cases("structure_*"))
def test_no_batch_norm_trains(case):
    meta = golden(case).meta
    model = on_meta(lambda: detector_of(case)).train()
    norms = {key: module for key, module in model.named_modules() if isinstance(module, _BatchNorm)}
    assert len(norms) == meta["num_bn"]
    assert [key for key, module in norms.items() if module.training] == meta["bn_in_train_mode_after_model_train"]
    assert model.neck.training and model.bbox_head.training
