"""``ciou`` on every backend against its definition, in both conventions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gflv2.ops import ciou, giou, iou
from gflv2.ops.checks import compute_dtype
from gflv2.ops.ciou import CONVENTIONS
from gflv2.ops.implementation import implementation
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import ciou as reference
from tests.ops import giou_cases
from tests.ops.ciou_cases import Case, magnitudes
from tests.ops.giou_cases import LAYOUTS, RELATIONS
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

BACKENDS = backends_of("ciou")
KERNELS = backends_of("ciou", kernels_only=True)
ON_EVERY_SET = backends_of("ciou", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("ciou", kernels_only=True, every_set=True)
NO_SUM = Reduced(True, None, "none")
BOTH = pytest.mark.parametrize("convention", CONVENTIONS)


def check(case: Case, backend: str) -> None:
    check_parity("ciou", ciou, reference.ciou, case.call(), magnitudes, backend, case)


def terms(pred: Tensor, target: Tensor, convention: str, eps: float = 1e-7) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, ρ²/c² and v, corner by corner."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = pred.unbind(1), target.unbind(1)
    common = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    common = common * (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    more = eps if convention == "ultralytics" else 0.0
    union = (x2 - x1) * (y2 - y1 + more) + (u2 - u1) * (v2 - v1 + more) - common + eps
    across = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) ** 2
    diagonal = across + (torch.maximum(y2, v2) - torch.minimum(y1, v1)) ** 2 + eps
    distance = ((x1 + x2 - u1 - u2) ** 2 + (y1 + y2 - v1 - v2) ** 2) / 4
    turn = torch.atan((u2 - u1) / (v2 - v1 + eps)) - torch.atan((x2 - x1) / (y2 - y1 + eps))
    return common / union, distance / diagonal, 4 / math.pi**2 * turn**2


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @BOTH
    @pytest.mark.parametrize("dtype", few(FLOATS, 2), ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, convention: str, backend: str) -> None:
        check(Case(layout=layout, dtype=dtype, reduced=NO_SUM, convention=convention), backend)

    @BOTH
    @pytest.mark.parametrize("relation", RELATIONS)
    def test_relations(self, relation: str, convention: str, backend: str) -> None:
        check(Case(relation=relation, reduced=NO_SUM, convention=convention), backend)

    @BOTH
    @pytest.mark.parametrize("rows", [1, 15, 16, 17, 127, 128, 129, 513])
    def test_rows_at_the_borders_of_blocks(self, rows: int, convention: str, backend: str) -> None:
        check(Case(rows=rows, convention=convention), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), REDUCTIONS, ids=str)
    def test_reductions(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        check(Case(rows=150, reduced=Reduced(weighted, factor, reduction)), backend)

    @BOTH
    @pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-3, 4.0])
    def test_eps(self, eps: float, convention: str, backend: str) -> None:
        check(Case(relation="grid", eps=eps, reduced=NO_SUM, convention=convention), backend)

    @BOTH
    def test_known_pairs(self, convention: str, backend: str) -> None:
        with running(backend) as device:
            target = torch.tensor([[0.0, 0, 2, 2]] * 4, device=device)
            pred = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2], [0, 0, 1, 2]], device=device)
            found = ciou(pred, target, reduction="none", convention=convention)
        # The last: half of the target, centres half apart, and a shape of its own.
        v = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
        share = 0 if convention == "mmdet" else v / (0.5 + v)  # mmdet: only where the IoU is above 1/2
        wanted = [0, 2 / 3 + 1 / 13, 1 + 16 / 40, 0.5 + 0.25 / 8 + share * v]
        torch.testing.assert_close(found.cpu(), torch.tensor(wanted))

    @BOTH
    def test_a_wrong_box_spoils_no_other_row(self, convention: str, backend: str) -> None:
        for wrong in (float("nan"), float("inf")):
            with running(backend) as device:
                call = Case(rows=150, reduced=NO_SUM, convention=convention).call().to(device)
                right = results(ciou, call)
                call = call.map(torch.Tensor.detach)
                call.tensors["pred"][40] = wrong
                found = results(ciou, call)
            others = torch.arange(150) != 40
            for name in right:
                assert torch.equal(found[name].cpu()[others], right[name].cpu()[others])
            assert found["output"][40].isnan()

    @pytest.mark.parametrize("loss", [*CONVENTIONS, "giou"])
    def test_the_largest_coordinates(self, loss: str, backend: str) -> None:
        """Of boxes to ±1e18 loss and gradients are those of float64."""
        function, case = (giou, giou_cases.Case()) if loss == "giou" else (ciou, Case(convention=loss))
        call = case.but(relation="near", rows=60, reduced=Reduced(False, None, "none")).call()
        call = call.map(lambda boxes: boxes * 5e16)
        with running(backend) as device:
            found = results(function, call.to(device))
        with running("reference"):
            wanted = results(function, call.converted(torch.float64))
        for name, value in wanted.items():
            size = float(value.abs().max())
            assert size > 0 and float((found[name].cpu() - value).abs().max()) < 1e-5 * size, name

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        case = Case(
            layout=data.draw(st.sampled_from(LAYOUTS)),
            target_layout=data.draw(st.sampled_from(LAYOUTS)),
            dtype=data.draw(st.sampled_from(FLOATS)),
            target_dtype=data.draw(st.sampled_from(FLOATS)),
            rows=data.draw(st.integers(0, 130)),
            relation=data.draw(st.sampled_from([*RELATIONS, "any"])),
            reduced=data.draw(st.builds(lambda how: Reduced(*how), st.sampled_from(REDUCTIONS))),
            eps=data.draw(st.sampled_from([1e-7, 1e-12, 1e-3])),
            seed=data.draw(st.integers(0, 2**16)),
            convention=data.draw(st.sampled_from(list(CONVENTIONS))),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
class TestProperties:
    @BOTH
    def test_equal_boxes_are_a_minimum(self, convention: str, backend: str) -> None:
        """mmdet's own α is 0/0 where the IoU rounds to 1."""
        with running(backend) as device:
            call = Case(relation="equal", rows=90, reduced=NO_SUM, convention=convention).call().to(device)
            found = results(ciou, call)
        assert float(found["output"].abs().max()) < 1e-6
        assert all(bool(found[f"grad of {name}"].isfinite().all()) for name in call.leaves)

    def test_boxes_of_one_shape_have_the_distance_alone(self, backend: str) -> None:
        """Squares: v is 0, and what is left is DIoU."""
        with running(backend) as device:
            corners, sides = torch.rand(2, 50, 2, device=device) * 20, 1 + 5 * torch.rand(2, 50, 1, device=device)
            pred, target = torch.cat([corners, corners + sides], -1)
            found = ciou(pred, target, reduction="none")
            centres = (pred[:, :2] + pred[:, 2:] - target[:, :2] - target[:, 2:]) / 2
            whole = torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])
            wanted = 1 - iou(pred, target) + centres.square().sum(-1) / whole.square().sum(-1)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    def test_the_share_is_a_constant(self, backend: str) -> None:
        """A step along the gradient of the shape alone: α·∂v, and not ∂(α·v)."""
        with running(backend) as device:
            pred = torch.tensor([[0.0, 0, 2, 4]], device=device, requires_grad=True)
            target = torch.tensor([[-50.0, 80, -46, 81]], device=device)  # apart: α = v / (1 + v)
            (found,) = torch.autograd.grad(ciou(pred, target, eps=1e-12), pred)
            far = target + torch.tensor([3.0, 2, 3, 2], device=device)
            (other,) = torch.autograd.grad(ciou(pred, far, eps=1e-12), pred)
        turn = math.atan(4) - math.atan(0.5)
        v = 4 / math.pi**2 * turn**2
        by_width = v / (1 + v) * -8 / math.pi**2 * turn * 4 / (4 + 16)

        def by_distance(goal: list[float]) -> float:
            low, high = 0.0, 2.0
            across = (max(high, goal[2]) - min(low, goal[0]), max(4, goal[3]) - min(0, goal[1]))
            centre = ((goal[0] + goal[2]) / 2 - 1, (goal[1] + goal[3]) / 2 - 2)
            diagonal = across[0] ** 2 + across[1] ** 2
            distance = centre[0] ** 2 + centre[1] ** 2
            # Growing by 1 to the right moves the centre by half, and widens the whole if pred ends it there.
            return -centre[0] / diagonal - distance / diagonal**2 * 2 * across[0] * (high > goal[2])

        for gradient, goal in ((found, target), (other, far)):
            assert float(gradient[0, 2]) == pytest.approx(by_width + by_distance(goal[0].tolist()), rel=1e-4)

    def test_mmdet_keeps_within_two(self, backend: str) -> None:
        """Only boxes with x2 < x1 go beyond; their gradient ends there."""
        with running(backend) as device:
            pred = torch.tensor([[100.0, 0, 0, 3], [0, 0, 1, 1]], device=device, requires_grad=True)
            target = torch.tensor([[2.0, 0, 3, 3], [9000, 9000, 9001, 9001]], device=device)
            limited = ciou(pred, target, reduction="none", convention="mmdet")
            (gradient,) = torch.autograd.grad(limited.sum(), pred)
            free = ciou(pred, target, reduction="none")
        assert limited[0] == 2 and free[0] > 3 and bool((gradient[0] == 0).all())
        assert limited[1] < 2 and bool((gradient[1] != 0).any())


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @BOTH
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parity(self, layout: str, convention: str, backend: str) -> None:
        check(Case(layout=layout, dtype=torch.float64, reduced=NO_SUM, convention=convention), backend)

    @BOTH
    @pytest.mark.parametrize("relation", ["near", "apart", "inside"])
    def test_gradients_by_differences(self, relation: str, convention: str, backend: str) -> None:
        """gradcheck would let α move; here it is what it was at the place."""
        call = Case(dtype=torch.float64, rows=6, relation=relation, reduced=NO_SUM, convention=convention).call()
        boxes = [box.detach().clone() for box in call.tensors.values()]
        with running(backend):
            found = results(ciou, call)
        overlap, _, v = terms(*boxes, convention)
        share = v / (1 - overlap + v)
        share *= overlap > 0.5 if convention == "mmdet" else 1.0

        def losses(*boxes: Tensor) -> Tensor:
            overlap, distance, v = terms(*boxes, convention)
            return 1 - overlap + distance + share * v

        torch.testing.assert_close(found["output"], losses(*boxes) * call.keywords["weight"])
        upstream = call.keywords["weight"] * cotangent(found["output"])
        for name, moved in zip(call.leaves, (0, 1), strict=True):
            slopes = []
            for step in 1e-5 * torch.eye(4, dtype=torch.float64):
                ends = [losses(*(box + sign * step * (k == moved) for k, box in enumerate(boxes))) for sign in (1, -1)]
                slopes.append((ends[0] - ends[1]) / 2e-5)
            wanted = torch.stack(slopes, dim=-1) * upstream[:, None]
            torch.testing.assert_close(found[f"grad of {name}"], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @BOTH
    @pytest.mark.parametrize("total", [False, True])
    def test_all_of_the_output_and_no_byte_beside_it(self, total: bool, convention: str, backend: str) -> None:
        form = CONVENTIONS[convention]
        with running(backend) as device:
            call = Case(layout="sliced", dtype=torch.float16, reduced=NO_SUM).call().to(device)
            pred, target = call.tensors["pred"], call.tensors["target"].to(compute_dtype(torch.float16)).contiguous()
            how = Reduction(call.keywords["weight"], None, 1.0, "sum" if total else "none")
            arguments = (pred, target, how.weight, None, form, 1e-7, 1.0, how.reduction, backend)
            want = torch.ops.gflv2.giou(*arguments)
            grads = torch.ops.gflv2.giou_backward(cotangent(want), *arguments, [True, True])
            kernels = implementation("giou", backend)
            written = [guarded(tensor) for tensor in (want, *grads)]
            out, *found = (tensor for tensor, _ in written)
            inputs = {"pred": pred, "target": target, "form": form, "eps": 1e-7, "reduction": how}
            kernels.giou_forward(**inputs, out=out)
            kernels.giou_backward(grad=cotangent(want), **inputs, grad_pred=found[0], grad_target=found[1])
            assert_written(written, [want, *grads])


class Ciou:
    op = "ciou"
    function = staticmethod(ciou)
    reference = staticmethod(reference.ciou)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return Case(dtype=dtype, rows=rows, reduced=Reduced(True, factor, reduction)).call()


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromises(Ciou, Promises):
    pass


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromises(Ciou, KernelPromises):
    pass


class TestArguments:
    BOXES = torch.zeros(3, 4)

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"target": torch.zeros(1, 4)}, ValueError, r"target: .*\(3, 4\).*\(1, 4\)"),
            ({"eps": 0.0}, ValueError, "eps: .*number > 0.*0.0"),
            ({"convention": "yolo"}, ValueError, "convention: .*'ultralytics'.*'mmdet'.*'yolo'"),
            ({"convention": 1}, ValueError, "convention: .*'ultralytics'.*1"),
            ({"reduction": "max"}, ValueError, "reduction: .*'none'.*'max'"),
        ],
    )
    def test_errors(self, keywords: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            ciou(**{"pred": self.BOXES, "target": self.BOXES, **keywords})

    def test_it_is_not_giou(self) -> None:
        pred, target = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 4]])
        assert ciou(pred, target) != giou(pred, target)
