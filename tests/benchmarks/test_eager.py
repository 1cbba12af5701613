"""The eager forms that the kernels are compared with compute what the reference computes, gradients included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import (
    atss,
    decode,
    detect,
    dgqp,
    dgqp_statistics,
    dynamic_soft_label,
    head,
    registry,
    task_aligned,
)
from benchmarks.harness.candidates import gradients
from benchmarks.harness.cases import TINY, Case

CASE = TINY.but(size=(128, 160), boxes=9, reg_max=16)
# Those with gradients; the others are compared below.
OPERATIONS = [operation for operation in registry.operations() if operation.forms and operation.mode is None]
CPU = torch.device("cpu")


HALF = CASE.but(layout="channels_last", dtype="bfloat16")


def forms() -> Iterator:
    for operation in OPERATIONS:
        further = {"qfl": ["logits"], "focal": ["sigmoid_focal", "matchability_aware", "iou_aware_bce"]}
        cases = [CASE, HALF, *(CASE.but(form=name) for name in further.get(operation.name, ()))]
        for form in operation.forms:
            for case in cases:
                yield pytest.param(operation, form, case, id=f"{operation.name}-{form}-{case.dtype}-{case.form}")


@pytest.mark.parametrize("operation, form, case", list(forms()))
def test_values_and_gradients(operation, form: str, case: Case) -> None:
    inputs = operation.inputs(case, CPU, 1)
    wanted = operation.reference(*inputs.args, **inputs.kwargs)
    found = operation.forms[form](*inputs.args, **inputs.kwargs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))
    if case is HALF and operation in (dgqp.OPERATION, dgqp_statistics.OPERATION, head.OPERATION):
        return  # equal logits, which bfloat16 has many of, may share their gradient in any way
    slopes = zip(gradients(operation, found, inputs), gradients(operation, wanted, inputs), strict=True)
    loose = 1e-4 if case.dtype == "float32" else 2e-2  # bfloat16: both were rounded to it
    for ours, theirs in slopes:
        torch.testing.assert_close(ours, theirs, rtol=loose, atol=loose * float(theirs.abs().max()))
        assert theirs.abs().max() > 0


@pytest.mark.parametrize("form", atss.OPERATION.forms)
@pytest.mark.parametrize("boxes", [0, 1, 40])
@pytest.mark.parametrize("size", [(128, 160), (320, 512)])
def test_assignment(form: str, boxes: int, size: tuple[int, int]) -> None:
    operation = atss.OPERATION
    inputs = operation.inputs(Case(size=size, boxes=boxes), CPU, 2)
    wanted = operation.reference(*inputs.args)
    found = operation.forms[form](*inputs.args)
    assert (wanted.index > 0).any() == (boxes > 0)
    for name in ("index", "labels", "iou"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("form", task_aligned.OPERATION.forms)
@pytest.mark.parametrize("boxes", [0, 1, 40])
def test_alignment(form: str, boxes: int) -> None:
    operation = task_aligned.OPERATION
    inputs = operation.inputs(Case(size=(128, 160), boxes=boxes), CPU, 2)
    wanted, found = operation.reference(*inputs.args), operation.forms[form](*inputs.args)
    # torch orders points of metric 0 as it likes.
    certain = (wanted.scores > 0) | (found.scores > 0)
    assert certain.any() == (boxes > 0)
    for name in ("index", "labels"):
        assert torch.equal(getattr(found, name)[certain], getattr(wanted, name)[certain]), name
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", dynamic_soft_label.OPERATION.forms)
@pytest.mark.parametrize("boxes", [0, 1, 30])
def test_dynamic_assignment(form: str, boxes: int) -> None:
    operation = dynamic_soft_label.OPERATION
    inputs = operation.inputs(Case(size=(128, 160), boxes=boxes), CPU, 2)
    wanted = operation.reference(*inputs.args)
    found = operation.forms[form](*inputs.args)
    assert (wanted.index > 0).any() == (boxes > 0)
    for name in ("index", "labels", "iou"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("form", decode.OPERATION.forms)
def test_candidates(form: str) -> None:
    operation = decode.OPERATION
    inputs = operation.inputs(TINY.but(size=(320, 320), reg_max=16), CPU, 3)  # 1600 cells on the first level
    wanted = operation.reference(*inputs.args, **inputs.kwargs)
    found = operation.forms[form](*inputs.args, **inputs.kwargs)
    # Where two scores differ by rounding alone, two points may change places: the order of points decides the rows.
    order, other = wanted.points.argsort(1), found.points.argsort(1)
    assert torch.equal(wanted.points.gather(1, order), found.points.gather(1, other))
    for name in ("scores", "boxes"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        ours = ours.gather(1, other[..., None].expand(-1, -1, ours.shape[2]))
        theirs = theirs.gather(1, order[..., None].expand(-1, -1, theirs.shape[2]))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.counts, wanted.counts) and wanted.counts.min() > 0


@pytest.mark.parametrize("form", detect.OPERATION.forms)
def test_detections(form: str) -> None:
    operation = detect.OPERATION
    inputs = operation.inputs(TINY.but(size=(320, 320), reg_max=16), CPU, 3)
    wanted = operation.reference(*inputs.args, **inputs.kwargs)
    found = operation.forms[form](*inputs.args, **inputs.kwargs)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(ours.labels, theirs.labels) and len(theirs.labels)


def test_static_forms_are_among_the_forms() -> None:
    for operation in registry.operations():
        assert operation.static_form is None or operation.static_form in operation.forms
