"""``atss`` on every backend: the same bits as the definition."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
import torch._dynamo.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gflv2
from gflv2.ops import Assignment, atss
from gflv2.ops.backends import BackendError
from gflv2.ops.reference import atss as reference
from tests.ops import parity
from tests.ops.atss_cases import KINDS, SHAPES, Case
from tests.ops.under_test import EXAMPLES, INTERPRETED, Backend, backends_of, few, running, skip_unless_host
from tests.process import growth_kib

module = importlib.import_module("gflv2.ops.atss")
KERNELS = backends_of("atss", kernels_only=True)
KERNELS_ON_EVERY_SET = backends_of("atss", kernels_only=True, every_set=True)
EVERYTHING = Case(own_sizes=True, ignore=2, offset=0.5, twins=True)
FEW_LEVELS = {"shapes": ((7, 9), (3, 4)), "strides": (8.0, 16.0)}
SOME = [Case(), EVERYTHING, Case(form="padded"), Case(points="tied")]


def assert_same(found: Assignment, want: Assignment, context: object = "") -> None:
    for name, a, b in zip(Assignment._fields, found, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{context}: {name}: {a.dtype} {a.shape}"
        a, b = a.cpu(), b.cpu()
        same = a == b
        assert same.all(), (
            f"{context}: {name} differs at {(~same).nonzero().tolist()[:8]}: {a[~same][:8]}, {b[~same][:8]}"
        )


def check(case: Case, backend: str) -> Assignment:
    with running(backend) as device:
        arguments, more = case.inputs(device)
        found = atss(*arguments, **more)
    arguments, more = case.inputs()
    want = reference.atss(*arguments, **more)
    for name, a, b in zip(Assignment._fields, found, want, strict=True):
        wrong = float((a.cpu() != b).sum())  # every bit counts
        parity.tell(parity.Measured("atss", name, torch.float32, wrong, 0.0, 0, 0.0), case)
    assert_same(found, want, case)
    return found


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("form", few(["ragged", "padded", "padded without counts"], 1))
    @pytest.mark.parametrize("kind", KINDS)
    def test_boxes_of_every_kind(self, kind: str, form: str, backend: str) -> None:
        found = check(Case(kind=kind, form=form), backend)
        assert (found.index > 0).any() or kind == "inside out"

    @pytest.mark.parametrize("topk", few([1, 32, 2, 3, 5, 13, 16]))
    def test_topk(self, topk: int, backend: str) -> None:
        check(Case(topk=topk, form="padded without counts"), backend)
        check(EVERYTHING.but(topk=topk, kind="whole numbers"), backend)

    @pytest.mark.parametrize(
        "strides", few([(3.0, 5.0, 7.3, 11.0, 100.0), (0.5, 1.0, 2.0, 4.0, 8.0), (8.0,) * 5]), ids=str
    )
    @pytest.mark.parametrize("offset", few([0.3, 0.5, 0.0], 1))
    def test_strides_and_offset(self, strides: tuple[float, ...], offset: float, backend: str) -> None:
        check(Case(strides=strides[: len(SHAPES)], offset=offset, anchor_scale=5.5, counts=(9, 20)), backend)

    @pytest.mark.parametrize(
        "shapes", [((1, 1),), ((0, 3), (1, 1)), ((1, 40),), ((40, 1),), ((2, 3), (0, 0), (1, 2))], ids=str
    )
    def test_tiny_grids(self, shapes: tuple[tuple[int, int], ...], backend: str) -> None:
        for kind in ("random", "around the image"):
            check(Case(shapes=shapes, strides=(8.0, 16.0, 32.0)[: len(shapes)], kind=kind), backend)

    @pytest.mark.parametrize("form", few(["padded", "ragged"], 1))
    @pytest.mark.parametrize("points", few(["grid", "anywhere", "tied"]))
    @pytest.mark.parametrize("threshold", few([0.0, 0.05, 0.4, 0.9]))
    def test_ignore_boxes(self, threshold: float, points: str, form: str, backend: str) -> None:
        case = Case(
            points=points, ignore=2, ignore_iof_thr=threshold, form=form, counts=(7, 0, 12), seed=3, **FEW_LEVELS
        )
        found = check(case, backend)
        if threshold < 0.4:
            assert (found.index == -1).any() == (threshold > 0)
        check(case.but(own_sizes=True, twins=True, offset=0.5), backend)

    def test_a_level_that_is_ignored_as_a_whole(self, backend: str) -> None:
        """Ignored cells then are candidates, the lower index first, and can become positive."""
        boxes = [torch.tensor([[0.0, 0.0, 20.0, 20.0], [8.0, 0.0, 90.0, 90.0]])]
        everywhere = [torch.tensor([[-1e4, -1e4, 1e4, 1e4]])]
        labels = [torch.tensor([3, 5])]
        more = {"ignore_boxes": everywhere, "ignore_iof_thr": 0.5}
        with running(backend) as device:
            moved = [[tensor.to(device) for tensor in tensors] for tensors in (boxes, labels, everywhere)]
            found = atss(*moved[:2], [(9, 12), (2, 2)], [8.0, 16.0], ignore_boxes=moved[2], ignore_iof_thr=0.5)
        want = reference.atss(boxes, labels, [(9, 12), (2, 2)], [8.0, 16.0], **more)
        assert (want.index > 0).any() and (want.index == -1).any() and not (want.index == 0).any()
        assert_same(found, want)

    def test_an_ignore_box_with_a_nan_covers_nothing(self, backend: str) -> None:
        for side in range(4):
            ignore = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
            ignore[0, side] = math.nan
            inputs = [torch.tensor([[4.0, 4.0, 30.0, 30.0]])], [torch.tensor([0])], [(5, 5)], [8.0]
            more = {"ignore_boxes": [ignore], "ignore_iof_thr": 0.01}
            want = reference.atss(*inputs, **more)
            assert not (want.index == -1).any() and (want.index > 0).any()
            with running(backend) as device:
                boxes, labels, shapes, strides = inputs
                more["ignore_boxes"] = [ignore.to(device)]
                found = atss([boxes[0].to(device)], [labels[0].to(device)], shapes, strides, **more)
            assert_same(found, want)

    @pytest.mark.parametrize("dtype", few([torch.float64, torch.float16, torch.bfloat16], 1), ids=str)
    def test_boxes_of_other_dtypes(self, dtype: torch.dtype, backend: str) -> None:
        check(EVERYTHING.but(dtype=dtype), backend)
        check(EVERYTHING.but(dtype=dtype, form="padded"), backend)

    def test_strided_inputs_and_integers_of_32_bits(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), more = Case(form="padded").inputs(device)
            plain = atss(boxes, labels, *grid, **more)
            wide = torch.stack([boxes * 3, boxes], dim=-1)[..., 1]
            more["counts"] = more["counts"].int()
            assert_same(atss(wide, labels.int(), *grid, **more), plain)
            assert_same(
                atss(boxes.flip(1).flip(1), torch.stack([labels * 7, labels], -1)[..., 1], *grid, **more), plain
            )

    def test_many_images(self, backend: str) -> None:
        """More than one launch takes."""
        check(Case(counts=tuple(range(5)) * (2 if INTERPRETED else 6), own_sizes=True, **FEW_LEVELS), backend)

    def test_images_without_boxes(self, backend: str) -> None:
        for form in ("ragged", "padded without counts"):
            found = check(Case(counts=(0, 0), form=form), backend)
        assert not found.iou.any() or form != "ragged"

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        levels = data.draw(st.integers(1, 4))
        side = st.integers(0, 24)
        ignore = data.draw(st.sampled_from([0, 0, 1, 2]))
        case = Case(
            shapes=tuple(data.draw(st.lists(st.tuples(side, side), min_size=levels, max_size=levels))),
            strides=tuple(
                data.draw(st.lists(st.sampled_from([0.5, 3.0, 7.3, 8.0, 16.0, 32.0]), min_size=levels, max_size=levels))
            ),
            counts=tuple(data.draw(st.lists(st.sampled_from([0, 1, 5, 20, 70]), min_size=1, max_size=3))),
            kind=data.draw(st.sampled_from(KINDS)),
            form=data.draw(st.sampled_from(["ragged", "padded", "padded without counts"])),
            topk=data.draw(st.sampled_from([1, 2, 4, 9, 9, 9, 13, 17])),
            anchor_scale=data.draw(st.sampled_from([8.0, 4.0, 5.5])),
            offset=data.draw(st.sampled_from([0.0, 0.5, 0.25])),
            own_sizes=data.draw(st.booleans()),
            ignore=ignore,
            ignore_iof_thr=data.draw(st.sampled_from([0.01, 0.3, 0.6])),
            points=data.draw(st.sampled_from(["grid", "grid", "grid", "anywhere", "tied"])),
            twins=data.draw(st.booleans()),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestSearch:
    """The window search against a look at every cell, which is what explicit points get."""

    @pytest.mark.parametrize("kind", few(["far away", "random", "around the image", "whole numbers", "on the grid"]))
    @pytest.mark.parametrize("topk", few([9, 4, 16], 1))
    def test_grid_equals_its_points(self, topk: int, kind: str, backend: str) -> None:
        positive = 0
        for seed, (stride, offset) in enumerate(few([(7.3, 0.5), (8.0, 0.0), (3.0, 0.25)], 1)):
            shapes = ((25, 31), (9, 5), (1, 30))
            strides = (stride, 2 * stride, 3 * stride)
            counts = (60,) if INTERPRETED else (400, 100)
            case = Case(shapes=shapes, strides=strides, counts=counts, kind=kind, topk=topk, offset=offset, seed=seed)
            with running(backend) as device:
                (boxes, labels, _, _), more = case.inputs(device)
                points = reference.points_of_levels(shapes, strides, offset=offset, device=device)
                by_grid = atss(boxes, labels, list(shapes), list(strides), **more)
                more["points"] = list(points.split([height * width for height, width in shapes]))
                by_points = atss(boxes, labels, None, list(strides), **more)
            assert_same(by_grid, by_points, case)
            positive += int((by_grid.index > 0).sum())
        assert positive > 0

    def test_distances_that_tie_by_rounding(self, backend: str) -> None:
        """From far away whole blocks of rows are equally near; then the lower index wins, 20 rows from the nearest."""
        far = 2.0 ** torch.arange(12, 25, 6 if INTERPRETED else 1)
        low, high = torch.full_like(far, -1e3), torch.full_like(far, 1e3)
        boxes = torch.cat(
            [
                torch.stack([-2 * far, low + 500, high, high], 1),
                torch.stack([low, low, high, 2 * far], 1),
                torch.stack([-2 * far, low, high, 2 * far], 1),
            ]
        )
        one_each = [box[None] for box in boxes]  # alone in its image every box keeps what it claims
        labels = [torch.zeros(1, dtype=torch.int64) for _ in one_each]
        grid = [(60, 50)], [8.0]
        with running(backend) as device:
            found = atss([box.to(device) for box in one_each], [label.to(device) for label in labels], *grid)
        want = reference.atss(one_each, labels, *grid)
        assert_same(found, want)
        centre = (boxes[:, 1] + boxes[:, 3]) / 2
        # The case is what it says: some positive point lies far beyond any fixed window of 2·topk − 1 cells.
        rows = [(index > 0).nonzero().flatten() // 50 for index in want.index]
        away = [((r - (y / 8).clamp(0, 59)).abs().max() if len(r) else 0) for r, y in zip(rows, centre, strict=True)]
        assert max(away) > 16


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    @pytest.mark.parametrize("case", few(SOME), ids=str)
    def test_all_of_the_outputs_and_no_byte_beside_them(self, case: Case, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, shapes, strides), more = case.inputs(device)
            want = atss(boxes, labels, shapes, strides, **more)
            guarded, outputs = [], []
            for tensor, junk in zip(want, (-77, float("nan"), -77), strict=True):
                room = torch.full((tensor.numel() + 64,), junk, dtype=tensor.dtype, device=device)
                guarded.append(room)
                outputs.append(room[32:-32].view(tensor.shape))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module._atss, "new_results", lambda *_: tuple(outputs))
                atss(boxes, labels, shapes, strides, **more)
        for room, tensor, expected in zip(guarded, outputs, want, strict=True):
            assert torch.equal(tensor, expected)
            beside = torch.cat([room[:32], room[-32:]])
            assert (beside.isnan() if beside.is_floating_point() else beside == -77).all()

    def test_allocations_are_filled(self, backend: str) -> None:
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN, and the largest integer
        try:
            for case in (Case(), EVERYTHING, EVERYTHING.but(points="tied")):
                check(case, backend)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_counts_that_are_wrong_on_the_device(self, backend: str) -> None:
        """Fewer than none are none, more than all are all: what lies behind the tensor is not read."""
        with running(backend) as device:
            (boxes, labels, *grid), more = Case(form="padded", counts=(4, 4)).inputs(device)
            room, names = torch.cat([boxes] * 3), torch.cat([labels] * 3)  # the last image has boxes behind it
            boxes, labels = room[:2], names[:2]
            everything = atss(boxes, labels, *grid)
            for wrong in (7, 10**9, 2**40):
                counts = torch.tensor([6, wrong], device=device)
                assert_same(atss(boxes, labels, *grid, counts=counts), everything)
            none = atss(boxes, labels, *grid, counts=torch.tensor([-3, -(2**40)], device=device))
        assert not none.index.any() and not none.iou.any()

    def test_labels_of_any_value_are_passed_on(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), _ = Case().inputs(device)
            odd = [torch.full_like(label, 2**40) for label in labels]
            found = atss(boxes, odd, *grid)
        assert (found.labels[found.index > 0] == 2**40).all()

    def test_inputs_are_left_alone(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), more = EVERYTHING.inputs(device)
            inputs = [*boxes, *labels, *more["ignore_boxes"]]
            before = [tensor.clone() for tensor in inputs]
            atss(boxes, labels, *grid, **more)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))

    @pytest.mark.slow
    def test_memory_grows_with_boxes_alone(self, backend: Backend) -> None:
        """2 × 5000 boxes and 22400 points: a bool for every pair alone would take 214 MB."""
        skip_unless_host(backend)
        prepare = """
from gflv2.ops import atss
shapes, strides = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)], [8, 16, 32, 64, 128]
draw = torch.Generator().manual_seed(0)
def images(count):
    centre, size = torch.rand(count, 2, generator=draw) * 1000, 8 + torch.rand(count, 2, generator=draw) * 300
    return [torch.cat([centre - size / 2, centre + size / 2], 1)] * 2, [torch.zeros(count, dtype=torch.int64)] * 2
atss(*images(10), shapes, strides)
many = images(5000)
"""
        grown = growth_kib(prepare, "assert int((atss(*many, shapes, strides).index > 0).sum()) > 1000")
        assert grown < 50 * 1024, f"{grown} KiB"


@pytest.mark.parametrize("backend", backends_of("atss"))
class TestMetamorphic:
    def test_permuted_images(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), more = Case(counts=(7, 0, 30, 3), own_sizes=True).inputs(device)
            straight = atss(boxes, labels, *grid, **more)
            order = [2, 0, 3, 1]
            more["padded_sizes"] = [more["padded_sizes"][i] for i in order]
            moved = atss([boxes[i] for i in order], [labels[i] for i in order], *grid, **more)
        assert_same(moved, Assignment(*(tensor[order] for tensor in straight)))

    def test_permuted_boxes(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), _ = Case(counts=(40,)).inputs(device)
            straight = atss(boxes, labels, *grid)
            order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).to(device)
            moved = atss([boxes[0][order]], [labels[0][order]], *grid)
        assert torch.equal(moved.iou, straight.iou)
        back = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), order + 1])[moved.index[0]]
        # Two boxes of equal IoU at a point exchange it with their order.
        assert torch.equal(back, straight.index[0]) and torch.equal(moved.labels, straight.labels)

    def test_of_twins_the_first_gets_all(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), _ = Case(counts=(30,), twins=True).inputs(device)
            found = atss(boxes, labels, *grid).index
        assert (found[found > 0] % 2 == 1).all()

    def test_twice_the_same_bits(self, backend: str) -> None:
        with running(backend) as device:
            arguments, more = EVERYTHING.inputs(device)
            assert_same(atss(*arguments, **more), atss(*arguments, **more))


@pytest.mark.parametrize("backend", [name for name in KERNELS_ON_EVERY_SET if name == "cpu"])
class TestProcessor:
    @pytest.mark.parametrize("form", ["ragged", "padded"])
    def test_threads_change_nothing(self, form: str, backend: str) -> None:
        case = Case(counts=(700, 3, 0, 1500), own_sizes=True, ignore=1, form=form)
        before = torch.get_num_threads()
        try:
            with running(backend):
                arguments, more = case.inputs()
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(atss(*arguments, **more))
        finally:
            torch.set_num_threads(before)
        for found in results[1:]:
            assert_same(found, results[0])

    def test_topk_has_no_limit(self, backend: str) -> None:
        for topk in (100, 10**6):
            check(Case(topk=topk, counts=(5,)), backend)


@pytest.mark.parametrize("backend", KERNELS)
class TestHost:
    @pytest.mark.parametrize("case", few(SOME), ids=str)
    def test_opcheck(self, case: Case, backend: str) -> None:
        with running(backend) as device, pytest.MonkeyPatch.context() as patch:
            calls = []
            patch.setattr(
                module._atss, "constant", lambda tensors, rest: calls.append((*tensors, *rest)) or (None,) * 3
            )
            arguments, more = case.but(counts=(3, 0), **FEW_LEVELS).inputs(device)
            atss(*arguments, **more)
            patch.undo()
            torch.library.opcheck(torch.ops.gflv2.atss.default, calls[0])

    @pytest.mark.parametrize("case", few(SOME), ids=str)
    def test_full_graph(self, case: Case, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(atss, fullgraph=True, backend="aot_eager")
            arguments, more = case.but(**FEW_LEVELS).inputs(device)
            assert_same(compiled(*arguments, **more), atss(*arguments, **more))

    def test_other_sizes_in_one_graph(self, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            counter = torch._dynamo.testing.CompileCounter()
            compiled = torch.compile(atss, fullgraph=True, backend=counter, dynamic=True)
            for size in (5, 6, 9, 11):
                shapes = ((size, size + 2), (size - 2, 3))
                case = Case(shapes=shapes, strides=(8.0, 16.0), counts=(size, 2 * size), form="padded")
                arguments, more = case.inputs(device)
                assert_same(compiled(*arguments, **more), atss(*arguments, **more))
        assert counter.frame_count == 1

    def test_nothing_is_differentiable(self, backend: str) -> None:
        with running(backend) as device:
            (boxes, labels, *grid), _ = Case().inputs(device)
            found = atss([image.requires_grad_() for image in boxes], labels, *grid)
            assert not any(tensor.requires_grad for tensor in found)
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
                assert_same(atss(boxes, labels, *grid), found)

    def test_refusals_have_words(self, backend: str) -> None:
        with running(backend) as device:
            boxes, labels = [torch.zeros(1, 4, device=device)], [torch.zeros(1, dtype=torch.int64, device=device)]
            with pytest.raises(BackendError, match="more than 32768 cells a side"):
                atss(boxes, labels, [(1, 40000)], [8.0])
            if backend in module.MAX_TOPK:
                with pytest.raises(BackendError, match="topk is more than 32"):
                    atss(boxes, labels, [(9, 9)], [8.0], topk=33)
        with gflv2.use_backend(None):
            reasons = gflv2.explain("atss", boxes, labels, [(1, 40000)], [8.0])
        assert any("32768" in choice.reason for choice in reasons)

    def test_values_are_checked_on_request(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GFLV2_CHECK", "1")
        with running(backend) as device:
            (boxes, labels, *grid), more = Case(form="padded", counts=(4, 4)).inputs(device)
            atss(boxes, labels, *grid, **more)
            with pytest.raises(ValueError, match=r"counts: expected numbers from 0 to 6, got \[6, 7\]"):
                atss(boxes, labels, *grid, counts=torch.tensor([6, 7], device=device))
