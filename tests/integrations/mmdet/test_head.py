"""``GFLV2Head`` in mmdet: the authors' numbers, configurations and files, and mmdet's own loops."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, load_checkpoint
from mmengine.structures import InstanceData

from gflv2.integrations.mmdet import GFLV2Head, accelerate
from tests.integrations.mmdet.detectors import CLASSES, GENERATOR, HEADS, TEST, TRAIN, batch, build, detect, step
from tests.shared import Golden, golden, golden_cases, head_weights

CASES = golden_cases("head_*")
# As the authors' GFocalHead has them.
OFFICIAL = {
    "type": "GFocalHead",
    "num_classes": 80,
    "in_channels": 256,
    "stacked_convs": 4,
    "feat_channels": 256,
    "anchor_generator": GENERATOR,
    "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": False, "beta": 2.0, "loss_weight": 1.0},
    "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
    "reg_topk": 4,
    "reg_channels": 64,
    "add_mean": True,
    "reg_max": 16,
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "train_cfg": TRAIN,
    "test_cfg": TEST,
}


def head_of(**changes) -> GFLV2Head:
    return MODELS.build(ConfigDict({**copy.deepcopy(OFFICIAL), **changes}))


def of_case(case: Golden, *, legacy: bool = True) -> GFLV2Head:
    """The head of a golden case, from a configuration with the official keys and the official parameter names."""
    meta = case.meta
    weights, test = meta["loss_weights"], meta["test_cfg"]
    head = head_of(
        **{key: meta[key] for key in ("num_classes", "in_channels", "feat_channels", "stacked_convs")},
        **{key: meta[key] for key in ("reg_max", "reg_topk", "reg_channels", "add_mean")},
        norm_cfg={"type": "GN", "num_groups": meta["gn_groups"], "requires_grad": True},
        anchor_generator={**GENERATOR, "strides": meta["strides"]},
        loss_cls={**OFFICIAL["loss_cls"], "beta": meta["beta"], "loss_weight": weights["cls"]},
        loss_bbox={**OFFICIAL["loss_bbox"], "loss_weight": weights["bbox"]},
        loss_dfl={**OFFICIAL["loss_dfl"], "loss_weight": weights["dfl"]},
        legacy_background=legacy and meta["cls_out_channels"] > meta["num_classes"],
        train_cfg={**TRAIN, "assigner": {"type": "ATSSAssigner", "topk": meta["atss_topk"]}},
        test_cfg={**test, "nms": {"type": "nms", "iou_threshold": test["iou_threshold"]}},
    )
    head.load_state_dict(head_weights(case))
    return head


@functools.lru_cache(maxsize=2)
def load(name: str) -> Golden:
    return golden(name)


def truths(case: Golden) -> list[InstanceData]:
    pairs = zip(case.levels("gt_bboxes"), case.levels("gt_labels"), strict=True)
    return [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in pairs]


@pytest.mark.parametrize("name", CASES)
def test_golden_training(name):
    """Forward, the three losses and all gradients, through ``forward`` and ``loss_by_feat``.

    Convolutions round differently on every processor, and a ReLU whose input is 0 within that rounding opens on one and
    not on the other: the gradients may differ by 1/1000 of the largest in addition to what the cases warrant.
    """
    case = load(name)
    head = of_case(case)
    features = [feature.requires_grad_() for feature in case.levels("feat")]
    class_logits, box_logits = head(features)
    for index, (scores, scale) in enumerate(zip(head.joint_scores(class_logits, box_logits), head.scales, strict=True)):
        case.compare(f"cls_score.{index}", scores)
        case.compare(f"bbox_pred.{index}", scale(box_logits[index]))
    losses = head.loss_by_feat(class_logits, box_logits, truths(case), case.meta["img_metas"])
    assert list(losses) == ["loss_cls", "loss_bbox", "loss_dfl"]
    empty = name == "head_all_empty"  # the authors' box losses are 0/0 there
    for key, value in losses.items():
        if empty and key != "loss_cls":
            assert value.item() == 0.0
        else:
            assert value.item() == pytest.approx(float(case.array(key).sum()), rel=1e-5, abs=1e-7)
    sum(losses.values()).backward()
    prefix = "clsonly_" if empty else ""
    for index, feature in enumerate(features):
        key = f"{prefix}grad_feat.{index}"
        case.compare(key, feature.grad, extra=1e-3 * float(abs(case.array(key)).max()))
    checked = 0
    for key, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        if f"{prefix}grad.{key}" in case:
            largest = float(abs(case.array(f"{prefix}grad.{key}")).max())
            case.compare(f"{prefix}grad.{key}", parameter.grad, extra=1e-3 * largest)
            checked += 1
        elif f"grad_proj.{key}" in case:  # of the large tensors the authors' case has projections
            flat = parameter.grad.flatten().double().numpy()
            rows = np.random.RandomState(case.meta["seed"] + 77).standard_normal((4, flat.size))
            largest = float(abs(case.array(f"grad_proj.{key}")).max())
            case.compare(f"grad_proj.{key}", torch.from_numpy(rows @ flat), extra=1e-3 * largest)
            checked += 1
    assert checked == len(list(head.parameters()))


@pytest.mark.parametrize("variant", ["nms", "nms_rescale", "pre"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_golden_detections(name, variant):
    case = load(name)
    head = of_case(case)
    outputs = head(case.levels("feat"))
    cfg = ConfigDict({**head.test_cfg, **({"nms_pre": case.meta["nms_pre_variant"]} if variant == "pre" else {})})
    found = head.predict_by_feat(
        *outputs, batch_img_metas=case.meta["img_metas"], cfg=cfg, rescale=variant == "nms_rescale"
    )
    for image, detections in enumerate(found):
        golden_labels, key = case[f"det_{variant}.labels.{image}"], f"det_{variant}.bboxes.{image}"
        real = golden_labels < case.meta["num_classes"]
        expected = case[key][real]
        assert torch.equal(detections.labels, golden_labels[real])
        tolerance = case.tolerance(key)["atol"] if len(expected) else 0.0
        torch.testing.assert_close(detections.bboxes, expected[:, :4], rtol=0, atol=tolerance)
        torch.testing.assert_close(detections.scores, expected[:, 4], rtol=0, atol=2e-6)


def test_the_authors_background_channel_is_dropped_when_a_file_is_loaded(tmp_path):
    case = load("head_r7_k2_nomean")
    head, legacy = of_case(case, legacy=False), of_case(case)
    assert head.gfl_cls.out_channels == 3 and legacy.gfl_cls.out_channels == 4
    features = case.levels("feat")
    with torch.no_grad():
        for ours, theirs in zip(
            head.joint_scores(*head(features)), legacy.joint_scores(*legacy(features)), strict=True
        ):
            torch.testing.assert_close(ours, theirs[:, :3])
    # As part of a detector too, with its prefix, and then only where the shape says so.
    model = build("GFLV2")
    state = model.state_dict()
    wider = {
        **state,
        "bbox_head.gfl_cls.weight": torch.cat([state["bbox_head.gfl_cls.weight"], torch.ones(1, 32, 3, 3)]),
    }
    wider["bbox_head.gfl_cls.bias"] = torch.cat([state["bbox_head.gfl_cls.bias"], torch.ones(1)])
    # In mmcv's layout, by mmengine, which is what ``load_from`` and ``init_detector`` call. It only logs what does not
    # fit.
    torch.save({"meta": {}, "state_dict": wider, "optimizer": {}}, tmp_path / "official.pth")
    loaded = build("GFLV2", weights=1)
    assert not torch.equal(loaded.bbox_head.gfl_cls.weight, model.bbox_head.gfl_cls.weight)
    load_checkpoint(loaded, str(tmp_path / "official.pth"), map_location="cpu")
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key
    with pytest.raises(RuntimeError, match="size mismatch for bbox_head.gfl_cls.bias"):
        model.load_state_dict({**state, "bbox_head.gfl_cls.bias": torch.zeros(CLASSES + 2)})


def test_an_official_configuration():
    head = head_of()
    assert isinstance(head, MODELS.get("GFLV2Head")) and head.gfl_cls.out_channels == 80
    shapes = {key: list(value.shape) for key, value in head.state_dict().items()}
    official = golden("structure_r50").meta["state_dict"]
    official = {key.removeprefix("bbox_head."): official[key]["shape"] for key in official if "bbox_head." in key}
    assert official["gfl_cls.bias"] == [81]
    assert shapes == {**official, "gfl_cls.weight": [80, 256, 3, 3], "gfl_cls.bias": [80]}
    head.init_weights()
    assert torch.allclose(head.gfl_cls.bias, torch.tensor(-4.59511985))
    assert 0.005 < head.reg_conf[0].weight.std() < 0.02 and not head.reg_conf[0].bias.any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss_cls": {"type": "FocalLoss"}}, "loss_cls: expected a QualityFocalLoss, .*got 'FocalLoss'"),
        ({"loss_bbox": {"type": "CIoULoss"}}, "loss_bbox: expected a GIoULoss, .*got 'CIoULoss'"),
        ({"loss_bbox": {"type": "GIoULoss", "eps": 1e-7}}, "loss_bbox.eps: expected 1e-06, got 1e-07"),
        ({"loss_dfl": {"type": "DistributionFocalLoss", "reduction": "sum"}}, "loss_dfl.reduction: expected 'mean'"),
        (
            {"anchor_generator": {**GENERATOR, "ratios": [2.0]}},
            "anchor_generator: expected .* one square anchor a cell",
        ),
        ({"train_cfg": {**TRAIN, "allowed_border": 0}}, "train_cfg.allowed_border: expected -1, got 0"),
        ({"train_cfg": {**TRAIN, "pos_weight": 2.0}}, "train_cfg.pos_weight: expected -1, got 2.0"),
        (
            {"train_cfg": {"assigner": {"type": "ATSSAssigner", "topk": 9, "alpha": 0.8}}},
            "train_cfg.assigner: expected",
        ),
        ({"reg_topk": 18}, "reg_topk: expected 1 to 17"),
    ],
)
def test_settings_that_it_does_not_take(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        head_of(in_channels=32, feat_channels=32, **change)


def test_mmdets_weight_floor():
    """With quality 1 and a floor of 1 the head is mmdet's GFLHead, loss by loss and gradient by gradient."""
    gfl = build("GFL")
    model = build("GFLV2", weight_floor=1.0)
    model.load_state_dict(gfl.state_dict(), strict=False)
    predictor = model.bbox_head.reg_conf
    for layer in (predictor[0], predictor[2]):
        layer.weight.data.zero_()
    predictor[2].bias.data.fill_(40.0)
    (found, gradients), (expected, theirs) = step(model), step(gfl)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=1e-7)
    for name, value in theirs.items():
        error, size = (gradients[name] - value).abs().max(), value.abs().max()
        assert error <= 5e-5 * size + 1e-9, f"{name}: off by {error:.3g} of {size:.3g}"


def test_other_nms_and_small_boxes():
    model = build("GFLV2")
    ordinary = detect(model)
    assert all(len(image) > 5 for image in ordinary)
    # mmdet's own code, which takes every kind of NMS: here the same one, said with a key more.
    general = detect(model, nms={"type": "nms", "iou_threshold": 0.6, "class_agnostic": False})
    for ours, theirs in zip(ordinary, general, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes)
    agnostic = detect(model, nms={"type": "nms", "iou_threshold": 0.6, "class_agnostic": True})
    assert sum(map(len, agnostic)) < sum(map(len, ordinary))
    least = 40.0
    for image in detect(model, min_bbox_size=least):
        assert ((image.bboxes[:, 2:] - image.bboxes[:, :2]) > least).all()
    assert [len(image) for image in detect(model, max_per_img=3)] == [3, 3]


def test_without_boxes_every_parameter_has_a_finite_gradient():
    losses, gradients = step(build("GFLV2"), boxes=(0, 0))
    assert losses["loss_bbox"] == losses["loss_dfl"] == 0
    assert all(value is not None and torch.isfinite(value).all() for value in gradients.values())


class Pictures(torch.utils.data.Dataset):
    """The two images, as mmdet's pipelines give them."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        images, samples = batch()
        return {"inputs": images[index], "data_samples": samples[index]}


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_few_iterations_with_the_runner(accelerated, tmp_path):
    """mmengine's loop: data preprocessor, optimiser, hooks; the loss of the same batch falls."""
    if accelerated:
        accelerate()
    model = build("GFLV2")
    before = sum(step(model)[0].values())
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader={
            "dataset": Pictures(),
            "batch_size": 2,
            "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": pseudo_collate,
        },
        train_cfg={"by_epoch": False, "max_iters": 6},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.005, "momentum": 0.9}},
        default_hooks={"logger": None, "checkpoint": None},
        log_level="ERROR",
    )
    runner.train()
    assert runner.iter == 6
    assert sum(step(model)[0].values()) < 0.9 * before


def test_a_training_step_in_half_precision():
    """bfloat16 logits of an autocast network: near the float32 losses, and every parameter learns."""
    model = build("GFLV2")
    exact, _ = step(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(*batch())
    for name, value in exact.items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], value, rtol=0.05, atol=0.01)
    optimiser = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    optimiser.update_params(sum(losses.values()))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_head_registers_under_both_names():
    assert MODELS.get("GFocalHead") is MODELS.get("GFLV2Head") is GFLV2Head
    assert HEADS["GFLV2"]["type"] == "GFLV2Head"
