"""``qfl`` on every backend against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gflv2.ops import qfl
from gflv2.ops.implementation import implementation
from gflv2.ops.one_pass import one_pass
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import qfl as reference
from tests.ops.layouts import LEVEL_LAYOUTS
from tests.ops.memory import assert_written, guarded
from tests.ops.qfl_cases import FORMS, LABELS, ROW_LAYOUTS, Case, adapted, magnitudes
from tests.ops.row_losses import (
    FLOATS,
    REDUCTIONS,
    Call,
    KernelPromises,
    Promises,
    Reduced,
    assert_same,
    check_parity,
    cotangent,
    results,
)
from tests.ops.under_test import EXAMPLES, INTERPRETED, backends_of, few, running

BACKENDS = backends_of("qfl")
KERNELS = backends_of("qfl", kernels_only=True)
ON_EVERY_SET = backends_of("qfl", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("qfl", kernels_only=True, every_set=True)
MAIN_LAYOUTS = ("nchw", "channels_last", "rows")
LAYOUTS = (*LEVEL_LAYOUTS, *ROW_LAYOUTS)
# Under the interpreter the other layouts are tested in one dtype only.
LAYOUTS_AND_DTYPES = [
    (layout, dtype)
    for layout in LAYOUTS
    for dtype in FLOATS
    if layout in MAIN_LAYOUTS or dtype == torch.bfloat16 or not INTERPRETED
]
# Several blocks in the first level, whatever the kernel; the interpreter pays for every block.
LARGE = Case(sizes=((23, 25), (0, 4), (1, 1))) if INTERPRETED else Case()
SMALL = Case(sizes=((5, 6), (2, 3)), rows=40, classes=7)
NONE = Reduced(True, None, "none")
fused, defined = adapted(qfl), adapted(reference.qfl)


def check(case: Case, backend: str) -> None:
    def sizes(call: Call) -> dict[str, Tensor]:
        # Exponentials end at e^±87, so that ratios of far logits are off by up to e^−47, in slopes of up to 1.
        exact = results(defined, call.converted(torch.float64))
        least = {name: value.abs().max().clamp(min=1e-12) for name, value in exact.items() if value.numel()}
        return least | magnitudes(call)

    check_parity("qfl", fused, defined, case.call(), sizes, backend, case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize(("layout", "dtype"), LAYOUTS_AND_DTYPES, ids=str)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        check(LARGE.but(layout=layout, dtype=dtype), backend)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("beta", few([2.0, 0.5, 0.0, 1.0, 1.5, 3.0], 2))
    @pytest.mark.parametrize(("layout", "dense"), [("nchw", False), ("rows", False), ("rows", True)])
    def test_forms_and_exponents(self, layout: str, dense: bool, beta: float, form: str, backend: str) -> None:
        check(SMALL.but(layout=layout, dense=dense, beta=beta, form=form, centre=0.0, reduced=NONE), backend)

    @pytest.mark.parametrize("layout", ROW_LAYOUTS)
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_dense_targets(self, dtype: torch.dtype, layout: str, backend: str) -> None:
        check(SMALL.but(layout=layout, dense=True, dtype=dtype), backend)

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("classes", few([1, 300, 3, 2, 4, 8, 15, 16, 17, 33, 80, 100, 1203], 2))
    def test_classes(self, classes: int, layout: str, backend: str) -> None:
        check(Case(layout=layout, classes=classes, batch=1, sizes=((7, 6), (2, 3)), rows=45, reduced=NONE), backend)

    def test_thousands_of_classes_in_one_row(self, backend: str) -> None:
        check(Case(layout="rows", classes=9000, rows=3), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), few(REDUCTIONS, 3), ids=str)
    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    def test_reductions(self, layout: str, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        check(SMALL.but(layout=layout, reduced=Reduced(weighted, factor, reduction)), backend)

    @pytest.mark.parametrize("labels", LABELS)
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    def test_labels(self, layout: str, labels: str, backend: str) -> None:
        check((SMALL if INTERPRETED else LARGE).but(layout=layout, labels=labels), backend)

    @pytest.mark.parametrize("count", few([8, 1, 2, 3, 4, 5, 6, 7], 1))
    def test_number_of_levels(self, count: int, backend: str) -> None:
        check(Case(sizes=tuple((2 + level, 3) for level in range(count))), backend)

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("spread", few([1e4, 30.0, 0.0, 300.0], 1))
    @pytest.mark.parametrize("form", ["class_logits", "logits"])
    def test_huge_logits(self, form: str, spread: float, layout: str, backend: str) -> None:
        check(SMALL.but(layout=layout, form=form, spread=spread, centre=0.0, reduced=NONE), backend)

    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    def test_every_pair_of_far_logits(self, layout: str, backend: str) -> None:
        """1 − J, J and the slopes at the limits of the exponential, and where class and quality change places."""
        ends = torch.tensor([0.0, 5.0, 39.0, 41.0, 60.0, 86.0, 88.0, 120.0, 300.0, 6e4])
        ends = torch.cat([-ends.flip(0), ends])
        values = ends.expand(len(ends), -1)[None] if layout == "nchw" else ends.expand(len(ends), -1)
        values = values.mT[:, :, :, None].contiguous() if layout == "nchw" else values.contiguous()
        shape = (1, len(ends)) if layout == "nchw" else (len(ends),)
        for label in (-1, 3, 16):
            call = Call(
                {
                    "values": values.clone(),
                    "quality_logits": ends.clone().reshape(shape),
                    "labels": torch.full(shape, label),
                    "scores": torch.full(shape, 0.7),
                },
                {
                    **NONE.keywords(0, torch.float32, torch.Generator()),
                    "form": "class_logits",
                    "levels": 1,
                    "beta": 2.0,
                },
                ("values", "quality_logits"),
            )
            call.keywords.update(weight=None, levels=int(layout == "nchw"))
            check_parity("qfl", fused, defined, call, lambda _: {}, backend, label)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_classes_and_quality_of_different_dtypes(self, dtype: torch.dtype, backend: str) -> None:
        check(SMALL.but(quality_dtype=dtype), backend)
        check(SMALL.but(dtype=torch.bfloat16, quality_dtype=dtype), backend)

    def test_labels_of_32_bits(self, backend: str) -> None:
        with running(backend) as device:
            call = SMALL.but(reduced=NONE).call().to(device)
            long = call(fused)
            call.tensors["labels"] = call.tensors["labels"].int()
            assert torch.equal(long, call(fused))

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("beta", few([2.0, 0.0, 1.5], 1))
    def test_what_is_not_a_number_stays_in_its_row(self, beta: float, layout: str, form: str, backend: str) -> None:
        case = SMALL.but(layout=layout, form=form, beta=beta, reduced=NONE)
        element, row = ((3, 2), (3,)) if case.by_rows else ((0, 2, 1, 3), (0, 9))  # class 2; of level 0, y = 1, x = 3
        with running(backend) as device:
            right = results(fused, case.call().to(device))
            call = case.call().to(device)
            name = next(iter(call.tensors))
            call.tensors[name][element] = torch.nan
            found = results(fused, call)
        assert found["output"][row].isnan() and found[f"grad of {name}"][element].isnan()
        for key in right:
            wrong = (found[key] != right[key]).nonzero().tolist()
            assert set(map(tuple, wrong)) <= {element, row}, key

    @pytest.mark.parametrize(
        "case",
        [
            SMALL.but(batch=0),
            SMALL.but(sizes=((0, 0), (0, 3))),
            SMALL.but(layout="channels_last", batch=0),
            SMALL.but(layout="rows", rows=0),
            SMALL.but(layout="rows", rows=0, dense=True),
            SMALL.but(layout="rows", classes=0),
        ],
        ids=["no image", "no cell", "no image, channels_last", "no row", "no row, dense", "no class"],
    )
    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    def test_empty(self, reduction: str, case: Case, backend: str) -> None:
        case = case.but(reduced=Reduced(True, None, reduction))
        check(case, backend)
        with running(backend) as device:
            found = results(fused, case.call().to(device))
        assert float(found["output"].abs().sum()) == 0  # written, not left as it was allocated
        assert float(found["grad of quality_logits"].abs().sum()) == 0

    @pytest.mark.parametrize("factor", [0.0, torch.nan, torch.inf])
    @pytest.mark.parametrize(
        "case",
        [SMALL.but(batch=0), SMALL.but(layout="rows", rows=0), SMALL.but(layout="rows", classes=0)],
        ids=["no image", "no row", "no class"],
    )
    def test_empty_with_any_average_factor(self, case: Case, factor: float, backend: str) -> None:
        with running(backend) as device:
            call = case.call().to(device)
            call.keywords.update(avg_factor=torch.tensor(factor, device=device), reduction="mean")
            found = results(fused, call)
        assert found["output"].shape == () and float(found["output"]) == 0
        assert all(float(gradient.abs().sum()) == 0 for name, gradient in found.items() if name != "output")

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        layout = data.draw(st.sampled_from(LAYOUTS))
        case = Case(
            layout=layout,
            dtype=data.draw(st.sampled_from(FLOATS)),
            form=data.draw(st.sampled_from(FORMS)),
            quality_dtype=data.draw(st.sampled_from([None, *FLOATS])),
            classes=data.draw(st.integers(1, 40)),
            labels=data.draw(st.sampled_from(LABELS)),
            dense=layout.startswith("rows") and data.draw(st.booleans()),
            beta=data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.5, 4.0])),
            reduced=Reduced(*data.draw(st.sampled_from(REDUCTIONS))),
            batch=data.draw(st.integers(0, 3)),
            sizes=tuple(data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))),
            rows=data.draw(st.integers(0, 130)),
            spread=data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e4])),
            centre=data.draw(st.sampled_from([-5.0, 0.0, 5.0])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


# Class logit, quality logit and target of a point, in every combination.
ENDS = torch.tensor([-torch.inf, -3.0, 0.0, 2.0, 50.0, torch.inf])
TARGETS = torch.tensor([0.0, 0.3, 1.0])
OWN, CLASSES = 2, 9  # the class that the grid is about, of so many; the others are ruled out by −∞


def infinite(form: str, layout: str, target: str, beta: float, dtype: torch.dtype) -> Call:
    """The 108 points of the grid.

    Args:
        target: "background": y is 0 by its label; "labels", "dense": as the grid has it.
    """
    c, r, y = torch.cartesian_prod(ENDS, ENDS, TARGETS).unbind(1)
    values = torch.full((len(c), CLASSES), -torch.inf)
    values[:, OWN] = c
    shape = (len(c),)
    if layout != "rows":
        values, shape = values.T.reshape(1, CLASSES, 9, 12), (1, len(c))
        last = layout == "channels_last"
        values = values.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    tensors = {"values": values.to(dtype)}
    if form == "class_logits":
        tensors["quality_logits"] = r.reshape(shape).to(dtype)
    if target == "dense":
        tensors["target"] = torch.zeros(len(c), CLASSES)
        tensors["target"][:, OWN] = y
    else:
        tensors["labels"] = torch.full(shape, -1 if target == "background" else OWN)
        tensors["scores"] = y.reshape(shape)
    keywords = {"form": form, "levels": int(layout != "rows"), "beta": beta, "reduction": "none"}
    return Call(tensors, keywords, tuple(name for name in tensors if name in ("values", "quality_logits")))


def limits(form: str, target: str, beta: float) -> dict[str, Tensor]:
    """What the definition gives far out: the loss, ∞ where it is large there, and the gradients, by point."""
    c, r, y = torch.cartesian_prod(ENDS, ENDS, TARGETS).double().unbind(1)
    c, r = (logit.clamp(-1e4, 1e4).requires_grad_() for logit in (c, r))
    y = torch.zeros_like(y) if target == "background" else y
    quality = {"quality_logits": r} if form == "class_logits" else {}
    out = reference.qfl(y[:, None], **{form: c[:, None]}, **quality, beta=beta, reduction="none")
    leaves = [c, r][: 1 + len(quality)]
    gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
    values = torch.zeros(len(c), CLASSES, dtype=torch.float64)
    values[:, OWN] = gradients[0]
    found = {"output": torch.where(out.detach() > 60, torch.inf, out.detach()), "grad of values": values}
    return found | ({"grad of quality_logits": gradients[1]} if quality else {})


def check_infinite(form: str, layout: str, target: str, beta: float, dtype: torch.dtype, backend: str) -> None:
    with running(backend) as device:
        found = results(fused, infinite(form, layout, target, beta, dtype).to(device), upstream=torch.ones_like)
    want = limits(form, target, beta)
    assert want["output"].isinf().any() and found.keys() == want.keys()
    for name, value in found.items():
        if layout != "rows" and name == "grad of values":
            value = value.flatten(2)[0].T
        tolerance = max(torch.finfo(value.dtype).eps, 1e-6)
        torch.testing.assert_close(
            value.cpu().double().reshape(want[name].shape), want[name], rtol=2 * tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestInfiniteLogits:
    """The limit: 0, a number or ∞ for the loss, a number for every gradient."""

    @pytest.mark.parametrize("beta", few([2.0, 0.0, 0.5, 1.0, 3.0], 2))
    @pytest.mark.parametrize("target", ["background", "labels", "dense"])
    @pytest.mark.parametrize("form", ["class_logits", "logits"])
    def test_targets_and_exponents(self, form: str, target: str, beta: float, backend: str) -> None:
        check_infinite(form, "rows", target, beta, torch.float32, backend)

    @pytest.mark.parametrize("target", ["background", "labels"])
    @pytest.mark.parametrize("dtype", few(FLOATS, 2), ids=str)
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("form", ["class_logits", "logits"])
    def test_layouts_and_dtypes(self, form: str, layout: str, dtype: torch.dtype, target: str, backend: str) -> None:
        check_infinite(form, layout, target, 2.0, dtype, backend)

    @pytest.mark.parametrize("form", ["class_logits", "logits"])
    def test_a_target_whose_power_is_0(self, form: str, backend: str) -> None:
        with running(backend) as device:
            quality = {"quality_logits": torch.zeros(1, device=device)} if form == "class_logits" else {}
            logits = torch.full((1, 1), -torch.inf, device=device, requires_grad=True)
            target = (torch.zeros(1, device=device).long(), torch.full((1,), 1e-30, device=device))
            out = qfl(target, **{form: logits}, **quality, reduction="none")
            (gradient,) = torch.autograd.grad(out.sum(), logits)
        assert out.item() == torch.inf and gradient.item() == 0


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parity(self, layout: str, form: str, backend: str) -> None:
        check(SMALL.but(layout=layout, form=form, dtype=torch.float64), backend)

    @pytest.mark.parametrize("target", ["background", "labels", "dense"])
    @pytest.mark.parametrize("form", ["class_logits", "logits"])
    def test_infinite_logits(self, form: str, target: str, backend: str) -> None:
        for beta in (2.0, 0.5):
            check_infinite(form, "rows", target, beta, torch.float64, backend)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("beta", [0.0, 1.5, 2.0])
    @pytest.mark.parametrize(("layout", "dense"), [("nchw", False), ("rows", False), ("rows", True)])
    def test_gradcheck(self, layout: str, dense: bool, beta: float, form: str, backend: str) -> None:
        case = Case(layout, torch.float64, form, classes=3, dense=dense, beta=beta, batch=1, sizes=((2, 3), (1, 1)))
        # J = y is a kink for β = 0.
        call = case.but(rows=4, spread=1.0, reduced=NONE if beta else Reduced(True, "tensor", "mean")).call()
        if form == "probabilities" and dense:
            call.tensors["target"][:, 0] = 0.9
        with running(backend):
            leaves = call.trained()
            # Numerical differences are written into the leaves themselves, so that the call sees them.
            assert torch.autograd.gradcheck(lambda *_: call(fused), leaves)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "rows", "rows sliced"])
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    @pytest.mark.parametrize("reduction", ["none", "sum"])
    def test_all_of_the_output_and_no_byte_beside_it(
        self, reduction: str, dtype: torch.dtype, layout: str, backend: str
    ) -> None:
        with running(backend) as device:
            case = SMALL.but(layout=layout, dtype=dtype, labels="wild", reduced=Reduced(True, None, reduction))
            call = case.call().to(device)
            *values, quality, labels, scores = (tensor.detach() for tensor in call.tensors.values())
            together = one_pass(backend, reduction, [*values, quality])
            upstream = torch.ones_like if together else cotangent
            want = results(fused, call, upstream=upstream)
            kernels = implementation("qfl", backend)
            how = Reduction(call.keywords["weight"], None, 1.0, reduction)
            inputs = {"values": values, "quality": quality, "labels": labels, "scores": scores}
            inputs |= {"form": "class_logits", "beta": 2.0, "reduction": how}
            written = [guarded(tensor) for tensor in want.values()]
            out, *grad_values, grad_quality = (tensor for tensor, _ in written)
            kernels.qfl_forward(**inputs, out=out)
            kernels.qfl_backward(grad=upstream(out), **inputs, grad_values=grad_values, grad_quality=grad_quality)
            assert_written(written, want.values())
            if together:
                written = [guarded(tensor) for tensor in want.values()]
                out, *grad_values, grad_quality = (tensor for tensor, _ in written)
                gradients = {"grad_values": grad_values, "grad_quality": grad_quality}
                kernels.qfl_backward(grad=None, **inputs, **gradients, out=out)
                assert_written(written, want.values())


@pytest.mark.parametrize("backend", BACKENDS)
class TestLevels:
    """What `Promises` below shows with rows."""

    def test_gradient_of_one_level_alone(self, backend: str) -> None:
        with running(backend) as device:
            call = SMALL.call().to(device)
            want = results(fused, call)
            alone = replace(SMALL.call().to(device), leaves=("class_logits 1",))
            found = results(fused, alone)
        assert torch.equal(found["grad of class_logits 1"], want["grad of class_logits 1"])

    def test_rows_and_levels_are_the_same(self, backend: str) -> None:
        with running(backend) as device:
            level = torch.randn(2, 7, 5, 6, device=device)
            quality, scores = torch.randn(2, 30, device=device), torch.rand(2, 30, device=device)
            labels = torch.randint(-1, 9, (2, 30), device=device)
            one = qfl((labels, scores), class_logits=[level], quality_logits=quality, reduction="none")
            rows = level.flatten(2).mT.flatten(0, 1)
            target = (labels.flatten(), scores.flatten())
            other = qfl(target, class_logits=rows, quality_logits=quality.flatten(), reduction="none")
        torch.testing.assert_close(one.flatten(), other, rtol=2e-6, atol=1e-6)

    def test_permuted_images(self, backend: str) -> None:
        order = torch.tensor([2, 0, 1])
        with running(backend) as device:
            call = SMALL.but(batch=3, reduced=NONE).call().to(device)
            straight = call(fused)
            moved = call.map(lambda tensor: tensor[order.to(device)])(fused)
        assert torch.equal(moved, straight[order.to(device)])

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_other_image_sizes_in_one_graph(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
            for size in (4, 6, 9):
                case = SMALL.but(layout=layout, sizes=((size, size + 1), (size // 2, 2)))
                calls = [case.call().to(device) for _ in range(2)]
                assert_same(results(compiled, calls[0]), results(fused, calls[1]))


class Qfl:
    op = "qfl"
    function = staticmethod(fused)
    reference = staticmethod(defined)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return SMALL.but(layout="rows", dtype=dtype, rows=rows, reduced=Reduced(True, factor, reduction)).call()


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromises(Qfl, Promises):
    pass


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromises(Qfl, KernelPromises):
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("form", FORMS)
    def test_opcheck(self, form: str, layout: str, backend: str) -> None:
        with running(backend) as device:
            case = SMALL.but(layout=layout, form=form, dtype=torch.float16, rows=6, reduced=NONE)
            call = case.call().to(device)
            *values, labels, scores = call.tensors.values()
            quality = values.pop() if form == "class_logits" else None
            tensors = (values, quality, labels, scores, call.keywords["weight"], None)
            arguments = (*tensors, form, 2.0, 1.0, "none", backend)
            torch.library.opcheck(torch.ops.gflv2.qfl.default, arguments)
            upstream = torch.ones_like(torch.ops.gflv2.qfl(*arguments))
            for needs in [[True, quality is not None], [False, quality is not None]]:
                torch.library.opcheck(torch.ops.gflv2.qfl_backward.default, (upstream, *arguments, needs))


class TestArguments:
    """What `test_reference_errors` leaves out: levels."""

    LEVELS = [torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 2, 2)]
    TARGET = (torch.zeros(2, 24).long(), torch.zeros(2, 24))

    @pytest.mark.parametrize(
        ("target", "keywords", "error", "message"),
        [
            (torch.zeros(48, 3), {}, TypeError, r"target: .*with levels.*\(48, 3\)"),
            ((TARGET[0][:, :20], TARGET[1]), {}, ValueError, r"labels.*\(2, 24\).*\(2, 20\)"),
            ((TARGET[0], TARGET[1][:1]), {}, ValueError, r"scores.*\(2, 24\).*\(1, 24\)"),
            (TARGET, {"weight": torch.zeros(48)}, ValueError, r"weight: .*\(2, 24\).*\(48,\)"),
            (TARGET, {"quality_logits": torch.zeros(2, 23)}, ValueError, r"quality_logits: .*\(2, 24\).*\(2, 23\)"),
            (TARGET, {"quality_logits": None}, ValueError, "quality_logits: .*None"),
            (TARGET, {"class_logits": [LEVELS[0], LEVELS[1][:1]]}, ValueError, r"class_logits\[1\]: .*batch 2.*\(1, 3"),
            (TARGET, {"class_logits": [LEVELS[0][:, 0]]}, ValueError, r"class_logits\[0\]: .*\(2, 4, 5\)"),
            (TARGET, {"class_logits": []}, ValueError, "class_logits: .*1 to 8 levels"),
            (TARGET, {"class_logits": [LEVELS[0]] * 9}, ValueError, "class_logits: .*1 to 8 levels"),
            (TARGET, {"quality_logits": torch.zeros(2, 24, device="meta")}, ValueError, "quality_logits: .*cpu.*meta"),
        ],
    )
    def test_errors(self, target: object, keywords: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            qfl(target, **{"class_logits": self.LEVELS, "quality_logits": torch.zeros(2, 24), **keywords})

    def test_a_tensor_of_a_level_is_no_row(self) -> None:
        with pytest.raises(ValueError, match=r"class_logits: .*\(\*, \*\).*\(2, 3, 4, 5\)"):
            qfl(self.TARGET, class_logits=self.LEVELS[0], quality_logits=self.TARGET[1])

    def test_values_of_levels_are_checked_on_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GFLV2_CHECK", "1")
        with pytest.raises(ValueError, match="probabilities: .*1.5"):
            qfl(self.TARGET, probabilities=[self.LEVELS[0], self.LEVELS[1] + 1.5])
        wrong: Tensor = torch.full((2, 24), torch.nan)
        with pytest.raises(ValueError, match="target: "):
            qfl((self.TARGET[0], wrong), logits=self.LEVELS)
