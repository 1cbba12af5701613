"""``giou`` and ``iou`` on every backend against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gflv2.ops import giou, iou
from gflv2.ops.checks import compute_dtype
from gflv2.ops.giou import CIOU, GIOU, IOU
from gflv2.ops.implementation import implementation
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import giou as reference
from tests.ops.giou_cases import LAYOUTS, RELATIONS, Case, magnitudes
from tests.ops.memory import assert_written, guarded
from tests.ops.row_losses import (
    FLOATS,
    REDUCTIONS,
    Call,
    KernelPromises,
    Promises,
    Reduced,
    check_parity,
    cotangent,
    results,
)
from tests.ops.under_test import EXAMPLES, backends_of, few, running

BACKENDS = backends_of("giou")
KERNELS = backends_of("giou", kernels_only=True)
ON_EVERY_SET = backends_of("giou", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("giou", kernels_only=True, every_set=True)
NO_SUM = Reduced(True, None, "none")
BOTH = pytest.mark.parametrize("reduced", [NO_SUM, None], ids=["giou", "iou"])


def check(case: Case, backend: str) -> None:
    function, definition = (giou, reference.giou) if case.reduced else (iou, reference.iou)
    check_parity("giou", function, definition, case.call(), magnitudes, backend, case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @BOTH
    @pytest.mark.parametrize("dtype", few(FLOATS, 2), ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, reduced: Reduced | None, backend: str) -> None:
        check(Case(layout=layout, dtype=dtype, reduced=reduced), backend)

    @BOTH
    @pytest.mark.parametrize("relation", RELATIONS)
    def test_relations(self, relation: str, reduced: Reduced | None, backend: str) -> None:
        check(Case(relation=relation, reduced=reduced), backend)

    @pytest.mark.parametrize("layout", LAYOUTS[1:])
    def test_layouts_of_the_target(self, layout: str, backend: str) -> None:
        check(Case(target_layout=layout), backend)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_target_of_another_dtype(self, dtype: torch.dtype, backend: str) -> None:
        other = torch.float16 if dtype == torch.float32 else torch.float32
        check(Case(dtype=dtype, target_dtype=other, reduced=NO_SUM), backend)

    @pytest.mark.parametrize("rows", [1, 15, 16, 17, 127, 128, 129, 511, 512, 513, 5000])
    def test_rows_at_the_borders_of_blocks(self, rows: int, backend: str) -> None:
        check(Case(rows=rows), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), REDUCTIONS, ids=str)
    def test_reductions(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        check(Case(rows=150, reduced=Reduced(weighted, factor, reduction)), backend)

    @BOTH
    @pytest.mark.parametrize("eps", [1e-12, 1e-3, 4.0])
    def test_eps(self, eps: float, reduced: Reduced | None, backend: str) -> None:
        # Areas of whole numbers: a union or an enclosing box of exactly 4 shares its gradient with eps.
        check(Case(relation="grid", eps=eps, reduced=reduced), backend)

    def test_known_pairs(self, backend: str) -> None:
        with running(backend) as device:
            pred = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1]], device=device)
            target = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2], [1, 1, 1, 1]], device=device)
            losses, ious = giou(pred, target, reduction="none"), iou(pred, target)
        torch.testing.assert_close(ious.cpu(), torch.tensor([1, 1 / 3, 0, 0]))
        torch.testing.assert_close(losses.cpu(), torch.tensor([0, 2 / 3, 1 + 1 / 3, 1]))

    def test_a_wrong_box_spoils_no_other_row(self, backend: str) -> None:
        for wrong in (float("nan"), float("inf")):
            with running(backend) as device:
                call = Case(rows=150, reduced=NO_SUM).call().to(device)
                right = results(giou, call)
                call = call.map(torch.Tensor.detach)
                call.tensors["pred"][40] = wrong
                found = results(giou, call)
            others = torch.arange(150) != 40
            for name in right:
                assert torch.equal(found[name].cpu()[others], right[name].cpu()[others])
            assert found["output"][40].isnan()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        reduced = data.draw(st.none() | st.builds(lambda how: Reduced(*how), st.sampled_from(REDUCTIONS)))
        case = Case(
            layout=data.draw(st.sampled_from(LAYOUTS)),
            target_layout=data.draw(st.sampled_from(LAYOUTS)),
            dtype=data.draw(st.sampled_from(FLOATS)),
            target_dtype=data.draw(st.sampled_from(FLOATS)),
            rows=data.draw(st.integers(0, 130)),
            relation=data.draw(st.sampled_from([*RELATIONS, "any"])),
            reduced=reduced,
            eps=data.draw(st.sampled_from([1e-6, 1e-12, 1e-3])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @BOTH
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parity(self, layout: str, reduced: Reduced | None, backend: str) -> None:
        check(Case(layout=layout, dtype=torch.float64, reduced=reduced), backend)

    @pytest.mark.parametrize("relation", ["near", "apart", "huge"])
    @pytest.mark.parametrize("how", [*REDUCTIONS, None], ids=str)
    def test_gradcheck(self, how: tuple | None, relation: str, backend: str) -> None:
        reduced = Reduced(*how) if how else None
        call = Case(dtype=torch.float64, rows=5, relation=relation, reduced=reduced).call()
        function = giou if reduced else iou
        with running(backend):
            assert torch.autograd.gradcheck(lambda *boxes: function(*boxes, **call.keywords), call.trained())


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @BOTH
    @pytest.mark.parametrize("total", [False, True])
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_all_of_the_output_and_no_byte_beside_it(
        self, dtype: torch.dtype, total: bool, reduced: Reduced | None, backend: str
    ) -> None:
        form, kind = GIOU if reduced else IOU, compute_dtype(dtype)
        with running(backend) as device:
            call = Case(layout="sliced", dtype=dtype, reduced=NO_SUM).call().to(device)
            pred, target = call.tensors["pred"], call.tensors["target"].to(kind).contiguous()
            how = Reduction(call.keywords["weight"], None, 1.0, "sum" if total else "none")
            arguments = (pred, target, how.weight, None, form, 1e-6, 1.0, how.reduction, backend)
            want = torch.ops.gflv2.giou(*arguments)
            grads = torch.ops.gflv2.giou_backward(cotangent(want), *arguments, [True, True])
            kernels = implementation("giou", backend)
            written = [guarded(tensor) for tensor in (want, *grads)]
            out, *found = (tensor for tensor, _ in written)
            inputs = {"pred": pred, "target": target, "form": form, "eps": 1e-6, "reduction": how}
            kernels.giou_forward(**inputs, out=out)
            kernels.giou_backward(grad=cotangent(want), **inputs, grad_pred=found[0], grad_target=found[1])
            assert_written(written, [want, *grads])
            if backend == "cpu":
                grads = torch.ops.gflv2.giou_backward(torch.ones_like(want), *arguments, [True, True])
                written = [guarded(tensor) for tensor in (want, *grads)]
                out, *found = (tensor for tensor, _ in written)
                kernels.giou_backward(grad=None, **inputs, grad_pred=found[0], grad_target=found[1], out=out)
                assert_written(written, [want, *grads])


class Giou:
    op = "giou"
    function = staticmethod(giou)
    reference = staticmethod(reference.giou)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return Case(dtype=dtype, rows=rows, reduced=Reduced(True, factor, reduction)).call()


class Iou:
    op = "iou"
    function = staticmethod(iou)
    reference = staticmethod(reference.iou)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "none") -> Call:
        return Case(dtype=dtype, rows=rows, reduced=None).call()


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromisesOfGiou(Giou, Promises):
    pass


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromisesOfIou(Iou, Promises):
    pass


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromisesOfIou(Iou, KernelPromises):
    pass


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromisesOfGiou(Giou, KernelPromises):
    @pytest.mark.parametrize("form", [GIOU, IOU, CIOU])
    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    def test_opcheck(self, reduction: str, form: int, backend: str) -> None:
        with running(backend) as device:
            call = Case(rows=6, dtype=torch.float16).call().to(device)
            tensors = (*call.tensors.values(), call.keywords["weight"], call.keywords["avg_factor"])
            arguments = (*tensors, form, 1e-6, 1.0, reduction, backend)
            torch.library.opcheck(torch.ops.gflv2.giou.default, arguments)
            upstream = torch.ones_like(torch.ops.gflv2.giou(*arguments))
            for needs in ([True, True], [True, False], [False, True]):
                torch.library.opcheck(torch.ops.gflv2.giou_backward.default, (upstream, *arguments, needs))


class TestArguments:
    """Errors name the argument, what was expected and what came."""

    BOXES = torch.zeros(3, 4)

    @pytest.mark.parametrize("function", [giou, iou])
    @pytest.mark.parametrize(
        ("pred", "target", "keywords", "error", "message"),
        [
            (torch.zeros(3, 5), BOXES, {}, ValueError, r"pred: .*\(\*, 4\).*\(3, 5\)"),
            (torch.zeros(1, 3, 4), BOXES, {}, ValueError, r"pred: .*\(\*, 4\).*\(1, 3, 4\)"),
            ([[0.0, 0, 1, 1]], BOXES, {}, TypeError, "pred: expected a tensor, got"),
            (BOXES.int(), BOXES, {}, TypeError, "pred: .*float32.*int32"),
            (BOXES, torch.zeros(1, 4), {}, ValueError, r"target: .*\(3, 4\).*\(1, 4\)"),
            (BOXES, BOXES.long(), {}, TypeError, "target: .*float32.*int64"),
            (BOXES, torch.zeros(3, 4, device="meta"), {}, ValueError, "target: .*cpu.*meta"),
            (BOXES, BOXES, {"eps": 0.0}, ValueError, "eps: .*number > 0.*0.0"),
            (BOXES, BOXES, {"eps": float("nan")}, ValueError, "eps: .*number > 0.*nan"),
        ],
    )
    def test_errors(self, function, pred: Tensor, target: Tensor, keywords: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            function(pred, target, **keywords)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"weight": torch.zeros(4)}, r"weight: .*\(3\).*\(4,\)"),
            ({"avg_factor": 2.0, "reduction": "sum"}, "avg_factor: .*None.*sum"),
            ({"avg_factor": -1.0}, "avg_factor: .*positive number.*-1.0"),
            ({"reduction": "max"}, "reduction: .*'none'.*'max'"),
        ],
    )
    def test_errors_of_the_reduction(self, keywords: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            giou(self.BOXES, self.BOXES, **keywords)
