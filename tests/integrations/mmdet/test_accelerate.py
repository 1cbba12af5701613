"""``accelerate()``: mmdet's detectors compute the same with and without this project's classes."""

from __future__ import annotations

import io
import sys

import mmdet.models
import mmdet.models.losses
import pytest
import torch
from mmdet.models.task_modules.assigners import ATSSAssigner, BboxOverlaps2D
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.structures import InstanceData

from gflv2.integrations.mmdet import accelerate, assigners, class_losses, fused, modules, restore, rtmdet, swap
from gflv2.ops import atss, gfl_loss, gfl_targets, normalisers
from tests.integrations.mmdet.detectors import (
    GENERATOR,
    HEADS,
    STRIDES,
    TRAIN,
    batch,
    build,
    config,
    detect,
    step,
)


def classes_of(model) -> dict[str, type]:
    head = model.bbox_head
    names = [name for name in ("loss_cls", "loss_bbox", "loss_dfl", "assigner", "integral") if hasattr(head, name)]
    return {"head": type(head), **{name: type(getattr(head, name)) for name in names}}


OURS = {
    "GFL": {
        "head": fused.GFLHead,
        "loss_cls": modules.QualityFocalLoss,
        "loss_bbox": modules.GIoULoss,
        "loss_dfl": modules.DistributionFocalLoss,
        "assigner": modules.ATSSAssigner,
        "integral": modules.Integral,
    },
    "ATSS": {
        "head": MODELS.get("ATSSHead"),
        "loss_cls": class_losses.FocalLoss,
        "loss_bbox": modules.GIoULoss,
        "assigner": modules.ATSSAssigner,
    },
    # Other heads that take one or two of the classes.
    "FCOS": {
        "head": MODELS.get("FCOSHead"),
        "loss_cls": class_losses.FocalLoss,
        "loss_bbox": modules.GIoULoss,
    },
    # Its deformable convolutions are the stand-in's.
    "VFNet": {
        "head": MODELS.get("VFNetHead"),
        "loss_cls": class_losses.VarifocalLoss,
        "loss_bbox": modules.GIoULoss,
        "assigner": modules.ATSSAssigner,
    },
    "RTMDet": {
        "head": rtmdet.RTMDetHead,
        "loss_cls": modules.QualityFocalLoss,
        "loss_bbox": modules.GIoULoss,
        "assigner": assigners.DynamicSoftLabelAssigner,
    },
    "TOOD": {
        "head": MODELS.get("TOODHead"),
        "loss_cls": modules.QualityFocalLoss,
        "loss_bbox": modules.GIoULoss,
        "assigner": modules.ATSSAssigner,  # of the first epochs
    },
    "YOLOX": {
        "head": MODELS.get("YOLOXHead"),
        "loss_cls": MODELS.get("CrossEntropyLoss"),
        "loss_bbox": MODELS.get("IoULoss"),
        "assigner": assigners.SimOTAAssigner,
    },
}
MAIN = ("GFL", "ATSS")


def assert_same_step(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            error, size = (ours[name] - value).detach().abs().max(), value.detach().abs().max()
            assert error <= 2e-5 * size + 1e-9, f"{name}: off by {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("boxes", [(4, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", OURS)
def test_a_training_step(kind, boxes):
    plain = build(kind)
    expected = step(plain, boxes)
    accelerate()
    model = build(kind, like=plain)
    assert classes_of(model) == OURS[kind]
    assert list(model.state_dict()) == list(plain.state_dict())
    found = step(model, boxes)
    assert_same_step(found, expected)
    if any(boxes):
        assert found[0]["loss_bbox"] > 0


@pytest.mark.parametrize("kind", MAIN)
def test_detections(kind):
    plain = build(kind)
    expected = detect(plain)
    accelerate()
    for ours, theirs in zip(detect(build(kind, like=plain)), expected, strict=True):
        assert len(theirs) > 5
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MAIN)
def test_a_model_that_exists(kind):
    model = build(kind)
    theirs, expected = classes_of(model), step(model)
    for _ in range(2):
        accelerate(model)
        assert classes_of(model) == OURS[kind]
    assert_same_step(step(model), expected)
    for _ in range(2):
        restore(model)
        assert classes_of(model) == theirs
    again = step(model)
    assert torch.equal(sum(again[0].values()), sum(expected[0].values()))
    assert classes_of(build(kind)) == theirs  # the others were left alone


def entries() -> list:
    """Everything that accelerate() may change."""
    names = [theirs.__name__ for _, theirs, _ in swap._CLASSES]
    places = [MODELS.module_dict, TASK_UTILS.module_dict]
    places += [vars(module) for name, module in sys.modules.items() if name.startswith("mmdet.")]
    return [place.get(name) for place in places for name in names] + [fused.MmdetGFLHead.__init__]


def test_again_and_back():
    before = entries()
    assert modules.MmdetGIoULoss in before
    accelerate()
    first = entries()
    accelerate()
    assert entries() == first != before
    assert mmdet.models.GIoULoss is mmdet.models.losses.GIoULoss is modules.GIoULoss
    assert mmdet.models.dense_heads.GFLHead is fused.GFLHead
    # Heads that ask with isinstance() go on asking for mmdet's class.
    assert sys.modules["mmdet.models.dense_heads.dino_head"].QualityFocalLoss is modules.MmdetQualityFocalLoss
    for _ in range(2):
        restore()
        assert entries() == before
    accelerate()
    assert entries() == first


def test_a_configuration_with_custom_imports(tmp_path):
    sys.modules.pop("gflv2.integrations.mmdet.accelerated", None)
    theirs = classes_of(build("GFL"))
    text = (
        f"custom_imports = dict(imports=['gflv2.integrations.mmdet.accelerated'])\nmodel = {config('GFL').to_dict()}\n"
    )
    (tmp_path / "config.py").write_text(text)
    loaded = Config.fromfile(tmp_path / "config.py")
    assert classes_of(MODELS.build(loaded.model)) == OURS["GFL"]
    restore()
    assert classes_of(MODELS.build(loaded.model)) == theirs


def priors(scales: tuple[float, ...]) -> tuple[torch.Tensor, list[int]]:
    generator = TASK_UTILS.build(
        {"type": "AnchorGenerator", "ratios": [1.0], "scales": list(scales), "strides": list(STRIDES)}
    )
    levels = generator.grid_priors([(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)], device="cpu")
    return torch.cat(levels), [len(level) for level in levels]


def assigned(assigner, anchors, counts, **instances):
    truth = batch()[1][0].gt_instances
    return assigner.assign(InstanceData(priors=anchors, **instances), counts, truth)


def test_what_the_operation_does_not_cover_is_left_to_mmdet(monkeypatch):
    """Several anchors a cell, DDOD's cost, another calculator: mmdet's own answer, by its own code."""
    calls = []
    own = ATSSAssigner.assign
    monkeypatch.setattr(ATSSAssigner, "assign", lambda *args: calls.append(1) or own(*args))
    (single, counts), (several, more) = priors((8,)), priors((6, 8))
    scores = {"scores": torch.rand(len(single), 5), "bboxes": single + 1}
    cases = [({}, several, more, {}), ({"alpha": 0.8}, single, counts, scores)]
    for settings, anchors, levels, instances in cases:
        theirs = ATSSAssigner(9, **settings)
        expected = own(theirs, InstanceData(priors=anchors, **instances), levels, batch()[1][0].gt_instances)
        found = assigned(modules.ATSSAssigner(9, **settings), anchors, levels, **instances)
        assert torch.equal(found.gt_inds, expected.gt_inds) and (found.gt_inds > 0).any()
    assert len(calls) == len(cases)

    class Calculator(BboxOverlaps2D):
        pass

    assigner = modules.ATSSAssigner(9)
    assigned(assigner, single, counts)
    assert len(calls) == len(cases)
    assigner.iou_calculator = Calculator()
    assigned(assigner, single, counts)
    assert len(calls) == len(cases) + 1


def test_ignored_boxes():
    anchors, counts = priors((8,))
    truth = batch()[1][0].gt_instances
    ignored = InstanceData(bboxes=torch.tensor([[0.0, 0.0, 100.0, 70.0]]))
    for threshold in (-1, 0.5):
        results = [
            kind(9, ignore_iof_thr=threshold).assign(InstanceData(priors=anchors), counts, truth, ignored)
            for kind in (modules.ATSSAssigner, ATSSAssigner)
        ]
        ours, theirs = results
        assert ours.num_gts == theirs.num_gts
        assert torch.equal(ours.gt_inds, theirs.gt_inds) and torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.max_overlaps, theirs.max_overlaps)
        assert (ours.gt_inds == -1).any() == (threshold > 0)


@pytest.mark.parametrize("shift", [0.0, -12.0])
def test_mmdets_conventions(shift):
    """n + 1 bins, targets clamped to n − 0.1, offset 0, squares of 8 strides, and Σw clamped at 1: all of GFLHead's
    losses from ``gfl_loss`` with exactly these. The second scores are so low that Σw < 1."""
    head = build("GFL").bbox_head
    draw = torch.Generator().manual_seed(2)
    shapes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    class_logits = [torch.randn(2, 5, *shape, generator=draw) + shift for shape in shapes]
    box_logits = [torch.randn(2, 4 * 17, *shape, generator=draw) * 2 for shape in shapes]
    _, samples = batch()
    truths = [sample.gt_instances for sample in samples]
    # Larger than 16 strides of the finest levels: distances that are clamped.
    truths[0].bboxes[0] = torch.tensor([1.0, 2.0, 158.0, 126.0])
    losses = head.loss_by_feat(class_logits, box_logits, truths, [sample.metainfo for sample in samples])
    expected = [sum(losses[name]) for name in ("loss_cls", "loss_bbox", "loss_dfl")]

    boxes, labels = [truth.bboxes for truth in truths], [truth.labels for truth in truths]
    sizes = [sample.metainfo["pad_shape"] for sample in samples]
    found = atss(boxes, labels, shapes, STRIDES, topk=9, padded_sizes=sizes, anchor_scale=8.0, offset=0.0)
    options = {"strides": STRIDES, "projection": torch.arange(17.0), "offset": 0.0}
    targets = gfl_targets(class_logits, box_logits, found, boxes, padded_sizes=sizes, **options)
    clamped = normalisers(targets.sums, weight_floor=1.0)
    ours = gfl_loss(class_logits, box_logits, targets, clamped, **options)
    torch.testing.assert_close(torch.stack(ours), torch.stack(expected), rtol=1e-5, atol=1e-7)
    assert (targets.sums[1] < 1) == (shift < 0)
    authors = gfl_loss(class_logits, box_logits, targets, normalisers(targets.sums), **options)
    assert torch.allclose(authors.giou, ours.giou) == (shift == 0)
    # The boxes' own clamp: without it the largest distance would lie beyond the bins.
    encoded = head.bbox_coder.encode(torch.zeros(1, 2), torch.tensor([[-20.0, 0.0, 3.0, 16.0]]), head.reg_max)
    torch.testing.assert_close(encoded, torch.tensor([[15.9, 0.0, 3.0, 15.9]]))


FP16 = {"type": "BboxOverlaps2D", "dtype": "fp16"}


@pytest.mark.parametrize(
    "unusual",
    [
        {"loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0, "eps": 1e-7}},
        {"train_cfg": {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": 0.5}},
        {"loss_bbox": {"type": "DIoULoss", "loss_weight": 2.0}},
        {"reg_max": 80},  # more bins than the operations take
        {"train_cfg": {**TRAIN, "assigner": {**TRAIN["assigner"], "iou_calculator": FP16}}},
    ],
)
def test_gfl_with_unusual_settings(unusual, monkeypatch):
    """Our single losses inside mmdet's own loop, whose numbers stay as they are."""
    plain = build("GFL", **unusual)
    expected = step(plain)
    accelerate()
    model = build("GFL", like=plain, **unusual)
    monkeypatch.setattr(fused, "losses", None)  # not to be called
    assert type(model.bbox_head) is fused.GFLHead and type(model.bbox_head.loss_cls) is modules.QualityFocalLoss
    assert_same_step(step(model), expected)


def test_heads_derived_from_gfl_head_keep_their_own_losses():
    class Derived(fused.MmdetGFLHead):
        pass

    plain = build("GFL")
    expected = step(plain)
    accelerate()
    model = build("GFL", like=plain, type=Derived)
    assert type(model.bbox_head) is Derived and type(model.bbox_head.integral) is modules.Integral
    assert_same_step(step(model), expected)
    assert len(model.loss(*batch())["loss_cls"]) == 5  # one a level, as mmdet's code gives them


class Tenfold(torch.nn.Module):
    def forward(self, *args, **kwargs):
        return 10 * super().forward(*args, **kwargs)


class TenfoldClasses(Tenfold, modules.MmdetQualityFocalLoss):
    pass


class TenfoldBoxes(Tenfold, modules.MmdetGIoULoss):
    pass


class TenfoldBins(Tenfold, modules.MmdetDistributionFocalLoss):
    pass


class First(ATSSAssigner):
    """Of the boxes only the first is learnt."""

    def assign(self, *args, **kwargs):
        found = super().assign(*args, **kwargs)
        others = found.gt_inds > 1
        found.gt_inds[others], found.labels[others] = 0, -1
        return found


class Sampler(PseudoSampler):
    pass


DERIVED = {
    "loss_cls": {"loss_cls": {**HEADS["GFL"]["loss_cls"], "type": TenfoldClasses}},
    "loss_bbox": {"loss_bbox": {"type": TenfoldBoxes, "loss_weight": 2.0}},
    "loss_dfl": {"loss_dfl": {"type": TenfoldBins, "loss_weight": 0.25}},
    "train_cfg.assigner": {"train_cfg": {**TRAIN, "assigner": {"type": First, "topk": 9}}},
    "train_cfg.sampler": {"train_cfg": {**TRAIN, "sampler": {"type": Sampler}}},
}


@pytest.mark.parametrize("part", DERIVED)
def test_a_part_derived_from_mmdets_keeps_its_own_code(part):
    plain = build("GFL", **DERIVED[part])
    expected = step(plain)
    accelerate()
    model = build("GFL", like=plain, **DERIVED[part])
    assert type(model.bbox_head) is fused.GFLHead and not modules.covered(model.bbox_head, fused.check_parts)
    assert_same_step(step(model), expected)
    # GFLV2Head has no other code.
    with pytest.raises(TypeError, match=f"{part}: expected .*not a class derived from it"):
        build("GFLV2", **DERIVED[part])


def test_an_integral_derived_from_mmdets():
    head = build("GFL").bbox_head
    assert modules.covered(head, fused.check_parts)
    head.integral = type("Other", (modules.Integral,), {})(16)
    with pytest.raises(TypeError, match="integral: expected an Integral, not a class derived from it, got 'Other'"):
        fused.check_parts(head)


def test_a_head_derived_after_accelerate():
    """What users import then is our GFLHead; methods that they replace are called all the same."""

    def derived():
        from mmdet.models.dense_heads import GFLHead

        class Head(GFLHead):
            def loss_by_feat_single(self, *args, **kwargs):
                classes, *others = super().loss_by_feat_single(*args, **kwargs)
                return 10 * classes, *others

        return Head

    plain = build("GFL", type=derived())
    expected = step(plain)
    accelerate()
    model = build("GFL", like=plain, type=derived())
    assert isinstance(model.bbox_head, fused.GFLHead)
    assert_same_step(step(model), expected)


def test_use_sigmoid():
    accelerate()
    with pytest.raises(ValueError, match="use_sigmoid: expected True, the only one that mmdet has, got False"):
        MODELS.build({"type": "QualityFocalLoss", "use_sigmoid": False})
    assert MODELS.build({"type": "QualityFocalLoss", "beta": 1.5, "loss_weight": 3.0}).beta == 1.5
    # The authors' configurations of GFLV2 have it.
    build("GFLV2", loss_cls={**HEADS["GFLV2"]["loss_cls"], "use_sigmoid": False})


def test_classes_that_others_registered_stay(monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, "GIoULoss", TenfoldBoxes)
    accelerate()
    assert MODELS.get("GIoULoss") is TenfoldBoxes and MODELS.get("GFLHead") is fused.GFLHead
    restore()
    assert MODELS.get("GIoULoss") is TenfoldBoxes


def test_models_of_before_can_be_saved_as_a_whole():
    before = build("GFL")
    accelerate()
    for model in (before, build("GFL")):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert classes_of(torch.load(file, weights_only=False)) == classes_of(model)


def test_more_bins_than_the_operations_take():
    draw = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 81, generator=draw), torch.rand(6, generator=draw) * 79
    ours, theirs = (
        loss(loss_weight=0.5)(logits, target, weight=target, avg_factor=2.0)
        for loss in (modules.DistributionFocalLoss, modules.MmdetDistributionFocalLoss)
    )
    torch.testing.assert_close(ours, theirs)
    rows = torch.randn(3, 4 * 81, generator=draw)
    torch.testing.assert_close(modules.Integral(80)(rows), modules.MmdetIntegral(80)(rows))
    with pytest.raises(ValueError, match="reg_max: expected 1 to 64, got 80"):
        build("GFLV2", reg_max=80)


def test_more_levels_than_the_operations_take():
    strides = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    head = build("GFL", anchor_generator={**GENERATOR, "strides": strides}).bbox_head
    assert not modules.covered(head, fused.check_parts)
    with pytest.raises(ValueError, match="anchor_generator.strides: expected at most 8 levels, got 9"):
        fused.check_parts(head)


@pytest.mark.parametrize("call", [accelerate, restore])
def test_what_is_no_model(call):
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, or None, got 'GFL'"):
        call("GFL")
