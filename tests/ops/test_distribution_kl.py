"""``distribution_kl`` on every backend against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gflv2.ops import distribution_kl
from gflv2.ops.implementation import implementation
from gflv2.ops.one_pass import one_pass
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import distribution_kl as reference
from tests.ops.dfl_cases import LAYOUTS
from tests.ops.distribution_kl_cases import TEACHERS, Case, magnitudes
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
from tests.ops.under_test import EXAMPLES, INTERPRETED, backends_of, few, running

BACKENDS = backends_of("distribution_kl")
KERNELS = backends_of("distribution_kl", kernels_only=True)
ON_EVERY_SET = backends_of("distribution_kl", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("distribution_kl", kernels_only=True, every_set=True)
# Dtypes of the student's and the teacher's logits.
MIXED = [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16)]
NONE = Reduced(True, None, "none")


def check(case: Case, backend: str) -> None:
    check_parity("distribution_kl", distribution_kl, reference.distribution_kl, case.call(), magnitudes, backend, case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        check(Case(layout=layout, teacher_layout=layout, dtype=dtype), backend)

    @pytest.mark.parametrize("layout", ["dense", "bins apart"])
    @pytest.mark.parametrize("dtypes", MIXED, ids=str)
    def test_a_teacher_of_another_dtype_and_layout(self, dtypes: tuple, layout: str, backend: str) -> None:
        other = "steps" if layout == "dense" else "expanded"
        check(Case(layout, dtypes[0], other, dtypes[1], bins=16, rows=150), backend)

    @pytest.mark.parametrize("bins", [2, 3, 8, 32, 33, 64, 65])
    def test_bins(self, bins: int, backend: str) -> None:
        check(Case(bins=bins, rows=150), backend)

    @pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65, 511, 512, 513])
    def test_rows_at_the_borders_of_blocks(self, rows: int, backend: str) -> None:
        check(Case(rows=rows, bins=5), backend)

    @pytest.mark.skipif(INTERPRETED, reason="thousands of programs, which the interpreter runs one by one")
    def test_a_total_of_more_blocks_than_one_of_them_adds_up(self, backend: str) -> None:
        """CUDA: from 131,073 rows on, a second launch does."""
        check(Case(rows=131_073, bins=2), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), REDUCTIONS, ids=str)
    def test_reductions(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        check(Case(rows=150, reduced=Reduced(weighted, factor, reduction)), backend)

    @pytest.mark.parametrize("teacher", TEACHERS)
    @pytest.mark.parametrize("temperature", [0.5, 1, 40.0])
    def test_temperatures_and_teachers(self, temperature: float, teacher: str, backend: str) -> None:
        check(Case(temperature=temperature, teacher=teacher, rows=150, reduced=NONE), backend)

    @pytest.mark.parametrize("temperature", [1.0, 10.0])
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_huge_logits(self, dtype: torch.dtype, temperature: float, backend: str) -> None:
        check(Case(dtype=dtype, spread=1e4, rows=150, temperature=temperature, reduced=NONE), backend)

    @pytest.mark.parametrize("temperature", [1.0, 10.0, 0.25])
    def test_by_hand(self, temperature: float, backend: str) -> None:
        """Of P_s = (1/4, 3/4) and P_t = (1/2, 1/2) the divergence is ½·log(4/3), and P_s − P_t = (−1/4, 1/4)."""
        with running(backend) as device:
            logits = torch.tensor([[5.0, 5.0 + temperature * math.log(3)]], device=device).requires_grad_()
            loss = distribution_kl(logits, torch.zeros(1, 2, device=device), temperature=temperature)
            (slope,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss.item(), temperature**2 / 2 * math.log(4 / 3) / 2, rtol=2e-6, atol=0)
        quarter = torch.tensor([[-0.25, 0.25]]) * temperature / 2
        torch.testing.assert_close(slope.cpu(), quarter, rtol=2e-6, atol=0)

    def test_torchs_divergence_at_the_default_temperature(self, backend: str) -> None:
        """As LD and mmdet compute it: elements of torch's kl_div, their mean over the bins, times T²."""
        with running(backend) as device:
            call = Case(rows=60, reduced=Reduced(False, None, "mean")).call().to(device)
            del call.keywords["temperature"]  # mmdet's default is ours: 10
            found = results(distribution_kl, call)

        def theirs(logits: Tensor, teacher: Tensor, *, weight: None, avg_factor: None, reduction: str) -> Tensor:
            elements = F.kl_div(F.log_softmax(logits / 10, 1), F.softmax(teacher / 10, 1), reduction="none")
            return (elements.mean(1) * 10 * 10).mean()

        want = results(theirs, call.converted(torch.float64))
        for name in want:
            torch.testing.assert_close(found[name].cpu().double(), want[name], rtol=1e-5, atol=1e-9)

    def test_nothing_is_lacking_where_both_are_equal(self, backend: str) -> None:
        with running(backend) as device:
            found = results(distribution_kl, Case(teacher="equal", reduced=NONE).call().to(device))
        # A GPU's compiler may fuse one of the two products, and then its rounding is left over.
        assert float(found["output"].abs().max()) <= 1e-6
        assert float(found["grad of logits"].abs().max()) <= 1e-7

    def test_impossible_bins(self, backend: str) -> None:
        """A logit of −∞ costs nothing where the teacher rules the bin out, and everything where it does not."""
        inf = torch.inf
        logits = [[-inf, 0.0, 0.0, -inf], [2.0, 0.0, 0.0, 2.0], [-inf, 0.0, 0.0, 0.0]]
        teacher = [[-inf, 0.0, 0.0, -inf], [-inf, 0.0, 0.0, -inf], [0.0, 0.0, 0.0, 0.0]]
        with running(backend) as device:
            rows = torch.tensor(logits, device=device).requires_grad_()
            loss = distribution_kl(rows, torch.tensor(teacher, device=device), temperature=1.0, reduction="none")
            (slope,) = torch.autograd.grad(loss[:2].sum(), rows)
        want = [0.0, (-math.log(0.5) + math.log(2 + 2 * math.e**2) - math.log(2) - math.log(2)) / 4, inf]
        torch.testing.assert_close(loss.tolist(), want, rtol=1e-5, atol=1e-7)
        p = torch.tensor([2.0, 0.0, 0.0, 2.0]).softmax(0)
        steps = torch.stack([torch.zeros(4), p - torch.tensor([0.0, 0.5, 0.5, 0.0]), torch.zeros(4)]) / 4
        torch.testing.assert_close(slope.cpu(), steps, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("side", ["logits", "teacher_logits"])
    def test_a_nan_spoils_its_row(self, side: str, backend: str) -> None:
        with running(backend) as device:
            call = Case(rows=40, reduced=NONE).call().to(device)
            call.tensors[side][20, 3] = call.tensors[side][30, 16] = torch.nan
            found = results(distribution_kl, call)
        assert found["output"].isnan().nonzero().flatten().tolist() == [20, 30]
        assert found["grad of logits"].isnan().all(1).nonzero().flatten().tolist() == [20, 30]
        assert found["grad of logits"].isnan().any(1).nonzero().flatten().tolist() == [20, 30]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        case = Case(
            layout=data.draw(st.sampled_from(LAYOUTS)),
            dtype=data.draw(st.sampled_from(FLOATS)),
            teacher_layout=data.draw(st.sampled_from(LAYOUTS)),
            teacher_dtype=data.draw(st.sampled_from(FLOATS)),
            teacher=data.draw(st.sampled_from(TEACHERS)),
            bins=data.draw(st.integers(2, 65)),
            rows=data.draw(st.integers(0, 130)),
            temperature=data.draw(st.sampled_from([0.3, 1.0, 2.0, 10.0, 100.0])),
            reduced=Reduced(*data.draw(st.sampled_from(REDUCTIONS))),
            spread=data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e4])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @pytest.mark.parametrize("teacher_dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_parity(self, teacher_dtype: torch.dtype, backend: str) -> None:
        check(Case("sliced", torch.float64, "bins apart", teacher_dtype), backend)

    def test_a_teacher_in_double(self, backend: str) -> None:
        """It is rounded to float32 for float32 logits."""
        case = Case(teacher_dtype=torch.float64, reduced=NONE)
        call, rounded = case.call(), case.call()
        rounded.tensors["teacher_logits"] = rounded.tensors["teacher_logits"].float()
        with running(backend):
            found, want = results(distribution_kl, call), results(distribution_kl, rounded)
        for name in want:
            torch.testing.assert_close(found[name], want[name], rtol=0, atol=0)

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_gradcheck(self, reduction: str, backend: str) -> None:
        reduced = Reduced(True, "number", reduction)
        call = Case(dtype=torch.float64, bins=5, rows=7, temperature=2.0, reduced=reduced).call()
        (logits,) = call.trained()
        with running(backend):
            assert torch.autograd.gradcheck(
                lambda z: distribution_kl(z, call.tensors["teacher_logits"], **call.keywords), logits
            )


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    @pytest.mark.parametrize("layout", ["dense", "bins apart"])
    @pytest.mark.parametrize("dtypes", few([(torch.float32, torch.float32), *MIXED], 1), ids=str)
    def test_all_of_the_output_and_no_byte_beside_it(
        self, dtypes: tuple, layout: str, reduction: str, backend: str
    ) -> None:
        case = Case(layout, dtypes[0], "sliced", dtypes[1], reduced=Reduced(True, None, reduction))
        with running(backend) as device:
            call = case.call().to(device)
            together = one_pass(backend, reduction, [call.tensors["logits"]])
            upstream = torch.ones_like if together else cotangent
            want = results(distribution_kl, call, upstream=upstream)
            kernels = implementation("distribution_kl", backend)
            logits, teacher = (tensor.detach() for tensor in call.tensors.values())
            how = Reduction(call.keywords["weight"], None, 1.0, reduction)
            inputs = {"logits": logits, "teacher": teacher, "temperature": case.temperature, "reduction": how}
            written = [guarded(want["output"]), guarded(logits)]
            (out, _), (grad, _) = written
            kernels.distribution_kl_forward(**inputs, out=out)
            kernels.distribution_kl_backward(grad=upstream(out), **inputs, grad_logits=grad)
            assert_written(written, want.values())
            if together:
                written = [guarded(want["output"]), guarded(logits)]
                (out, _), (grad, _) = written
                kernels.distribution_kl_backward(grad=None, **inputs, grad_logits=grad, out=out)
                assert_written(written, want.values())


class DistributionKL:
    op = "distribution_kl"
    function = staticmethod(distribution_kl)
    reference = staticmethod(reference.distribution_kl)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return Case(dtype=dtype, rows=rows, reduced=Reduced(True, factor, reduction)).call()


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromises(DistributionKL, Promises):
    def test_the_teacher_gets_no_gradient(self, backend: str) -> None:
        with running(backend) as device:
            call = self.on(device)
            logits, teacher = (tensor.requires_grad_() for tensor in call.tensors.values())
            loss = distribution_kl(logits, teacher, **call.keywords)
            assert torch.autograd.grad(loss, [logits, teacher], allow_unused=True)[1] is None
            alone = distribution_kl(logits.detach(), teacher, **call.keywords)
        assert not alone.requires_grad


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromises(DistributionKL, KernelPromises):
    def test_nothing_is_saved_but_the_inputs(self, backend: str) -> None:
        saved: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        with running(backend) as device:
            call = self.on(device)
            call.trained()
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                call(distribution_kl)
        given = [*call.tensors.values(), call.keywords["weight"], call.keywords["avg_factor"]]
        assert len(saved) == 4 and {t.data_ptr() for t in saved} == {t.data_ptr() for t in given}

    @pytest.mark.parametrize(("factor", "reduction"), [("tensor", "sum"), (None, "none")])
    def test_opcheck(self, factor: str | None, reduction: str, backend: str) -> None:
        case = Case(rows=6, dtype=torch.float16, reduced=Reduced(True, factor, reduction))
        with running(backend) as device:
            call = case.call().to(device)
            tensors = (*call.tensors.values(), call.keywords["weight"], call.keywords["avg_factor"])
            arguments = (*tensors, case.temperature, 1.0, reduction, backend)
            torch.library.opcheck(torch.ops.gflv2.distribution_kl.default, arguments)
            upstream = torch.ones_like(torch.ops.gflv2.distribution_kl(*arguments))
            torch.library.opcheck(torch.ops.gflv2.distribution_kl_backward.default, (upstream, *arguments, [True]))


class TestArguments:
    """Errors name the argument, what was expected and what came."""

    LOGITS = torch.zeros(4, 5)

    @pytest.mark.parametrize(
        ("logits", "teacher", "keywords", "error", "message"),
        [
            (torch.zeros(4, 4, 5), LOGITS, {}, ValueError, r"logits: .*\(\*, \*\).*\(4, 4, 5\)"),
            (torch.zeros(4, 66), torch.zeros(4, 66), {}, ValueError, r"logits: .*2 to 65 bins.*\(4, 66\)"),
            (LOGITS.long(), LOGITS, {}, TypeError, "logits: .*float32.*int64"),
            (LOGITS, torch.zeros(4, 6), {}, ValueError, r"teacher_logits: .*\(4, 5\).*\(4, 6\)"),
            (LOGITS, torch.zeros(5), {}, ValueError, r"teacher_logits: .*\(4, 5\).*\(5,\)"),
            (LOGITS, LOGITS.int(), {}, TypeError, "teacher_logits: .*float32.*int32"),
            (LOGITS, LOGITS.to("meta"), {}, ValueError, "teacher_logits: .*cpu.*meta"),
            (LOGITS, LOGITS, {"temperature": 0.0}, ValueError, "temperature: .*number > 0.*0.0"),
            (LOGITS, LOGITS, {"temperature": math.nan}, ValueError, "temperature: .*number > 0.*nan"),
            (LOGITS, LOGITS, {"temperature": math.inf}, ValueError, "temperature: .*finite.*inf"),
            (LOGITS, LOGITS, {"temperature": torch.ones(())}, TypeError, "temperature: .*number.*tensor"),
            (LOGITS, LOGITS, {"weight": torch.zeros(4, 1)}, ValueError, r"weight: .*\(4\).*\(4, 1\)"),
            (LOGITS, LOGITS, {"avg_factor": 0}, ValueError, "avg_factor: .*positive number.*0"),
            (LOGITS, LOGITS, {"avg_factor": 2.0, "reduction": "sum"}, ValueError, "avg_factor: .*None.*sum"),
            (LOGITS, LOGITS, {"reduction": "batchmean"}, ValueError, "reduction: .*'none'.*'batchmean'"),
        ],
    )
    def test_errors(self, logits: Tensor, teacher: Tensor, keywords: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            distribution_kl(logits, teacher, **keywords)
