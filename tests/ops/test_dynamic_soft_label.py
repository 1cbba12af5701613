"""``dynamic_soft_label`` on every backend: what the definition gives, and what four packages gave."""

from __future__ import annotations

import importlib

import pytest
import torch

from gflv2.ops import DynamicAssignment, dynamic_soft_label
from gflv2.ops.backends import BackendError
from gflv2.ops.reference import dynamic_soft_label as reference
from gflv2.ops.reference.dynamic_soft_label import COSTS
from tests.ops.dynamic_soft_label_cases import Case, plain
from tests.ops.golden_dynamic_soft_label import CASES, golden_inputs, golden_results
from tests.ops.memory import assert_written, guarded
from tests.ops.under_test import INTERPRETED, backends_of, few, running, skip_unless_host
from tests.process import growth_kib

module = importlib.import_module("gflv2.ops.dynamic_soft_label")
ALL = backends_of("dynamic_soft_label", every_set=True)
KERNELS = backends_of("dynamic_soft_label", kernels_only=True, every_set=True)
FEW = (3, 0, 6)  # boxes: the thread sanitizer takes about 0.2 s for each
FORMS = ("ragged", "padded", "padded without counts")


def run(case: Case, backend: str) -> DynamicAssignment:
    with running(backend) as device:
        arguments, more = case.inputs(device)
        return DynamicAssignment(*(tensor.cpu() for tensor in dynamic_soft_label(*arguments, **more)))


def assert_same(found: DynamicAssignment, want: DynamicAssignment, context: object = "") -> None:
    for name, a, b in zip(DynamicAssignment._fields, found, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{context}: {name}: {a.dtype} {a.shape}"
        assert torch.equal(a, b), f"{context}: {name} differs at {(a != b).nonzero().tolist()[:8]}"


def check(case: Case, backend: str) -> DynamicAssignment:
    found = run(case, backend)
    arguments, more = case.inputs()
    assert_same(found, reference.dynamic_soft_label(*arguments, **more), case)
    return found


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("kind", ["trained", "random"])
def test_the_definition_against_every_pair_and_class(kind: str, cost: str) -> None:
    """In float64, where no two costs that count lie within the band."""
    for seed in range(3):
        case = Case(cost=cost, kind=kind, seed=seed)
        want, unsure = plain(case)
        arguments, more = case.inputs()
        found = reference.dynamic_soft_label(*arguments, **more)
        sure = ~unsure
        assert (want.index[sure] > 0).sum() > 10
        for name, a, b in zip(DynamicAssignment._fields, found, want, strict=True):
            assert torch.equal(a[sure], b[sure]), f"{case}: {name}"


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, backend: str) -> None:
    """What mmdet, NanoDet-Plus and DAMO-YOLO assigned."""
    with running(backend) as device:
        arguments, more = golden_inputs(case, device)
        found = dynamic_soft_label(*arguments, **more)
    index, iou, labels = golden_results(case)
    assert (index > 0).sum() > 20
    assert torch.equal(found.index.cpu(), index)
    assert torch.equal(found.labels.cpu(), labels)
    assert torch.equal(found.iou.cpu()[index > 0], iou[index > 0])


@pytest.mark.parametrize("backend", KERNELS)
class TestParity:
    @pytest.mark.parametrize("form", few(FORMS, 1))
    @pytest.mark.parametrize("cost", COSTS)
    def test_forms_and_costs(self, cost: str, form: str, backend: str) -> None:
        found = check(Case(cost=cost, form=form), backend)
        assert (found.index > 0).any()
        check(Case(cost=cost, form=form, kind="random", seed=1), backend)

    @pytest.mark.parametrize("layout", few(["dense", "maps", "part"]))
    @pytest.mark.parametrize("dtype", few([torch.float32, torch.float16, torch.bfloat16, torch.float64]), ids=str)
    def test_dtypes_and_layouts(self, dtype: torch.dtype, layout: str, backend: str) -> None:
        if dtype == torch.float64 and backend != "cpu":
            with pytest.raises(BackendError, match="float64 runs on cpu and reference only"):
                run(Case(dtype=dtype), backend)
            return
        for cost in few(["rtmdet", "align_ota"], 1):
            check(Case(cost=cost, dtype=dtype, layout=layout, seed=2), backend)

    @pytest.mark.parametrize("topk", few([32, 1, 2, 16]))
    def test_topk_and_weights(self, topk: int, backend: str) -> None:
        more = (("iou_weight", 0.0), ("class_weight", 2.0))
        check(Case(topk=topk), backend)
        check(Case(topk=topk, cost="simota", options=(*more, ("center_radius", 1.0))), backend)

    def test_ties(self, backend: str) -> None:
        """Every box and every point twice: the lower point and the lower box."""
        for cost in few(list(COSTS), 2):
            found = check(Case(cost=cost, kind="twins", counts=(5, 0)), backend)
            assert (found.index > 0).any() and (found.index[found.index > 0] % 2 == 1).any()

    @pytest.mark.parametrize("classes", few([1, 80, 17]))
    def test_classes(self, classes: int, backend: str) -> None:
        check(Case(classes=classes), backend)

    def test_far_boxes_still_take_a_point(self, backend: str) -> None:
        """A box without a point, or without any overlap, takes the candidate of lowest cost."""
        # A draw whose far boxes are not outbid for that point, with the few points of the interpreter as well.
        arguments, more = Case(counts=(3,), seed=2).inputs()
        values, boxes, points, strides, (truth,), (label,) = arguments
        truth = torch.cat([truth, truth.new_tensor([[900.0, 900.0, 910.0, 905.0], [3.0, 3.0, 4.0, 4.0]])])
        label = torch.cat([label, label.new_tensor([1, 0])])
        want = reference.dynamic_soft_label(values, boxes, points, strides, [truth], [label], **more)
        assert {4, 5} <= set(want.index.unique().tolist())
        with running(backend) as device:
            given = [tensor.to(device) for tensor in (values, boxes, points, strides)]
            found = dynamic_soft_label(*given, [truth.to(device)], [label.to(device)], **more)
        assert_same(DynamicAssignment(*(tensor.cpu() for tensor in found)), want)

    def test_what_is_not_finite_or_no_class_takes_no_part(self, backend: str) -> None:
        for cost in few(list(COSTS), 2):
            arguments, more = Case(cost=cost, counts=(24,)).inputs()
            values, boxes, points, strides, (truth,), (label,) = arguments
            values, boxes, truth, label = values.clone(), boxes.clone(), truth.clone(), label.clone()
            values[0, 0::7, 3], values[0, 1::7, 4] = torch.nan, torch.inf
            boxes[0, 2::7, 1], boxes[0, 3::7, 2] = torch.nan, torch.inf
            truth[0, 0], truth[1, 3], label[2], label[3], label[4] = torch.nan, torch.inf, -1, 20, 2**40
            want = reference.dynamic_soft_label(values, boxes, points, strides, [truth], [label], **more)
            with running(backend) as device:
                given = [tensor.to(device) for tensor in (values, boxes, points, strides)]
                found = dynamic_soft_label(*given, [truth.to(device)], [label.to(device)], **more)
            found = DynamicAssignment(*(tensor.cpu() for tensor in found))
            assert_same(found, want, cost)
            positive = (found.index[0] > 0).nonzero().flatten()
            assert len(positive) > 5
            assert not torch.isin(positive % 7, torch.tensor([0, 1, 2, 3])).any()
            assert not torch.isin(found.index[0], torch.arange(1, 6)).any()

    @pytest.mark.slow
    def test_five_thousand_boxes(self, backend: str) -> None:
        if backend in ("simt", "triton") and not torch.cuda.is_available():
            pytest.skip("emulated it takes minutes")
        found = check(Case(counts=(5000,), form="padded"), backend)
        assert found.index.max() > 4000

    @pytest.mark.slow
    def test_five_thousand_boxes_take_little_memory(self, backend: str) -> None:
        skip_unless_host(backend)
        prepare = """
from gflv2.ops import dynamic_soft_label
from gflv2.ops.reference.dynamic_soft_label import COSTS
from tests.ops.dynamic_soft_label_cases import Case
def case(cost, count):
    return Case(cost=cost, counts=(count, count), form="padded").inputs()
for cost in COSTS:
    few, options = case(cost, 10)
    dynamic_soft_label(*few, **options)
cases = [case(cost, 5000) for cost in COSTS]
"""
        call = "for many, options in cases: assert dynamic_soft_label(*many, **options).index.max() > 2000"
        grown = growth_kib(prepare, call)
        dense = 5000 * 420 * 4 // 1024  # KiB: one number for every box and point of an image
        assert grown < dense // 2, f"{grown} KiB"


@pytest.mark.parametrize("backend", KERNELS)
class TestMemory:
    @pytest.mark.parametrize("cost", few(list(COSTS)))
    def test_all_of_the_outputs_and_no_byte_beside_them(self, cost: str, backend: str) -> None:
        with running(backend) as device:
            arguments, more = Case(cost=cost, counts=FEW).inputs(device)
            want = dynamic_soft_label(*arguments, **more)
            written = [guarded(tensor) for tensor in want]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    module._dynamic_soft_label, "new_results", lambda *_: tuple(tensor for tensor, _ in written)
                )
                dynamic_soft_label(*arguments, **more)
        assert_written(written, want)

    @pytest.mark.parametrize("layout", few(["dense", "maps", "part"]))
    @pytest.mark.parametrize("dtype", few([torch.float32, torch.float16, torch.bfloat16]), ids=str)
    def test_allocations_are_filled(self, dtype: torch.dtype, layout: str, backend: str) -> None:
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN, and the largest integer
        try:
            for cost, form in zip(few(["rtmdet", "nanodet", "simota"], 1), FORMS, strict=False):
                check(Case(cost=cost, counts=FEW, form=form, dtype=dtype, layout=layout, seed=2), backend)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_counts_that_are_wrong_on_the_device(self, backend: str) -> None:
        """Fewer than none are none, more than all are all: what lies behind the tensor is not read."""
        with running(backend) as device:
            (*given, gt_boxes, gt_labels), more = Case(form="padded without counts", counts=(4, 4)).inputs(device)
            # The last image has boxes behind it.
            truths = [torch.cat([tensor] * 3)[:2] for tensor in (gt_boxes, gt_labels)]
            everything = dynamic_soft_label(*given, *truths, **more)
            for wrong in (7, 10**9, 2**40):
                counts = torch.tensor([6, wrong], device=device)
                assert_same(dynamic_soft_label(*given, *truths, counts=counts, **more), everything)
            counts = torch.tensor([-3, -(2**40)], device=device)
            none = dynamic_soft_label(*given, *truths, counts=counts, **more)
        assert everything.index.any() and not none.index.any() and not none.iou.any()

    def test_labels_that_are_no_class(self, backend: str) -> None:
        """No class value outside the tensor is read for them."""
        with running(backend) as device:
            (*given, gt_boxes, gt_labels), more = Case(layout="maps", counts=FEW).inputs(device)
            for wrong in (-1, 20, 2**40, -(2**40)):
                labels = [torch.full_like(image, wrong) for image in gt_labels]
                found = dynamic_soft_label(*given, gt_boxes, labels, **more)
                assert not found.index.any() and (found.labels == -1).all()

    def test_inputs_are_left_alone(self, backend: str) -> None:
        with running(backend) as device:
            arguments, more = Case(counts=FEW).inputs(device)
            tensors = [*arguments[:4], *arguments[4], *arguments[5]]
            before = [tensor.clone() for tensor in tensors]
            dynamic_soft_label(*arguments, **more)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("backend", ALL)
class TestProperties:
    def test_twice_the_same(self, backend: str) -> None:
        assert_same(run(Case(seed=5), backend), run(Case(seed=5), backend))

    def test_padded_is_ragged(self, backend: str) -> None:
        for cost in few(list(COSTS), 1):
            case = Case(cost=cost, seed=6)
            assert_same(run(case.but(form="padded"), backend), run(case, backend))

    def test_permuting_boxes_and_images_permutes_the_answer(self, backend: str) -> None:
        (values, boxes, points, strides, truths, labels), more = Case(seed=7).inputs()
        orders = [torch.randperm(len(image), generator=torch.Generator().manual_seed(1)) for image in truths]
        images = list(reversed(range(len(truths))))
        with running(backend) as device:
            given = [tensor.to(device) for tensor in (values, boxes, points, strides)]
            truths, labels = ([image.to(device) for image in part] for part in (truths, labels))
            first = dynamic_soft_label(*given, truths, labels, **more)
            given[:2] = [tensor[images] for tensor in given[:2]]
            second = dynamic_soft_label(
                *given, [truths[i][orders[i]] for i in images], [labels[i][orders[i]] for i in images], **more
            )
        for place, image in enumerate(images):
            own = second.index[place].cpu()
            named = torch.cat([torch.zeros(1, dtype=torch.int64), orders[image] + 1])[own]
            assert torch.equal(named, first.index[image].cpu())
            assert torch.equal(second.iou[place], first.iou[image])
            assert torch.equal(second.labels[place], first.labels[image])

    def test_no_boxes_and_no_points(self, backend: str) -> None:
        for form in few(["ragged", "padded"], 1):
            found = run(Case(counts=(0, 0), form=form), backend)
            assert (found.index == 0).all() and (found.iou == 0).all() and (found.labels == -1).all()
        with running(backend) as device:
            nothing = [torch.zeros(size, device=device) for size in ((2, 0, 3), (2, 0, 4), (0, 2), (0,))]
            truth = torch.tensor([[0.0, 0.0, 9.0, 9.0]], device=device)
            found = dynamic_soft_label(*nothing, [truth] * 2, [torch.zeros(1, dtype=torch.int64, device=device)] * 2)
        assert all(tensor.shape == (2, 0) for tensor in found)


@pytest.mark.skipif(INTERPRETED, reason="the same in every process")
class TestErrors:
    @pytest.mark.parametrize(
        "place, change, message",
        [
            (0, lambda x: x[..., 0], r"logits: expected a tensor of shape \(\*, \*, \*\)"),
            (0, lambda x: x[..., :0], "logits: expected at least one class"),
            (1, lambda x: x[:, 1:], "boxes: expected a tensor of shape"),
            (2, lambda x: x[1:], "points: expected a tensor of shape"),
            (3, lambda x: x[:, None], "strides: expected a tensor of shape"),
            (4, lambda x: x[:1], "gt_boxes: expected boxes of 3 images"),
            (5, lambda x: x[:1], "gt_labels: expected a list of 3 tensors"),
            (5, lambda x: [image[:-1] if len(image) else image for image in x], r"gt_labels\[0\]"),
        ],
    )
    def test_arguments(self, place: int, change, message: str) -> None:
        arguments, more = Case().inputs()
        changed = [*arguments[:place], change(arguments[place]), *arguments[place + 1 :]]
        with pytest.raises(ValueError, match=message):
            dynamic_soft_label(*changed, **more)

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"cost": "ota"}, "cost: expected one of 'rtmdet'"),
            ({"topk": 0}, "topk: expected at least 1"),
            ({"iou_weight": -1.0}, "iou_weight: expected a finite number ≥ 0"),
            ({"class_weight": float("nan")}, "class_weight"),
            ({"cost": "nanodet", "center_radius": 2.0}, "center_radius: expected None with cost='nanodet'"),
        ],
    )
    def test_options(self, options: dict, message: str) -> None:
        arguments, _ = Case().inputs()
        with pytest.raises(ValueError, match=message):
            dynamic_soft_label(*arguments, **options)

    def test_labels_are_checked_on_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments, more = Case().inputs()
        arguments[5][0][1] = 20
        dynamic_soft_label(*arguments, **more)
        monkeypatch.setenv("GFLV2_CHECK", "1")
        with pytest.raises(ValueError, match="gt_labels: expected numbers from 0 to 19"):
            dynamic_soft_label(*arguments, **more)
