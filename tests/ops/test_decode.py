"""``decode`` on every backend against its definition, of which ``test_reference_decode.py`` says what it does."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch._dynamo.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gflv2
from gflv2.ops import Decoded, Predictor, batched_nms, decode, dgqp
from gflv2.ops.backends import BackendError
from tests.ops.decode_cases import ODD, SIZES, Case, assert_decoded
from tests.ops.layouts import CROPPED, LEVEL_LAYOUTS
from tests.ops.memory import GUARD, guarded
from tests.ops.under_test import EXAMPLES, INTERPRETED, backends_of, few, running

# `gflv2.ops.decode` is the function; the module of that name has to be asked for.
module = importlib.import_module("gflv2.ops.decode")
KERNELS = backends_of("decode", kernels_only=True)
KERNELS_ON_EVERY_SET = backends_of("decode", kernels_only=True, every_set=True)
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
MIXES = [(BF16, F32), (F16, F16), (BF16, BF16), (F32, BF16), (F16, F32), (F32, F32)]
EVERYTHING = Case(scales=True, projection=True, clip=True, rescale=True, offset=0.5)


def check(case: Case, backend: str) -> Decoded:
    with running(backend) as device:
        inputs = case.inputs(device)
        found = inputs.call(decode)
    assert_decoded(found, inputs)
    return found


def assert_same(found: Decoded, want: Decoded) -> None:
    for name, a, b in zip(Decoded._fields, found, want, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("layout", LEVEL_LAYOUTS)
    @pytest.mark.parametrize("dtypes", few(MIXES, 1), ids=str)
    def test_layouts_and_dtypes(self, dtypes: tuple[torch.dtype, torch.dtype], layout: str, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, class_dtype=dtypes[0], box_dtype=dtypes[1]), backend)

    @pytest.mark.parametrize("dtypes", MIXES[1:], ids=str)
    def test_dtypes(self, dtypes: tuple[torch.dtype, torch.dtype], backend: str) -> None:
        check(Case(class_dtype=dtypes[0], box_dtype=dtypes[1], sizes=((8, 9),)), backend)

    @pytest.mark.parametrize("layout", few(["nchw", "channels_last"], 1))
    @pytest.mark.parametrize("bins", [2, 8, 33, 65])
    def test_bins(self, bins: int, layout: str, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, bins=bins, sizes=((6, 7), (3, 3))), backend)

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("classes", few([1, 300, 2, 15, 16, 17, 80, 81]))
    def test_classes(self, classes: int, layout: str, backend: str) -> None:
        check(Case(layout=layout, classes=classes, sizes=((6, 7), (3, 4)), pre_topk=20), backend)

    @pytest.mark.parametrize("name", ["quality", "scales", "projection", "clip", "rescale", "offset"])
    def test_options(self, name: str, backend: str) -> None:
        case = Case(quality=False, sizes=((6, 7), (3, 4)))
        with running(backend) as device:
            plain = case.inputs(device).call(decode)
        changed = check(case.but(**{name: 0.25 if name == "offset" else True}), backend)
        assert not torch.equal(changed.scores if name == "quality" else changed.boxes, plain.boxes)

    @pytest.mark.parametrize("count", few([8, 3, 1], 1))
    def test_number_of_levels(self, count: int, backend: str) -> None:
        check(EVERYTHING.but(sizes=tuple((2 + level, 6) for level in range(count)), pre_topk=31), backend)

    @pytest.mark.parametrize("pre_topk", few([1, 40, 2, 39, 41, 666, 667, 10**6]))
    def test_pre_topk(self, pre_topk: int, backend: str) -> None:
        """Around the sizes of the levels, 667 and 40."""
        check(Case(pre_topk=pre_topk, classes=3, bins=5), backend)

    @pytest.mark.parametrize("score_thr", few([0.0, 0.3, 1.0, 0.95, 1e-6]))
    def test_threshold(self, score_thr: float, backend: str) -> None:
        found = check(Case(score_thr=score_thr, spread=4.0), backend)
        assert bool(found.counts.any()) == (score_thr < 0.9)

    @pytest.mark.parametrize("kind", ["tied", "odd"])
    def test_ties_and_odd_numbers(self, kind: str, backend: str) -> None:
        """Most points share their score with others; and some logits are not a number, infinite or huge."""
        for layout in few(["channels_last", "nchw", "transposed"], 1):
            case = Case(kind=kind, layout=layout, classes=5, score_thr=0.0, spread=1.0)
            check(case.but(class_dtype=BF16, seed=1), backend)
            check(case, backend)

    @pytest.mark.parametrize("spread", [100.0, 1e4])
    def test_huge_logits(self, spread: float, backend: str) -> None:
        check(Case(spread=spread, score_thr=0.0), backend)

    @pytest.mark.parametrize(
        "case",
        [
            EVERYTHING.but(batch=0),
            EVERYTHING.but(sizes=((0, 0), (0, 3))),
            EVERYTHING.but(sizes=((1, 1),), classes=1, bins=2, pre_topk=1),
        ],
        ids=["no image", "no cell", "one number"],
    )
    def test_empty(self, case: Case, backend: str) -> None:
        found = check(case, backend)
        assert found.counts.shape == (case.batch,)

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        dtypes = data.draw(st.sampled_from(MIXES + [(F64, F64)] * (backend == "cpu")))
        side = st.integers(0, 24 if data.draw(st.booleans()) else 6)
        case = Case(
            layout=data.draw(st.sampled_from([*LEVEL_LAYOUTS, CROPPED])),
            class_dtype=dtypes[0],
            box_dtype=dtypes[1],
            classes=data.draw(st.sampled_from([1, 2, 3, 7, 16, 33, 80])),
            bins=data.draw(st.sampled_from([2, 3, 8, 17, 17, 20, 33, 65])),
            quality=data.draw(st.booleans()),
            scales=data.draw(st.booleans()),
            projection=data.draw(st.booleans()),
            clip=data.draw(st.booleans()),
            rescale=data.draw(st.booleans()),
            offset=data.draw(st.sampled_from([0.0, 0.5])),
            pre_topk=data.draw(st.sampled_from([1, 2, 5, 30, 100, 1000])),
            score_thr=data.draw(st.sampled_from([0.0, 0.05, 0.05, 0.5, 1.0])),
            batch=data.draw(st.integers(0, 3)),
            sizes=tuple(data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))),
            kind=data.draw(st.sampled_from(["random", "random", "tied", "odd"])),
            spread=data.draw(st.sampled_from([0.1, 1.5, 1.5, 50.0, 1e4])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestSelection:
    def test_equal_scores_keep_their_order(self, backend: str) -> None:
        """More equal points than any digit, block or register of the selection holds."""
        side = 40 if INTERPRETED else 110
        with running(backend) as device:
            cls = torch.zeros(2, 2, side, side, device=device)
            cls[0, 1, 7, 3] = 2.0
            cls[1, :, 5:] = -1.0
            box = torch.zeros(2, 16, side, side, device=device)
            points = decode([cls], [box], strides=[8], pre_topk=900).points.cpu()
        best = side * 7 + 3
        assert points[0].tolist() == [best, *[point for point in range(900) if point != best]]
        assert points[1].tolist() == list(range(900))

    def test_every_digit_of_a_score_counts(self, backend: str) -> None:
        """Scores one unit in the last place apart, in a random order: J of a large quality is σ(c), c near 0."""
        order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
        logits = (1 - order * 2.0**-20).reshape(1, 1, 20, 30)  # σ' ≈ 1/5: some three units of J a step
        with running(backend) as device:
            box = [torch.zeros(1, 16, 20, 30, device=device)]
            found = decode([logits.to(device)], box, strides=[8], pre_topk=200)
        assert torch.equal(found.points[0].cpu(), order.argsort()[:200])

    def test_no_number_at_all(self, backend: str) -> None:
        with running(backend) as device:
            cls = torch.full((1, 3, 9, 9), float("nan"), device=device)
            box = torch.full((1, 16, 9, 9), float("nan"), device=device)
            found = decode([cls], [box], strides=[8], pre_topk=20, image_sizes=torch.ones(1, 2, device=device))
        assert found.points.tolist() == [list(range(20))]
        assert found.counts.tolist() == [0] and not found.scores.any() and found.boxes.isnan().all()

    @pytest.mark.parametrize("value", few(ODD, 3))
    def test_a_quality_that_is_odd(self, value: float, backend: str) -> None:
        """At one point of a level: first where it is not a number or surely good, last where surely bad."""
        with running(backend) as device:
            inputs = Case(sizes=((6, 7),), classes=2, pre_topk=42, spread=0.01).inputs(device)
            inputs.more["quality_logits"].fill_(0.0)[:, 20] = value
            found = inputs.call(decode, pre_topk=41).points.cpu()
        if value in (float("inf"), 1e4) or value != value:
            assert found[:, 0].tolist() == [20, 20]
        elif value < 0:
            assert not (found == 20).any()

    def test_the_best_score_of_a_row_gives_its_place(self, backend: str) -> None:
        with running(backend) as device:
            found = Case(score_thr=0.0, classes=20, sizes=(SIZES[0],), pre_topk=100).inputs(device).call(decode)
        best = found.scores.amax(-1)
        assert (best[:, :-1] >= best[:, 1:]).all()

    def test_the_authors_background_class(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case().inputs(device)
            plain, legacy = inputs.call(decode), inputs.call(decode, legacy_background=True)
        assert legacy.legacy_background and not plain.legacy_background
        assert_same(legacy._replace(legacy_background=False), plain)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestQuality:
    @pytest.mark.parametrize("variance", few([False, True], 1))
    def test_predictor(self, variance: bool, backend: str) -> None:
        """The quality is that of `dgqp`, to the bit."""
        draw = torch.Generator().manual_seed(5)
        with running(backend) as device:
            inputs = Case(quality=False, scales=True).inputs(device)
            features = 4 * (3 + 1 + variance)
            layers = [torch.randn(shape, generator=draw).to(device) for shape in [(8, features), (8,), (1, 8), (1,)]]
            predictor = Predictor(*layers, topk=3, mean=True, variance=variance)
            quality = dgqp(inputs.box_logits, *predictor[:4], scales=inputs.more["scales"], topk=3, variance=variance)
            found = inputs.call(decode, predictor=predictor)
            inputs.more["quality_logits"] = quality
            assert_same(found, inputs.call(decode))
        assert_decoded(found, inputs)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    @pytest.mark.parametrize(
        "case", few([EVERYTHING, Case(pre_topk=1000), EVERYTHING.but(layout="sliced")], 1), ids=str
    )
    def test_all_of_the_outputs_and_no_byte_beside_them(self, case: Case, backend: str) -> None:
        with running(backend) as device:
            inputs = case.inputs(device)
            want = inputs.call(decode)
            outputs, margins = zip(*(guarded(part) for part in want[:5]), strict=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module._decode, "new_results", lambda *_: list(outputs))
                inputs.call(decode)
        assert_same(Decoded(*outputs), want)
        assert all((margin == GUARD).all() for pair in margins for margin in pair)

    def test_allocations_are_filled(self, backend: str) -> None:
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN, and the largest integer
        try:
            check(EVERYTHING, backend)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_strided_small_arguments(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            plain = inputs.call(decode)
            for name in ("quality_logits", "scales", "projection", "image_sizes", "scale_factors"):
                inputs.more[name] = torch.stack([inputs.more[name] * 7, inputs.more[name]], -1)[..., 1]
            assert_same(inputs.call(decode), plain)


@pytest.mark.parametrize("backend", backends_of("decode"))
class TestMetamorphic:
    def test_permuted_images(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.but(batch=3, kind="tied").inputs(device)
            straight = inputs.call(decode)
            order = [2, 0, 1]
            inputs.class_logits = [level[order] for level in inputs.class_logits]
            inputs.box_logits = [level[order] for level in inputs.box_logits]
            for name in ("quality_logits", "image_sizes", "scale_factors"):
                inputs.more[name] = inputs.more[name][order]
            moved = inputs.call(decode)
        assert_same(moved, Decoded(*(part[order] for part in straight[:5])))

    def test_permuted_classes(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            straight = inputs.call(decode)
            order = [3, 0, 6, 1, 5, 2, 4]
            inputs.class_logits = [level[:, order] for level in inputs.class_logits]
            moved = inputs.call(decode)
        assert_same(moved, straight._replace(scores=straight.scores[..., order]))

    def test_every_layout_gives_the_same(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            found = inputs.call(decode)
            for part in ("class_logits", "box_logits"):
                levels = getattr(inputs, part)
                setattr(inputs, part, [level.contiguous(memory_format=torch.channels_last) for level in levels])
            moved = inputs.call(decode)
        assert torch.equal(moved.points, found.points) and torch.equal(moved.scores, found.scores)
        # The order of a sum over the bins may differ, and its terms are far larger than it.
        torch.testing.assert_close(moved.boxes, found.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("backend", [name for name in KERNELS_ON_EVERY_SET if name == "cpu"])
class TestProcessor:
    def test_threads_change_nothing(self, backend: str) -> None:
        inputs = EVERYTHING.but(sizes=((60, 70), (23, 29)), pre_topk=700, kind="tied").inputs()
        before = torch.get_num_threads()
        try:
            with running(backend):
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(inputs.call(decode))
        finally:
            torch.set_num_threads(before)
        for found in results[1:]:
            assert_same(found, results[0])

    @pytest.mark.parametrize("layout", LEVEL_LAYOUTS)
    def test_float64(self, layout: str, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, class_dtype=F64, box_dtype=F64), backend)

    def test_pre_topk_has_no_limit(self, backend: str) -> None:
        case = Case(sizes=((80, 90),), pre_topk=5000, classes=2, bins=2, batch=1)
        with running(backend):
            inputs = case.inputs()
            found = inputs.call(decode)
        with gflv2.use_backend("reference"):
            want = inputs.call(decode)
        best = found.scores.amax(-1)
        assert (best[:, :-1] >= best[:, 1:]).all() and found.points.unique().numel() == 5000
        torch.testing.assert_close(best, want.scores.amax(-1))


@pytest.mark.parametrize("backend", KERNELS)
class TestHost:
    @pytest.mark.parametrize("case", few([EVERYTHING, Case(quality=False), EVERYTHING.but(batch=0)], 1), ids=str)
    def test_opcheck(self, case: Case, backend: str) -> None:
        with running(backend) as device, pytest.MonkeyPatch.context() as patch:
            calls = []
            patch.setattr(
                module._decode, "constant", lambda tensors, rest: calls.append((*tensors, *rest)) or [None] * 5
            )
            case.but(sizes=((6, 7), (2, 3))).inputs(device).call(decode)
            patch.undo()
            torch.library.opcheck(torch.ops.gflv2.decode.default, calls[0])

    def test_distributions_in_a_full_graph(self, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
            inputs = EVERYTHING.inputs(device)
            found = inputs.call(compiled)
            assert_same(found, inputs.call(decode))
            assert found.distributions is not None
            assert inputs.call(decode, return_distributions=False).distributions is None

    def test_other_sizes_in_one_graph(self, backend: str) -> None:
        """Levels that are sorted and levels that are not."""
        with running(backend) as device:
            torch._dynamo.reset()
            counter = torch._dynamo.testing.CompileCounter()
            compiled = torch.compile(decode, fullgraph=True, backend=counter, dynamic=True)
            for size in few((6, 7, 9, 11)):  # (a number that comes twice in the first would bind the graph to that)
                inputs = Case(sizes=((size, size + 2), (size - 2, 3)), scales=True).inputs(device)
                assert_same(inputs.call(compiled), inputs.call(decode))
        assert counter.frame_count == 1

    def test_nothing_is_differentiable(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            for tensor in inputs.tensors:
                if tensor.is_floating_point():
                    tensor.requires_grad_()
            found = inputs.call(decode)
        assert not any(part.requires_grad for part in found[:5])

    def test_refusals_have_words(self, backend: str) -> None:
        with running(backend) as device:
            cls, box = [torch.zeros(1, 2, 70, 70, device=device)], [torch.zeros(1, 8, 70, 70, device=device)]
            with pytest.raises(BackendError, match="only one is float64|float64 runs on cpu"):
                decode([cls[0].double()], box, strides=[8])
            if backend != "cpu":
                with pytest.raises(BackendError, match="pre_topk is 4500: at most 4096"):
                    decode(cls, box, strides=[8], pre_topk=4500)
        with gflv2.use_backend(None):
            reasons = gflv2.explain("decode", cls, box, strides=[8], pre_topk=4500)
        assert reasons[0].backend == "cuda" and not reasons[0].chosen

    def test_no_class_is_an_error(self, backend: str) -> None:
        with running(backend) as device, pytest.raises(ValueError, match="class_logits: expected at least one class"):
            decode([torch.zeros(1, 0, 2, 2, device=device)], [torch.zeros(1, 8, 2, 2, device=device)], strides=[8])

    def test_nms_takes_the_result(self, backend: str) -> None:
        """What follows, on the same tensors as the reference's."""
        with running(backend) as device:
            inputs = EVERYTHING.but(score_thr=0.3, spread=3.0).inputs(device)
            found = batched_nms(inputs.call(decode))
        with gflv2.use_backend("reference"):
            want = batched_nms(inputs.call(decode))
        for a, b in zip(found, want, strict=True):
            assert len(a.boxes) > 0 and torch.equal(a.labels, b.labels) and torch.equal(a.rows, b.rows)
            torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-5, atol=1e-3)
