"""`dgqp` and `dgqp_statistics` against the authors' quality predictor, with all gradients."""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import dgqp, dgqp_statistics
from tests.ops.under_test import backends_of, running
from tests.shared import golden, golden_cases

PARAMETERS = ("reg_conf.0.weight", "reg_conf.0.bias", "reg_conf.2.weight", "reg_conf.2.bias")


def settings(meta: dict) -> dict:
    return {"topk": meta["reg_topk"], "mean": meta["add_mean"]}


@pytest.mark.parametrize("backend", backends_of("dgqp_statistics", every_set=True))
@pytest.mark.parametrize("case", golden_cases("dgqp_*"))
def test_statistics(case: str, backend: str) -> None:
    arrays = golden(case)
    with running(backend) as device:
        statistics = dgqp_statistics([arrays["bbox_pred"].to(device)], **settings(arrays.meta))
    arrays.compare("stat", statistics.transpose(1, 2).reshape(arrays["stat"].shape))


@pytest.mark.parametrize("backend", backends_of("dgqp", every_set=True))
@pytest.mark.parametrize("output", ["quality", "joint"])
@pytest.mark.parametrize("case", golden_cases("dgqp_*"))
def test_scores_and_gradients(case: str, output: str, backend: str) -> None:
    arrays = golden(case)
    prefix = {"quality": "gq_", "joint": "gj_"}[output]
    with running(backend) as device:
        leaves = {name: arrays[name].to(device).requires_grad_() for name in ("bbox_pred", "cls_logits", *PARAMETERS)}
        logits = dgqp([leaves["bbox_pred"]], *(leaves[name] for name in PARAMETERS), **settings(arrays.meta))
        logits.retain_grad()
        score = logits.sigmoid().reshape(arrays["quality"].shape)
        if output == "joint":
            score = leaves["cls_logits"].sigmoid() * score
        (score * arrays[f"cot_{output}"].to(device)).sum().backward()
    arrays.compare(output, score)
    checked = [name for name in leaves if prefix + name in arrays]
    assert set(checked) >= {"bbox_pred", *PARAMETERS}
    # The gradient of the last bias is the sum of the logits' gradients, which cancel to as little as 1/200 of their
    # size. Rounding each of them to float32 moves the sum by more than the case warrants: four standard deviations
    # of that rounding are allowed in addition.
    rounding = 4 * 2.0**-24 * float(logits.grad.norm())
    for name in checked:
        extra = rounding if name == "reg_conf.2.bias" else 0.0
        arrays.compare(prefix + name, leaves[name].grad, extra=extra)


@pytest.mark.parametrize("output", ["quality", "joint"])
@pytest.mark.parametrize("case", golden_cases("dgqp_*"))
def test_float64_needs_no_allowance(case: str, output: str) -> None:
    """In float64, where nothing cancels, every gradient is within the case's own tolerance."""
    arrays = golden(case)
    prefix = {"quality": "gq_", "joint": "gj_"}[output]
    leaves = {name: arrays[name].double().requires_grad_() for name in ("bbox_pred", "cls_logits", *PARAMETERS)}
    logits = dgqp([leaves["bbox_pred"]], *(leaves[name] for name in PARAMETERS), **settings(arrays.meta))
    score = logits.sigmoid().reshape(arrays["quality"].shape)
    if output == "joint":
        score = leaves["cls_logits"].sigmoid() * score
    (score * arrays[f"cot_{output}"]).sum().backward()
    for name in leaves:
        if prefix + name in arrays:
            arrays.compare(prefix + name, leaves[name].grad)


@pytest.mark.parametrize("backend", backends_of("dgqp", every_set=True))
@pytest.mark.parametrize("case", golden_cases("dgqp_k4_mean_r16", "dgqp_k8_mean_r7"))
def test_rows_equal_levels(case: str, backend: str) -> None:
    """The golden numbers also come out of rows (M, 4, R)."""
    arrays = golden(case)
    with running(backend) as device:
        box = arrays["bbox_pred"].to(device)
        rows = box.permute(0, 2, 3, 1).reshape(-1, 4, box.shape[1] // 4)
        parameters = [
            arrays[name].to(device).flatten(1) if name.endswith("weight") else arrays[name].to(device)
            for name in PARAMETERS
        ]
        score = dgqp(rows, *parameters, **settings(arrays.meta)).sigmoid()
    arrays.compare("quality", score.reshape(arrays["quality"].shape))
    assert score.dtype == torch.float32
