"""What ``accelerate()`` answers: of the process, and of models."""

from __future__ import annotations

import logging

import pytest
from mmdet.registry import MODELS

from gflv2.integrations import report
from gflv2.integrations.mmdet import accelerate, fused, modules, restore
from tests.integrations.mmdet.detectors import TRAIN, build
from tests.integrations.mmdet.test_accelerate import TenfoldBoxes


def names(entries) -> list[str]:
    return [one.by.rpartition(".")[2] for one in entries]


def test_of_all_models(monkeypatch, caplog):
    monkeypatch.setattr(report, "_said", set())
    with caplog.at_level(logging.INFO, "gflv2"):
        first = accelerate()
        second = accelerate()
        restore()
        assert accelerate() == first
    assert names(first.replaced) == names(second.before)
    assert names(first.replaced) == [
        "QualityFocalLoss",
        "DistributionFocalLoss",
        "FocalLoss",
        "VarifocalLoss",
        "GIoULoss",
        "CIoULoss",
        "KnowledgeDistillationKLDivLoss",
        "ATSSAssigner",
        "Integral",
        "GFLHead",
        "LDHead",
        "DynamicSoftLabelAssigner",
        "SimOTAAssigner",
        "TaskAlignedAssigner",
        "RTMDetHead",
        "RTMDetSepBNHead",
    ]
    for one in first.replaced:
        name = one.by.rpartition(".")[2]
        assert one.what.startswith("mmdet.models.") and one.by.startswith("gflv2.integrations.mmdet.")
        kind = "registry task util" if name.endswith("Assigner") else "registry model"
        assert one.where[0] == ("GFLHead.__init__" if name == "Integral" else kind)
    assert "mmdet.models.losses" in first.replaced[4].where
    assert not first.before and not second.replaced and first.stayed == second.stayed
    assert str(second).startswith("mmdet: nothing is left to replace; gflv2 replaced before\n")
    # Each is logged, and each once.
    assert caplog.messages == [str(first), str(second)]


def test_what_others_registered(monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, "GIoULoss", TenfoldBoxes)
    answer = accelerate()
    assert "registry model" not in answer.replaced[4].where
    (line,) = [one for one in answer.stayed if one.what == "GIoULoss in registry model"]
    assert line.why.endswith("test_accelerate.TenfoldBoxes") and line.why.startswith("somebody else's: ")


MODELS_OF = {
    "GFL": (
        {
            "QualityFocalLoss": ("bbox_head.loss_cls",),
            "DistributionFocalLoss": ("bbox_head.loss_dfl",),
            "GIoULoss": ("bbox_head.loss_bbox",),
            "ATSSAssigner": ("bbox_head.assigner",),
            "Integral": ("bbox_head.integral",),
            "GFLHead": ("bbox_head",),
        },
        {},
    ),
    "VFNet": (
        {
            "VarifocalLoss": ("bbox_head.loss_cls",),
            "GIoULoss": ("bbox_head.loss_bbox", "bbox_head.loss_bbox_refine"),
            "ATSSAssigner": ("bbox_head.assigner",),
        },
        {"bbox_head (VFNetHead)": "its own loop goes on"},
    ),
    "PAA": (
        {"FocalLoss": ("bbox_head.loss_cls",), "GIoULoss": ("bbox_head.loss_bbox",)},
        {
            "bbox_head (PAAHead)": "its own loop goes on",
            "bbox_head.assigner (MaxIoUAssigner)": "no operation of gflv2 computes it",
            "bbox_head.loss_centerness (CrossEntropyLoss)": "no operation of gflv2 computes it",
        },
    ),
}


@pytest.mark.parametrize("kind", MODELS_OF)
def test_of_a_model(kind):
    replaced, stayed = MODELS_OF[kind]
    model = build(kind)
    first, second = accelerate(model), accelerate(model)
    assert {one.by.rpartition(".")[2]: one.where for one in first.replaced} == replaced
    assert second.before == first.replaced and not second.replaced and not first.before
    assert {one.what for one in first.stayed} == set(stayed)
    assert all(one.why.startswith(stayed[one.what]) for one in first.stayed)
    assert str(second).startswith(f"mmdet's {type(model).__name__}: nothing is left to replace")
    restore(model)
    assert accelerate(model) == first


def test_parts_that_go_on_by_mmdets_own_code():
    """A derived loss, a cost that the assigner's operation lacks: the model's report says so."""
    loss = {"loss_bbox": {"type": TenfoldBoxes, "loss_weight": 2.0}}
    train = {"train_cfg": {**TRAIN, "assigner": {"type": "ATSSAssigner", "topk": 9, "alpha": 0.8}}}
    answer = accelerate(build("GFL", **loss, **train))
    why = {one.what: one.why for one in answer.stayed}
    assert why["bbox_head.loss_bbox (TenfoldBoxes)"] == "derived from GIoULoss: it may compute something else"
    assert why["bbox_head.assigner (ATSSAssigner)"].startswith("mmdet's own code assigns: alpha")
    assert why["bbox_head (GFLHead)"].startswith("its losses one by one, in mmdet's loop: loss_bbox: expected a GIoU")
    assert len(why) == 3


def test_a_model_with_nothing_to_replace():
    model = build("FCOS", loss_cls={"type": "CrossEntropyLoss", "use_sigmoid": True}, loss_bbox={"type": "DIoULoss"})
    answer = accelerate(model)
    assert not answer.replaced and str(answer).startswith("mmdet's GFL: gflv2 replaced nothing\n")


def test_replaced_methods_show_where_they_come_from():
    before = fused.MmdetGFLHead.__init__
    accelerate()
    init = fused.MmdetGFLHead.__init__
    assert (init.__module__, init.__name__) == ("gflv2.integrations.mmdet.swap", "_init_with_integral")
    assert init.__wrapped__ is before
    assert MODELS.get("GIoULoss").__module__ == modules.__name__
