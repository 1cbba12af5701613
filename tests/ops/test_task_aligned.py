"""``task_aligned`` on every backend: the same bits as the definition."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gflv2.ops import TaskAlignment, task_aligned
from gflv2.ops.backends import BackendError
from gflv2.ops.reference import task_aligned as reference
from tests.ops import parity
from tests.ops.task_aligned_cases import KINDS, MMDET, SETTINGS, ULTRALYTICS, Case
from tests.ops.under_test import EXAMPLES, INTERPRETED, Backend, backends_of, few, running, skip_unless_host
from tests.process import growth_kib

module = importlib.import_module("gflv2.ops.task_aligned")
KERNELS = backends_of("task_aligned", kernels_only=True)
KERNELS_ON_EVERY_SET = backends_of("task_aligned", kernels_only=True, every_set=True)
NAMES = list(SETTINGS)


def assert_same(found: TaskAlignment, want: TaskAlignment, context: object = "") -> None:
    for name, a, b in zip(TaskAlignment._fields, found, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{context}: {name}: {a.dtype} {a.shape}"
        a, b = a.cpu(), b.cpu()
        same = a == b
        assert same.all(), (
            f"{context}: {name} differs at {(~same).nonzero().tolist()[:8]}: {a[~same][:8]}, {b[~same][:8]}"
        )


def check(case: Case, backend: str) -> TaskAlignment:
    with running(backend) as device:
        found = task_aligned(**case.inputs(device))
    want = reference.task_aligned(**case.inputs())
    for name, a, b in zip(TaskAlignment._fields, found, want, strict=True):
        wrong = float((a.cpu() != b).sum())  # every bit counts
        parity.tell(parity.Measured("task_aligned", name, torch.float32, wrong, 0.0, 0, 0.0), case)
    assert_same(found, want, case)
    return found


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("options", few(NAMES, 3))
    def test_settings(self, options: str, kind: str, backend: str) -> None:
        found = check(Case(kind=kind, options=SETTINGS[options]), backend)
        assert (found.index > 0).any()
        assert (found.index[1] == 0).all()  # the image without boxes

    @pytest.mark.parametrize("order", ["bac", "bca"])
    @pytest.mark.parametrize("dtype", few([torch.float16, torch.bfloat16, torch.float64]), ids=str)
    def test_scores_of_other_dtypes_and_orders(self, dtype: torch.dtype, order: str, backend: str) -> None:
        check(Case(dtype=dtype, order=order, counts=(5, 9)), backend)

    @pytest.mark.parametrize("form", ["padded", "padded without counts"])
    def test_padded_boxes(self, form: str, backend: str) -> None:
        check(Case(form=form, counts=(7, 20)), backend)

    @pytest.mark.parametrize("strides", [(96,), (48, 32)], ids=str)
    @pytest.mark.parametrize("options", few(NAMES, 3))
    def test_fewer_points_than_candidates(self, options: str, strides: tuple[int, ...], backend: str) -> None:
        check(Case(strides=strides, counts=(3, 1), options=SETTINGS[options]), backend)

    def test_nothing_to_assign(self, backend: str) -> None:
        for case in (Case(counts=(0, 0)), Case(counts=(0,), form="padded without counts"), Case(strides=())):
            found = check(case, backend)
            assert not found.index.any() and (found.labels == -1).all() and not found.scores.any()

    def test_many_images(self, backend: str) -> None:
        """More than one launch takes."""
        check(Case(counts=(2, 0, 1) * (2 if INTERPRETED else 18), strides=(16, 32)), backend)

    def test_zeros_are_chosen_in_the_order_of_the_points(self, backend: str) -> None:
        """With no score above 0, a box gets those of the image's first ``topk`` points that lie in it."""
        case = Case(counts=(8, 8), options={**ULTRALYTICS, "topk": 12})
        with running(backend) as device:
            inputs = case.inputs(device)
            inputs["scores"] = torch.zeros_like(inputs["scores"])
            inputs["gt_boxes"][0][0] = torch.tensor([10.0, 0.0, 60.0, 90.0], device=device)
            found = task_aligned(**inputs)
            none = task_aligned(**{**inputs, "zeros": False})
        positive = found.index[0].nonzero().flatten()
        assert len(positive) > 3 and positive.max() < 12 and not found.scores.any()
        assert not none.index.any()
        assert_same(found, reference.task_aligned(**{k: _to_cpu(v) for k, v in inputs.items()}))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("options", [ULTRALYTICS, MMDET], ids=["ultralytics", "mmdet"])
    @pytest.mark.parametrize("exponents", few([(0.5, 0), (0, 6), (0, 0)]), ids=str)
    def test_a_factor_without_a_say(
        self, exponents: tuple[float, float], options: dict, kind: str, backend: str
    ) -> None:
        """With beta 0 a pair that does not overlap has a metric, too: 0 to the power of 0 is 1."""
        alpha, beta = exponents
        check(Case(kind=kind, counts=(5, 3), options={**options, "alpha": alpha, "beta": beta}), backend)

    def test_boxes_far_from_every_prediction(self, backend: str) -> None:
        """With beta 0 the highest score of any point around a box counts, wherever the point's own box lies."""
        with running(backend) as device:
            inputs = Case(counts=(3,), options={**MMDET, "beta": 0}).inputs(device)
            inputs["boxes"] = inputs["boxes"] + 1000
            found = task_aligned(**inputs)
        assert (found.index > 0).any() and not found.iou.any()
        assert_same(found, reference.task_aligned(**{k: _to_cpu(v) for k, v in inputs.items()}))

    @pytest.mark.parametrize("topk", [9, 16, 17])
    def test_of_equal_metrics_the_first_points_are_chosen(self, topk: int, backend: str) -> None:
        """In a box with many more points than candidates, behind two that are better."""
        case = Case(counts=(1,), options={**ULTRALYTICS, "topk": topk})
        with running(backend) as device:
            inputs = case.inputs(device)
            points = len(inputs["points"])
            inputs["gt_boxes"] = [torch.tensor([[0.0, 0.0, 96.0, 96.0]], device=device)]
            inputs["boxes"] = inputs["gt_boxes"][0].expand(1, points, 4) + torch.tensor([0, 0, 3.0, 3.0], device=device)
            inputs["scores"] = torch.full_like(inputs["scores"], 0.3)
            inputs["scores"][0, [70, 188]] = 0.9
            found = task_aligned(**inputs)
        assert found.index[0].nonzero().flatten().tolist() == [*range(topk - 2), 70, 188]
        assert_same(found, reference.task_aligned(**{k: _to_cpu(v) for k, v in inputs.items()}))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        one_of = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
        odd = () if backend == "triton" else (0.3, 4.5)  # exponents that Triton refuses
        options = {
            "topk": one_of(1, 2, 4, 10, 10, 13, 32),
            "alpha": one_of(0.5, 1, 0, 2, *odd),
            "beta": one_of(6.0, 1, 0.5, 0, 16, *odd),
            "overlap": one_of("ciou", "iou"),
            "candidates": one_of("inside", "all"),
            "margin": one_of(1e-9, 0.0, 0.01, 3.0),
            "min_side": one_of(None, 0.0, 16.0, 40.0),
            "zeros": one_of(True, False),
            "contest": one_of("containing", "claiming"),
            "final_topk": one_of(None, None, 1, 3, 13),
            "normalize": one_of(True, False),
        }
        case = Case(
            kind=one_of(*KINDS),
            counts=tuple(data.draw(st.lists(st.sampled_from(few([0, 1, 5, 20, 40], 3)), min_size=1, max_size=3))),
            classes=one_of(1, 3, 5),
            size=one_of(32, 64, 96),
            strides=one_of((8, 16, 32), (4,), (32,), (16, 32)),
            form=one_of("ragged", "padded", "padded without counts"),
            dtype=one_of(torch.float32, torch.float16, torch.bfloat16, torch.float64),
            order=one_of("bac", "bca"),
            seed=data.draw(st.integers(0, 2**16)),
            options=options,
        )
        check(case, backend)


def _to_cpu(value: object) -> object:
    if isinstance(value, Tensor):
        return value.cpu()
    return [item.cpu() for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("backend", backends_of("task_aligned"))
class TestByHand:
    """Two classes, three points in a row 10 px apart, predictions that are the boxes or miss them."""

    def call(self, backend: str, **changes: object) -> TaskAlignment:
        with running(backend) as device:
            points = torch.tensor([[5.0, 5.0], [15.0, 5.0], [25.0, 5.0]])
            first, second = [0.0, 0.0, 20.0, 10.0], [10.0, 0.0, 30.0, 10.0]
            scores = torch.tensor([[[0.25, 0.0], [0.16, 0.81], [0.0, 0.49]]])
            boxes = torch.tensor([[first, [10.0, 0.0, 20.0, 10.0], second]])
            arguments = {
                **{"scores": scores, "boxes": boxes, "points": points, "overlap": "iou", "beta": 1, "eps": 1e-30},
                **{"gt_boxes": [torch.tensor([first, second])], "gt_labels": [torch.tensor([0, 1])]},
            }
            moved = {
                name: [item.to(device) for item in value] if isinstance(value, list) else value
                for name, value in arguments.items()
            }
            moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
            return TaskAlignment(*(tensor[0].cpu() for tensor in task_aligned(**{**moved, **changes})))

    def test_targets(self, backend: str) -> None:
        """Point 1 has IoU 0.5 with both boxes: the lower one gets it. Metrics: 0.5·1, 0.4·0.5; 0.7·1."""
        found = self.call(backend)
        assert found.index.tolist() == [1, 1, 2] and found.labels.tolist() == [0, 0, 1]
        assert found.iou.tolist() == [1.0, 0.5, 1.0]
        torch.testing.assert_close(found.scores, torch.tensor([1.0, 0.4, 1.0]))

    def test_metrics(self, backend: str) -> None:
        found = self.call(backend, normalize=False)
        torch.testing.assert_close(found.scores, torch.tensor([0.5, 0.2, 0.7]))

    def test_one_candidate(self, backend: str) -> None:
        assert self.call(backend, topk=1).index.tolist() == [1, 0, 2]

    def test_one_point_a_box(self, backend: str) -> None:
        found = self.call(backend, final_topk=1)
        assert found.index.tolist() == [1, 0, 2] and found.labels.tolist() == [0, -1, 1]
        assert found.iou.tolist() == [1.0, 0.0, 1.0]

    def test_who_competes(self, backend: str) -> None:
        """Three boxes around point 1; the third fits best but chooses another point alone."""
        with running(backend) as device:
            gt = torch.tensor([[0.0, 0.0, 20.0, 10.0], [10.0, 0.0, 30.0, 10.0], [8.0, 0.0, 22.0, 10.0]], device=device)
            points = torch.tensor([[15.0, 5.0], [9.0, 5.0]], device=device)
            boxes = torch.tensor([[[8.0, 0.0, 20.0, 10.0], [8.0, 0.0, 22.0, 10.0]]], device=device)
            scores = torch.tensor([[[0.9, 0.1], [0.0, 1.0]]], device=device)
            labels = torch.tensor([0, 0, 1], device=device)
            common = {"topk": 1, "overlap": "iou"}
            every = task_aligned(scores, boxes, points, [gt], [labels], **common)
            choosers = task_aligned(scores, boxes, points, [gt], [labels], contest="claiming", **common)
        assert every.index.tolist() == [[3, 3]] and choosers.index.tolist() == [[1, 3]]

    def test_short_sides_are_lengthened(self, backend: str) -> None:
        with running(backend) as device:
            arguments = {
                "scores": torch.ones(1, 1, 1, device=device),
                "boxes": torch.tensor([[[8.0, 8.0, 11.0, 11.0]]], device=device),
                "points": torch.tensor([[4.0, 4.0]], device=device),
                "gt_boxes": [torch.tensor([[8.0, 8.0, 10.0, 10.0]], device=device)],
                "gt_labels": [torch.tensor([0], device=device)],
            }
            plain, longer = task_aligned(**arguments), task_aligned(**arguments, min_side=16.0)
        assert plain.index.tolist() == [[0]] and longer.index.tolist() == [[1]]


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    @pytest.mark.parametrize("options", few(["ultralytics", "ultralytics, one point a box", "mmdet"]))
    def test_all_of_the_outputs_and_no_byte_beside_them(self, options: str, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(options=SETTINGS[options]).inputs(device)
            want = task_aligned(**inputs)
            guarded, outputs = [], []
            for tensor, junk in zip(want, (-77, math.nan, -77, math.nan), strict=True):
                room = torch.full((tensor.numel() + 64,), junk, dtype=tensor.dtype, device=device)
                guarded.append(room)
                outputs.append(room[32:-32].view(tensor.shape))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module._task_aligned, "new_results", lambda *_: tuple(outputs))
                task_aligned(**inputs)
        for room, tensor, expected in zip(guarded, outputs, want, strict=True):
            assert torch.equal(tensor, expected)
            beside = torch.cat([room[:32], room[-32:]])
            assert (beside.isnan() if beside.is_floating_point() else beside == -77).all()

    def test_allocations_are_filled(self, backend: str) -> None:
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN, and the largest integer
        try:
            for options in ("ultralytics", "ultralytics, one point a box", "mmdet"):
                check(Case(options=SETTINGS[options]), backend)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_counts_that_are_wrong_on_the_device(self, backend: str) -> None:
        """Fewer than none are none, more than all are all: what lies behind the tensor is not read."""
        with running(backend) as device:
            inputs = Case(form="padded without counts", counts=(4, 4)).inputs(device)
            for name in ("gt_boxes", "gt_labels"):  # the last image has boxes behind it
                inputs[name] = torch.cat([inputs[name]] * 3)[:2]
            everything = task_aligned(**inputs)
            for wrong in (7, 10**9, 2**40):
                assert_same(task_aligned(**inputs, counts=torch.tensor([6, wrong], device=device)), everything)
            none = task_aligned(**inputs, counts=torch.tensor([-3, -(2**40)], device=device))
        assert everything.index.any() and not none.index.any() and not none.iou.any()

    def test_a_box_of_no_class_has_no_points(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(counts=(6, 6)).inputs(device)
            for wrong in (-1, 4, 2**40, -(2**40)):
                inputs["gt_labels"] = [torch.full_like(image, wrong) for image in inputs["gt_labels"]]
                assert not task_aligned(**inputs).index.any()

    def test_what_is_no_number_is_never_positive(self, backend: str) -> None:
        with running(backend) as device:
            for options in (ULTRALYTICS, MMDET, {**MMDET, "zeros": True}):
                inputs = Case(kind="broken", options=options).inputs(device)
                found = task_aligned(**inputs)
                positive = found.index > 0
                assert positive.any()
                assert inputs["boxes"][positive].isfinite().all()
                assert inputs["points"].expand(len(positive), -1, -1)[positive].isfinite().all()
                own = inputs["scores"].gather(2, found.labels.clamp(min=0)[..., None])[..., 0][positive]
                assert own.isfinite().all() and (own >= 0).all()
                assert found.iou.isfinite().all() and found.scores.isfinite().all()

    def test_inputs_are_left_alone(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case().inputs(device)
            tensors = [inputs[name] for name in ("scores", "boxes", "points")]
            tensors += [*inputs["gt_boxes"], *inputs["gt_labels"]]
            before = [tensor.clone() for tensor in tensors]
            task_aligned(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    @pytest.mark.slow
    def test_memory_grows_with_points_and_boxes_alone(self, backend: Backend) -> None:
        """2 × 5000 boxes and 8400 points: a float for every pair alone would take 336 MB."""
        skip_unless_host(backend)
        prepare = """
from gflv2.ops import task_aligned
from tests.ops.task_aligned_cases import Case
def case(count):
    return Case(counts=(count, count), size=640, classes=8).inputs()
task_aligned(**case(10))
many = case(5000)
"""
        grown = growth_kib(prepare, "assert int((task_aligned(**many).index > 0).sum()) > 5000")
        assert grown < 50 * 1024, f"{grown} KiB"


@pytest.mark.parametrize("backend", backends_of("task_aligned"))
class TestMetamorphic:
    def test_permuted_images(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(counts=(4, 0, 5, 3) if INTERPRETED else (7, 0, 20, 3)).inputs(device)
            straight = task_aligned(**inputs)
            order = [2, 0, 3, 1]
            for name in ("scores", "boxes"):
                inputs[name] = inputs[name][order]
            for name in ("gt_boxes", "gt_labels"):
                inputs[name] = [inputs[name][i] for i in order]
            assert_same(task_aligned(**inputs), TaskAlignment(*(tensor[order] for tensor in straight)))

    @pytest.mark.parametrize("options", [ULTRALYTICS, MMDET], ids=["ultralytics", "mmdet"])
    def test_permuted_boxes(self, options: dict, backend: str) -> None:
        with running(backend) as device:
            count = 8 if INTERPRETED else 40
            inputs = Case(counts=(count,), options=options).inputs(device)
            straight = task_aligned(**inputs)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).to(device)
            inputs["gt_boxes"], inputs["gt_labels"] = [inputs["gt_boxes"][0][order]], [inputs["gt_labels"][0][order]]
            moved = task_aligned(**inputs)
        back = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), order + 1])[moved.index[0]]
        # Where no box overlaps, the order of the boxes decides.
        sure = (straight.scores > 0) | (moved.scores > 0)
        assert sure.any() and torch.equal(back[sure[0]], straight.index[sure])
        assert torch.equal(moved.scores, straight.scores)

    def test_of_twins_the_first_gets_all(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(counts=(5 if INTERPRETED else 15,)).inputs(device)
            for name in ("gt_boxes", "gt_labels"):
                inputs[name] = [inputs[name][0].repeat_interleave(2, 0)]
            index = task_aligned(**inputs).index
        assert (index[index > 0] % 2 == 1).all() and index.any()

    def test_padded_is_ragged(self, backend: str) -> None:
        with running(backend) as device:
            case = Case()
            assert_same(task_aligned(**case.but(form="padded").inputs(device)), task_aligned(**case.inputs(device)))

    def test_twice_the_same_bits(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(kind="tied").inputs(device)
            assert_same(task_aligned(**inputs), task_aligned(**inputs))


@pytest.mark.parametrize("backend", [name for name in KERNELS_ON_EVERY_SET if name == "cpu"])
@pytest.mark.parametrize("options", NAMES[:3])
def test_threads_change_nothing(options: str, backend: str) -> None:
    inputs = Case(counts=(300, 3, 0, 200), size=160, options=SETTINGS[options]).inputs()
    before = torch.get_num_threads()
    try:
        with running(backend):
            torch.set_num_threads(1)
            want = task_aligned(**inputs)
            torch.set_num_threads(3)
            assert_same(task_aligned(**inputs), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", [name for name in KERNELS if name == "triton"])
def test_exponents_that_triton_refuses(backend: str) -> None:
    with running(backend) as device, pytest.raises(BackendError, match="neither 0.5 nor a whole number"):
        task_aligned(**{**Case().inputs(device), "alpha": 0.7})


@pytest.mark.parametrize("backend", [name for name in KERNELS if name != "cpu"])
def test_more_candidates_than_a_gpu_takes(backend: str) -> None:
    with running(backend) as device, pytest.raises(BackendError, match="topk is more than 32"):
        task_aligned(**{**Case().inputs(device), "topk": 33})


def test_the_arctangent_of_the_definition() -> None:
    """Within 3 units in the last place, also where the argument is reduced, at 0 and at infinity."""
    x = torch.cat([torch.logspace(-8, 8, 200001), torch.linspace(0, 5, 200001), torch.tensor([0.0, math.inf])])
    for sign in (1, -1):
        found, want = reference.arctangent(sign * x), (sign * x.double()).atan()
        unit = torch.nextafter(want.float().abs(), torch.tensor(math.inf)).double() - want.float().abs().double()
        assert ((found.double() - want).abs() <= 3 * unit).all()
