"""The head's options: shapes, gradients, meaning; batches without boxes; errors."""

from __future__ import annotations

import math

import pytest
import torch

from gflv2.models.atss_head import ATSSHead
from gflv2.models.gfl_head import GFLHead
from gflv2.ops import dgqp, dgqp_statistics
from tests.models.fill import without_gradient

SMALL = {"feat_channels": 16, "stacked_convs": 2, "gn_groups": 4, "strides": (8, 16, 32), "reg_channels": 8}
SHAPES = [(12, 16), (6, 8), (3, 4)]
POINTS = sum(h * w for h, w in SHAPES)
OPTIONS = [
    {},
    {"reg_topk": 1, "add_mean": False},
    {"reg_topk": 17},
    {"add_variance": True},
    {"add_topk": False},
    {"add_topk": False, "add_mean": False, "add_variance": True, "reg_topk": 6},
    {"reg_max": 7, "reg_topk": 3},
    {"quality": "cls"},
    {"quality": "reg"},
    {"quality": "both"},
    {"quality": None},
    {"composition": "composed"},
    {"composition": "composed", "add_topk": False, "add_variance": True},
    {"legacy_background": True},
    {"depthwise": True},
    {"stacked_convs": 0},
    {"beta": 1.0, "weight_floor": 1.0},
]


def features(batch=2, channels=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, h, w, generator=generator) for h, w in SHAPES]


def boxes():
    return [torch.tensor([[10.0, 12, 70, 60], [40, 20, 120, 90]]), torch.tensor([[5.0, 5, 30, 40]])]


LABELS = [torch.tensor([0, 2]), torch.tensor([1])]
EMPTY = [torch.zeros(0, 4), torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)] * 2


def head_of(kind=GFLHead, seed=0, **options):
    torch.manual_seed(seed)
    settings = {**SMALL, **options}
    if kind is ATSSHead:
        settings.pop("reg_channels")
    head = kind(3, 16, **settings)
    # Beyond the tiny initial weights, where every score is nearly constant.
    for parameter in head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
    return head


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("truth", [(boxes(), LABELS), EMPTY], ids=["boxes", "no boxes"])
def test_every_option_trains_and_detects(options, truth):
    head = head_of(**options)
    output = head(features())
    channels = 3 + options.get("legacy_background", False)
    bins = options.get("reg_max", 16) + 1
    for (h, w), c, z in zip(SHAPES, output.class_logits, output.box_logits, strict=True):
        assert c.shape == (2, channels, h, w) and z.shape == (2, 4 * bins, h, w)
    losses = head.loss(output, *truth, padded_sizes=[(96, 128), (90, 100)])
    assert set(losses) == {"loss_qfl", "loss_giou", "loss_dfl"}
    assert all(value.dim() == 0 and torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert not without_gradient(head)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    empty = len(truth[0][0]) == 0
    assert (losses["loss_giou"].item() == 0 and losses["loss_dfl"].item() == 0) == empty
    trained = head.gfl_cls.weight.grad.abs().sum().item()
    assert trained > 0

    with torch.no_grad():
        found = head.detect(output, [(96, 128), (90, 100)], score_thr=0.01, return_distributions=True)
    for image, (height, width) in zip(found, [(96, 128), (90, 100)], strict=True):
        assert len(image.boxes) > 0
        assert (image.boxes >= 0).all() and (image.boxes <= torch.tensor([width, height, width, height])).all()
        assert (image.scores.diff() <= 0).all() and (image.scores > 0.01).all()
        assert image.labels.max() < 3
        assert image.distributions.shape == (len(image.boxes), 4, bins)
        torch.testing.assert_close(image.distributions.sum(-1), torch.ones(len(image.boxes), 4))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_detections_have_the_joint_score_of_their_point(options):
    head = head_of(**options).eval()
    with torch.no_grad():
        output = head(features())
        joint = torch.cat([level.flatten(2) for level in head.joint_scores(output)], dim=2)
        for image, found in enumerate(head.detect(output, score_thr=0.0, max_detections=50)):
            torch.testing.assert_close(found.scores, joint[image, found.labels, found.points], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("truth", [(boxes(), LABELS), EMPTY], ids=["boxes", "no boxes"])
def test_atss_trains_and_detects(truth):
    head = head_of(ATSSHead)
    output = head(features())
    losses = head.loss(output, *truth, padded_sizes=[(96, 128), (90, 100)])
    assert set(losses) == {"loss_focal", "loss_giou", "loss_centerness"}
    assert all(value.dim() == 0 and torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert not without_gradient(head)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    empty = len(truth[0][0]) == 0
    assert (losses["loss_giou"].item() == 0) == empty and (losses["loss_centerness"].item() == 0) == empty
    with torch.no_grad():
        joint = torch.cat([level.flatten(2) for level in head.joint_scores(output)], dim=2)
        found = head.detect(output, [(96, 128), (90, 100)], torch.full((2, 2), 2.0), score_thr=0.01, pre_topk=30)
    for image, detections in enumerate(found):
        assert 0 < len(detections.boxes) <= 100 and detections.distributions is None
        assert (detections.boxes >= 0).all() and (detections.boxes <= 64).all()
        torch.testing.assert_close(detections.scores, joint[image, detections.labels, detections.points])


def test_quality_statistics_without_topk_are_a_subset():
    head = head_of(add_topk=False, add_variance=True, reg_topk=3)
    output = head(features())
    full = dgqp_statistics(output.box_logits, scales=output.scales, topk=3, mean=True, variance=True)
    chosen = full.unflatten(2, (4, 5))[..., 3:].flatten(2)
    expected = head.reg_conf(chosen.transpose(1, 2)[..., None]).flatten(1)
    found = dgqp(output.box_logits, *output.predictor[:4], scales=output.scales, topk=3, mean=True, variance=True)
    torch.testing.assert_close(found, expected)
    assert head.reg_conf[0].weight.shape == (8, 8, 1, 1)


def test_composed_form_reads_the_statistics_of_the_same_point():
    head = head_of(composition="composed")
    assert head.gfl_cls.weight.shape == (3, 16 + 20, 3, 3)
    assert not hasattr(head, "reg_conf")
    # A kernel that passes one statistic of the centre cell through: the class logit must be that statistic.
    with torch.no_grad():
        head.gfl_cls.weight.zero_()
        head.gfl_cls.bias.zero_()
        head.gfl_cls.weight[0, 16 + 7, 1, 1] = 1.0
        output = head(features())
        statistics = dgqp_statistics(output.box_logits, scales=output.scales)
    found = torch.cat([level[:, 0].flatten(1) for level in output.class_logits], dim=1)
    torch.testing.assert_close(found, statistics[..., 7])


def test_quality_from_features_is_no_function_of_the_boxes():
    head = head_of(quality="cls")
    output = head(features())
    assert output.predictor is None and output.quality_logits.shape == (2, POINTS)
    grads = torch.autograd.grad(output.quality_logits.sum(), list(head.reg_convs.parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)


def test_initialisation():
    torch.manual_seed(0)
    head = GFLHead(80)
    prior = torch.full((80,), 0.01)
    torch.testing.assert_close(head.gfl_cls.bias.sigmoid(), prior)
    for name, parameter in head.named_parameters():
        if name.endswith("scale") or name.endswith("gn.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias") and name != "gfl_cls.bias":
            assert (parameter == 0).all(), name
        elif parameter.dim() == 4 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name
    assert torch.equal(head.integral.project, torch.arange(17.0))


def test_ignore_boxes_take_their_points_out_of_the_loss():
    head = head_of(ignore_iof_thr=0.5)
    output = head(features())
    ignore = [torch.tensor([[0.0, 0, 128, 96]]), torch.zeros(0, 4)]
    plain = head.targets(output, head.assign(output, boxes(), LABELS), boxes())
    masked = head.targets(output, head.assign(output, boxes(), LABELS, ignore_boxes=ignore), boxes())
    assert plain.label_weights.min() == 1
    assert (masked.label_weights[0] == 0).any() and masked.label_weights[1].min() == 1


def test_padding_does_not_count():
    head = head_of()
    output = head(features())
    sizes = [(96, 128), (64, 64)]
    targets = head.targets(output, head.assign(output, *EMPTY, sizes), EMPTY[0], sizes)
    counted = targets.label_weights.sum(1)
    assert counted.tolist() == [POINTS, 8 * 8 + 4 * 4 + 2 * 2]


def test_half_precision_forward_and_loss():
    head = head_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(features())
        assert output.box_logits[0].dtype == torch.bfloat16
        losses = head.loss(output, boxes(), LABELS)
    exact = head.loss(head(features()), boxes(), LABELS)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05), name
    sum(losses.values()).backward()
    assert not without_gradient(head)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "guess"}, "head.quality"),
        ({"composition": "sum"}, "head.composition"),
        ({"composition": "composed", "quality": "cls"}, "head.quality"),
        ({"reg_topk": 18}, "reg_topk: expected 1 to 17"),
        ({"reg_topk": 0}, "reg_topk"),
        ({"add_topk": False, "add_mean": False}, "add_topk"),
        ({"gn_groups": 5}, "head.gn_groups"),
        ({"loss_weights": (1.0, 2.0)}, "head.loss_weights"),
    ],
    ids=str,
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        GFLHead(3, 16, **{**SMALL, **options})


def test_wrong_calls():
    head = head_of()
    with pytest.raises(ValueError, match="features: expected 3 levels"):
        head(features()[:2])
    with pytest.raises(ValueError, match="num_classes"):
        GFLHead(0)
    atss = head_of(ATSSHead)
    with pytest.raises(ValueError, match="return_distributions"):
        atss.detect(atss(features()), return_distributions=True)


def test_clamped_sides_are_counted_point_by_point():
    """Against the distances of each positive point, one by one; and none where no box is."""
    for reg_max in (2, 4, 8):
        head = head_of(reg_max=reg_max, reg_topk=2)
        output = head(features())
        assignment = head.assign(output, boxes(), LABELS)
        beyond = total = 0
        for image, rows in enumerate(boxes()):
            start = 0
            for (h, w), stride in zip(SHAPES, SMALL["strides"], strict=True):
                for cell in range(h * w):
                    number = int(assignment.index[image, start + cell])
                    if number > 0:
                        x, y = cell % w * stride, cell // w * stride
                        x1, y1, x2, y2 = rows[number - 1].tolist()
                        sides = [(d / stride) for d in (x - x1, y - y1, x2 - x, y2 - y)]
                        beyond += sum(side > reg_max - 0.1 for side in sides)
                        total += 4
                start += h * w
        assert head.clamped_sides(output, assignment, boxes()).tolist() == [beyond, total] and 0 < total
        assert (reg_max > 4) or beyond > 0
    empty = head.assign(output, *EMPTY)
    assert head.clamped_sides(output, empty, EMPTY[0]).tolist() == [0, 0]
    atss = head_of(ATSSHead, loss_weights=(1.0, 2.0, 1.0))
    assert atss.clamped_sides(atss(features()), assignment, boxes()) is None
