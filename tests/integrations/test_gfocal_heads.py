"""NanoDet and DAMO-YOLO: ours in the place of modules with their documented interface."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gflv2.integrations import damoyolo, dynamic, gfocal, nanodet
from tests.integrations import stand_ins
from tests.integrations.stand_ins import DamoAssigner, DamoIntegral, NanoDetAssigner, NanoDetIntegral, ZeroHead


@pytest.fixture(autouse=True)
def as_before():
    torch.manual_seed(0)
    yield
    nanodet.restore()
    damoyolo.restore()


def values_and_gradients(call: Callable[[], Tensor | tuple[Tensor, ...]], *leaves: Tensor) -> tuple[Tensor, ...]:
    """The results, and the gradients of a sum that weighs each element differently."""
    found = call()
    found = found if isinstance(found, tuple) else (found,)
    total = sum((value * torch.linspace(1, 2, value.numel()).view(value.shape)).sum() for value in found)
    return *(value.detach() for value in found), *torch.autograd.grad(total, leaves)


def counting(calls: list[str], name: str, operation: Callable) -> Callable:
    """The operation, which notes that it was called."""
    return lambda *args, **kwargs: calls.append(name) or operation(*args, **kwargs)


REDUCTIONS = [
    {},
    {"avg_factor": 7.0},
    {"weight": True, "avg_factor": 7.0},
    {"weight": True, "reduction_override": "none"},
    {"weight": True, "reduction_override": "sum"},
]


@pytest.mark.parametrize("package", [nanodet, damoyolo])
@pytest.mark.parametrize("options", REDUCTIONS, ids=str)
def test_losses(package, options, monkeypatch):
    calls, rows = [], 12
    for name in ("qfl", "dfl", "giou"):
        monkeypatch.setattr(gfocal, name, counting(calls, name, getattr(gfocal, name)))
    weight = torch.rand(rows) if "weight" in options else None
    options = {**options, "weight": weight} if weight is not None else options
    labels = torch.tensor([0, 5, 3] * 4)  # of 5 classes: 5 is background
    target = labels, torch.rand(rows)
    scores = torch.randn(rows, 5, requires_grad=True)
    logits, distances = torch.randn(rows, 8, requires_grad=True), torch.rand(rows) * 6.9  # clamped to reg_max − 0.1
    boxes = (torch.rand(rows, 4) + torch.tensor([0.0, 0, 1, 1])).requires_grad_()
    others = torch.rand(rows, 4) + torch.tensor([0.0, 0, 1, 1])
    probable = scores.detach().sigmoid().requires_grad_()
    cases = [
        (stand_ins.QualityFocalLoss(loss_weight=0.5), scores, target),
        (stand_ins.QualityFocalLoss(use_sigmoid=False, beta=1.5), probable, target),
        (stand_ins.DistributionFocalLoss(loss_weight=0.25), logits, distances),
        (stand_ins.GIoULoss(loss_weight=2.0), boxes, others),
    ]
    wanted = [values_and_gradients(lambda c=c: c[0](c[1], c[2], **options), c[1]) for c in cases]
    package.accelerate(**stand_ins.LOSSES)
    for case, expected in zip(cases, wanted, strict=True):
        found = values_and_gradients(lambda case=case: case[0](case[1], case[2], **options), case[1])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert calls == ["qfl", "qfl", "dfl", "giou"]


def test_average_factors_and_weights_of_any_kind():
    """As the packages take them: a factor of one element, of any sign or 0, and weights that are masks or integers."""
    logits, boxes = torch.randn(4, 8), torch.rand(4, 4) + torch.tensor([0.0, 0, 1, 1])
    cases = [
        (stand_ins.QualityFocalLoss(), logits, (torch.tensor([0, 8, 3, 1]), torch.rand(4))),
        (stand_ins.DistributionFocalLoss(), logits, torch.rand(4) * 7),
        (stand_ins.GIoULoss(), boxes, torch.rand(4, 4) + torch.tensor([0.0, 0, 1, 1])),
    ]
    mask = torch.tensor([True, False, True, True])
    factors = (3.0, True, np.float32(3), torch.tensor([3.0]), torch.tensor([[3]]), -2.0, 0, torch.zeros(()))
    options = [{"avg_factor": factor} for factor in factors] + [{"weight": mask}, {"weight": 2 * mask.long()}]
    wanted = [[loss(*given, **chosen).reshape(()) for chosen in options] for loss, *given in cases]
    nanodet.accelerate(**stand_ins.LOSSES)
    for (loss, *given), values in zip(cases, wanted, strict=True):
        for chosen, value in zip(options, values, strict=True):
            torch.testing.assert_close(loss(*given, **chosen), value, rtol=1e-5, atol=1e-6)
        with pytest.raises(TypeError, match="avg_factor: expected a number"):
            loss(*given, avg_factor="3")


@pytest.mark.parametrize("package", [nanodet, damoyolo])
def test_weights_that_are_zero_or_of_the_sides(package):
    package.accelerate(**stand_ins.LOSSES)
    loss = stand_ins.GIoULoss()
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]], requires_grad=True)
    value = loss(boxes, boxes.detach() + 1, weight=torch.zeros(2), avg_factor=1.0)
    assert value == 0 and not torch.autograd.grad(value, boxes)[0].any()
    sides = torch.tensor([[0.0, 1, 2, 3], [1, 1, 1, 1]])
    value = loss(boxes, boxes.detach() + 1, weight=sides, reduction_override="sum")
    torch.testing.assert_close(value, loss(boxes, boxes.detach() + 1, weight=sides.mean(1), reduction_override="sum"))


def test_nanodet_integral():
    """R = reg_max + 1 bins; views into (B, A, C + 4·R), in whichever order a convolution left them."""
    module, classes, bins = NanoDetIntegral(7), 3, 8
    maps = torch.randn(2, classes + 4 * bins, 21)  # as the head's convolution leaves it
    channels_first = maps.permute(0, 2, 1)[..., classes:].requires_grad_()
    layouts = [channels_first, channels_first.detach().contiguous().requires_grad_()]
    layouts.append(layouts[1].detach()[0].requires_grad_())  # (A, 4·R), of the positive points
    for logits in layouts:
        wanted = values_and_gradients(lambda logits=logits: module(logits), logits)
        nanodet.accelerate(integral=NanoDetIntegral)
        found = values_and_gradients(lambda logits=logits: module(logits), logits)
        nanodet.restore()
        assert found[0].shape == (*logits.shape[:-1], 4)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    nanodet.accelerate(integral=NanoDetIntegral)
    peaks = torch.full((1, 4, bins), -1e4)
    peaks[0, torch.arange(4), torch.tensor([0, 2, 5, 7])] = 0
    torch.testing.assert_close(module(peaks.flatten(1)), torch.tensor([[0.0, 2, 5, 7]]))
    assert module(peaks.flatten(1).half()).dtype == torch.float16


def test_damoyolo_head():
    """In training the integral has logits instead of probabilities; in inference nothing is changed."""
    head, features = ZeroHead(), [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)]
    parameters = list(head.parameters())
    wanted = values_and_gradients(lambda: head.train()(features), *parameters)
    detections = head.eval()(features)
    damoyolo.accelerate(head=ZeroHead, integral=DamoIntegral)
    found = values_and_gradients(lambda: head.train()(features), *parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    layers = (head.cls_convs, head.reg_convs, head.gfl_cls, head.gfl_reg, head.scale)
    _, boxes, logits = head.forward_single(features[0], *layers)
    assert torch.equal(boxes, logits)
    assert all(torch.equal(*pair) for pair in zip(head.eval()(features), detections, strict=True))


ASSIGNERS = [
    (nanodet, NanoDetAssigner, {}),
    (nanodet, NanoDetAssigner, {"topk": 5, "iou_factor": 1.5}),
    (damoyolo, DamoAssigner, {}),
    (damoyolo, DamoAssigner, {"candidate_topk": 4, "center_radius": 4.0, "cls_weight": 0.5, "iou_weight": 2.0}),
]


def scene(boxes: int, *, probabilities: bool, seed: int = 0) -> tuple[Tensor, ...]:
    """Arguments of ``assign``: 84 points of three levels, boxes large enough for the points that they take."""
    draw = torch.Generator().manual_seed(seed)
    levels = []
    for stride in (8, 16, 32):
        y, x = torch.meshgrid(torch.arange(64 // stride), torch.arange(64 // stride), indexing="ij")
        levels.append(torch.stack([x * stride, y * stride, *[torch.full_like(x, stride)] * 2], -1).view(-1, 4).float())
    priors = torch.cat(levels)
    low = torch.rand(boxes, 2, generator=draw) * 24
    truth = torch.cat([low, low + 24 + torch.rand(boxes, 2, generator=draw) * 16], 1)
    predicted = torch.cat([priors[:, :2] - 14, priors[:, :2] + 14], 1)
    predicted = predicted + 4 * torch.randn(len(priors), 4, generator=draw)
    scores = torch.randn(len(priors), 5, generator=draw) - 1
    labels = torch.randint(0, 5, (boxes,), generator=draw)
    return scores.sigmoid() if probabilities else scores, priors, predicted, truth, labels


@pytest.mark.parametrize("boxes", [0, 1, 6])
@pytest.mark.parametrize("package, kind, settings", ASSIGNERS)
def test_assigners(package, kind, settings, boxes, monkeypatch):
    calls = []
    monkeypatch.setattr(dynamic, "dynamic_soft_label", counting(calls, "ours", dynamic.dynamic_soft_label))
    assigner = kind(**settings)
    cases = [scene(boxes, probabilities=package is damoyolo, seed=seed) for seed in range(4)]
    far = list(cases[0])
    far[3] = far[3] + 1000  # no point is a candidate
    cases.append(tuple(far))
    wanted = [assigner.assign(*case) for case in cases]
    package.accelerate(assigner=kind)
    assert not calls
    for case, theirs in zip(cases, wanted, strict=True):
        found = assigner.assign(*case)
        assert type(found) is stand_ins.AssignResult and found.num_gts == boxes
        assert torch.equal(found.gt_inds, theirs.gt_inds) and torch.equal(found.labels, theirs.labels)
        torch.testing.assert_close(found.max_overlaps, theirs.max_overlaps, rtol=1e-5, atol=1e-6)
    assert len(calls) == len(cases) and (not boxes or all((one.gt_inds > 0).any() for one in wanted[:-1]))


def test_settings_of_an_assigner_that_the_operation_lacks(monkeypatch):
    monkeypatch.setattr(dynamic, "dynamic_soft_label", lambda *_, **__: pytest.fail("not ours"))
    nanodet.accelerate(assigner=NanoDetAssigner)
    ignoring, case = NanoDetAssigner(ignore_iof_thr=0.5), scene(3, probabilities=False)
    assert (ignoring.assign(*case, torch.zeros(0, 4)).gt_inds > 0).any()
    damoyolo.accelerate(assigner=DamoAssigner)
    assert (DamoAssigner().assign(*scene(3, probabilities=True), eps=1e-6).gt_inds > 0).any()


class Lonely:
    """An assigner without an AssignResult beside it."""

    exec(
        "def assign(self, pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, gt_bboxes_ignore=None): pass",
        {"__name__": "lonely"},
        locals(),
    )


def test_an_assigner_of_another_version():
    with pytest.raises(RuntimeError, match="assign: expected an AssignResult beside it, found none"):
        nanodet.accelerate(assigner=Lonely)


@pytest.mark.parametrize("package", [nanodet, damoyolo])
def test_what_was_replaced(package):
    first = package.accelerate(giou_loss=stand_ins.GIoULoss)
    assert [one.by for one in first.replaced] == ["gflv2.integrations.gfocal._giou_loss"] and not first.before
    more = package.accelerate(**stand_ins.LOSSES)
    assert (len(more.replaced), more.before) == (2, first.replaced) and "\nreplaced before\n" in str(more)
    again = package.accelerate(giou_loss=stand_ins.GIoULoss)
    assert not again.replaced and again.before == (*first.replaced, *more.replaced)
    assert "nothing is left to replace" in str(again) and len(again.stayed) >= 2


@pytest.mark.parametrize("package", [nanodet, damoyolo])
def test_what_was_not_named_stays(package):
    assigner = NanoDetAssigner if package is nanodet else DamoAssigner
    named = {}
    for key, owner in (*stand_ins.LOSSES.items(), ("assigner", assigner)):
        named[key] = owner
        report = package.accelerate(**{key: owner})  # one by one: what an earlier call named does not stay
        left = {one.what.partition(" ")[0] for one in report.stayed if one.why == "not named in this call"}
        assert left == package.CLASSES.keys() - named.keys()
        ignoring = [one for one in report.stayed if "ignore_iof_thr" in one.what]
        assert len(ignoring) == (package is nanodet and key == "assigner")


def test_a_second_call_adds_to_the_first():
    owners = (*stand_ins.LOSSES.values(), NanoDetIntegral)
    before = {owner: owner.forward for owner in owners}
    nanodet.accelerate(giou_loss=stand_ins.GIoULoss)
    ours = stand_ins.GIoULoss.forward
    nanodet.accelerate(integral=NanoDetIntegral, giou_loss=stand_ins.GIoULoss)
    assert stand_ins.GIoULoss.forward is ours
    changed = {owner for owner, forward in before.items() if owner.forward is not forward}
    assert changed == {NanoDetIntegral, stand_ins.GIoULoss}
    nanodet.restore()
    assert all(owner.forward is forward for owner, forward in before.items())


def test_a_call_that_raises_changes_nothing():
    """Neither what is replaced already, nor what else it names."""
    nanodet.accelerate(integral=NanoDetIntegral)
    before = {owner: owner.forward for owner in (*stand_ins.LOSSES.values(), NanoDetIntegral)}
    for wrong in ({"assigner": Lonely}, {"assigner": Renamed}, {"assigner": 3}):
        with pytest.raises((RuntimeError, TypeError)):
            nanodet.accelerate(**stand_ins.LOSSES, **wrong)
        assert {owner: owner.forward for owner in before} == before
    assert len(nanodet.accelerate(integral=NanoDetIntegral).before) == 1


def test_what_somebody_else_replaced_since_is_said_anew():
    class Loss(stand_ins.GIoULoss):
        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            return None

    nanodet.accelerate(giou_loss=Loss)
    theirs = lambda self, pred, target, weight=None, avg_factor=None, reduction_override=None: None  # noqa: E731
    Loss.forward = theirs
    report = nanodet.accelerate(giou_loss=Loss)
    assert len(report.replaced) == 1 and not report.before and Loss.forward is not theirs
    nanodet.restore()
    assert Loss.forward is theirs


class Renamed(nn.Module):
    def forward(self, prediction, target):
        return prediction


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: nanodet.accelerate(giou_loss=Renamed), RuntimeError, r"expected a method .*Renamed.forward\(pred, "),
        (lambda: nanodet.accelerate(integral=object), RuntimeError, r"found none: gflv2 does not know this version"),
        (lambda: nanodet.accelerate(integral=NanoDetIntegral()), TypeError, "integral: expected a class"),
        (lambda: damoyolo.accelerate(head=ZeroHead), ValueError, "integral: expected the class that goes with"),
        (lambda: damoyolo.accelerate(integral=DamoIntegral), ValueError, "head: expected the class that goes with"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("package, name", [(nanodet, "nanodet"), (damoyolo, "damo")])
def test_a_missing_package(package, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ModuleNotFoundError, match=f"{name}.*git clone https://{package.REPOSITORY}.*name the classes"):
        package.accelerate()
