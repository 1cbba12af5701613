"""``dfl`` on every backend against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gflv2.ops import dfl
from gflv2.ops.implementation import implementation
from gflv2.ops.one_pass import one_pass
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import dfl as reference
from tests.ops.dfl_cases import LAYOUTS, TARGETS, Case, magnitudes
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

BACKENDS = backends_of("dfl")
KERNELS = backends_of("dfl", kernels_only=True)
ON_EVERY_SET = backends_of("dfl", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("dfl", kernels_only=True, every_set=True)


def check(case: Case, backend: str) -> None:
    check_parity("dfl", dfl, reference.dfl, case.call(), magnitudes, backend, case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("reduction", ["none", "mean"])
    @pytest.mark.parametrize("dtype", few(FLOATS, 2), ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, reduction: str, backend: str) -> None:
        check(Case(layout=layout, dtype=dtype, reduced=Reduced(reduction=reduction)), backend)

    @pytest.mark.parametrize("layout", ["dense", "bins apart"])
    @pytest.mark.parametrize("bins", [2, 3, 7, 8, 16, 32, 33, 64, 65])
    def test_bins(self, bins: int, layout: str, backend: str) -> None:
        check(Case(layout=layout, bins=bins, rows=150), backend)

    @pytest.mark.parametrize("rows", [1, 15, 16, 17, 127, 128, 129, 511, 512, 513, 5000])
    def test_rows_at_the_borders_of_blocks(self, rows: int, backend: str) -> None:
        check(Case(rows=rows, bins=5), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), REDUCTIONS, ids=str)
    def test_reductions(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        check(Case(rows=150, reduced=Reduced(weighted, factor, reduction)), backend)

    @pytest.mark.parametrize("targets", TARGETS)
    @pytest.mark.parametrize("bins", [2, 17, 20])
    def test_targets(self, bins: int, targets: str, backend: str) -> None:
        check(Case(bins=bins, targets=targets, rows=150, reduced=Reduced(reduction="none")), backend)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_huge_logits(self, dtype: torch.dtype, backend: str) -> None:
        check(Case(dtype=dtype, spread=1e4, rows=150), backend)

    def test_equal_logits(self, backend: str) -> None:
        with running(backend) as device:
            found = dfl(torch.full((3, 17), 2.5, device=device), torch.tensor([0.0, 3.25, 16.0], device=device))
        torch.testing.assert_close(found.cpu(), torch.tensor(17.0).log())

    def test_an_impossible_bin_costs_nothing_where_it_has_no_share(self, backend: str) -> None:
        """A row whose other bins are −∞: their products with a share of 0 are left out."""
        with running(backend) as device:
            logits = torch.full((1, 5), -torch.inf, device=device)
            logits[0, 1:3] = torch.tensor([0.0, 1.0], device=device)
            found = dfl(logits, torch.tensor([1.5], device=device))
        want = torch.tensor(1 + 1 / torch.e).log() + 0.5
        torch.testing.assert_close(found.cpu(), want)

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
    def test_a_wrong_target_spoils_no_other_row(self, wrong: float, backend: str) -> None:
        with running(backend) as device:
            call = Case(rows=150, reduced=Reduced(reduction="none")).call().to(device)
            right = results(dfl, call)
            call.tensors["target"][40] = wrong
            found = results(dfl, call)
        others = torch.arange(150) != 40
        for name in right:
            assert torch.equal(found[name].cpu()[others], right[name].cpu()[others])
            assert bool(found[name][40].isnan().any()) == (wrong != wrong)

    @pytest.mark.parametrize("bin_", [0, 3, 16])
    def test_a_nan_logit_spoils_its_row(self, bin_: int, backend: str) -> None:
        with running(backend) as device:
            call = Case(rows=40, targets="whole", reduced=Reduced(False, None, "none")).call().to(device)
            call.tensors["logits"][20, bin_] = torch.nan
            found = results(dfl, call)
        assert found["output"].isnan().nonzero().flatten().tolist() == [20]
        assert found["grad of logits"].isnan().all(1).nonzero().flatten().tolist() == [20]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        reduced = Reduced(*data.draw(st.sampled_from(REDUCTIONS)))
        case = Case(
            layout=data.draw(st.sampled_from(LAYOUTS)),
            dtype=data.draw(st.sampled_from(FLOATS)),
            bins=data.draw(st.integers(2, 65)),
            rows=data.draw(st.integers(0, 130)),
            targets=data.draw(st.sampled_from(TARGETS)),
            reduced=reduced,
            spread=data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e4])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parity(self, layout: str, backend: str) -> None:
        check(Case(layout=layout, dtype=torch.float64), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), REDUCTIONS, ids=str)
    def test_gradcheck(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        reduced = Reduced(weighted, factor, reduction)
        call = Case(dtype=torch.float64, bins=5, rows=7, spread=1.0, reduced=reduced).call()
        (logits,) = call.trained()
        with running(backend):
            assert torch.autograd.gradcheck(lambda z: dfl(z, call.tensors["target"], **call.keywords), logits)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    @pytest.mark.parametrize("layout", ["dense", "sliced", "bins apart"])
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_all_of_the_output_and_no_byte_beside_it(
        self, dtype: torch.dtype, layout: str, reduction: str, backend: str
    ) -> None:
        with running(backend) as device:
            call = Case(layout=layout, dtype=dtype, reduced=Reduced(True, None, reduction)).call().to(device)
            logits, target = (tensor.detach() for tensor in call.tensors.values())
            together = one_pass(backend, reduction, [logits])
            upstream = torch.ones_like if together else cotangent
            want = results(dfl, call, upstream=upstream)
            kernels = implementation("dfl", backend)
            how = Reduction(call.keywords["weight"], None, 1.0, reduction)
            like = logits if layout != "bins apart" else logits.contiguous().T.contiguous().T
            written = [guarded(want["output"]), guarded(like)]
            (out, _), (grad, _) = written
            inputs = {"logits": logits, "target": target, "reduction": how}
            kernels.dfl_forward(**inputs, out=out)
            kernels.dfl_backward(grad=upstream(out), **inputs, grad_logits=grad)
            assert_written(written, want.values())
            if together:
                written = [guarded(want["output"]), guarded(like)]
                (out, _), (grad, _) = written
                kernels.dfl_backward(grad=None, **inputs, grad_logits=grad, out=out)
                assert_written(written, want.values())


class Dfl:
    op = "dfl"
    function = staticmethod(dfl)
    reference = staticmethod(reference.dfl)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return Case(dtype=dtype, rows=rows, reduced=Reduced(True, factor, reduction)).call()


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromises(Dfl, Promises):
    pass


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromises(Dfl, KernelPromises):
    @pytest.mark.parametrize(("weighted", "factor", "reduction"), few(REDUCTIONS, 3), ids=str)
    def test_opcheck(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        with running(backend) as device:
            call = Case(rows=6, dtype=torch.float16, reduced=Reduced(weighted, factor, reduction)).call().to(device)
            average = call.keywords["avg_factor"]
            number = isinstance(average, float)
            how = (call.keywords["weight"], None if number else average, average if number else 1.0, reduction, backend)
            arguments = (*call.tensors.values(), *how)
            torch.library.opcheck(torch.ops.gflv2.dfl.default, arguments)
            upstream = torch.ones_like(torch.ops.gflv2.dfl(*arguments))
            torch.library.opcheck(torch.ops.gflv2.dfl_backward.default, (upstream, *arguments, [True]))


class TestArguments:
    """Errors name the argument, what was expected and what came."""

    LOGITS, TARGET = torch.zeros(4, 5), torch.zeros(4)

    @pytest.mark.parametrize(
        ("logits", "target", "keywords", "error", "message"),
        [
            (torch.zeros(4, 4, 5), TARGET, {}, ValueError, r"logits: .*\(\*, \*\).*\(4, 4, 5\)"),
            (torch.zeros(4, 1), TARGET, {}, ValueError, r"logits: .*2 to 65 bins.*\(4, 1\)"),
            (torch.zeros(4, 66), TARGET, {}, ValueError, r"logits: .*2 to 65 bins.*\(4, 66\)"),
            (torch.zeros(4, 5).long(), TARGET, {}, TypeError, "logits: .*float32.*int64"),
            ([1.0], TARGET, {}, TypeError, "logits: expected a tensor"),
            (LOGITS, torch.zeros(3), {}, ValueError, r"target: .*\(4\).*\(3,\)"),
            (LOGITS, torch.zeros(4).int(), {}, TypeError, "target: .*float32.*int32"),
            (LOGITS, torch.zeros(4, device="meta"), {}, ValueError, "target: .*cpu.*meta"),
            (LOGITS, TARGET, {"weight": torch.zeros(4, 1)}, ValueError, r"weight: .*\(4\).*\(4, 1\)"),
            (LOGITS, TARGET, {"weight": torch.zeros(4, device="meta")}, ValueError, "weight: .*cpu.*meta"),
            (LOGITS, TARGET, {"avg_factor": 0}, ValueError, "avg_factor: .*positive number.*0"),
            (LOGITS, TARGET, {"avg_factor": torch.ones(1)}, ValueError, r"avg_factor: .*0-d.*\(1,\)"),
            (LOGITS, TARGET, {"avg_factor": torch.ones((), device="meta")}, ValueError, "avg_factor: .*cpu.*meta"),
            (LOGITS, TARGET, {"avg_factor": "2"}, TypeError, "avg_factor: .*number"),
            (LOGITS, TARGET, {"avg_factor": 2.0, "reduction": "sum"}, ValueError, "avg_factor: .*None.*sum"),
            (LOGITS, TARGET, {"reduction": "max"}, ValueError, "reduction: .*'none'.*'max'"),
        ],
    )
    def test_errors(self, logits: Tensor, target: Tensor, keywords: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            dfl(logits, target, **keywords)

    @pytest.mark.parametrize("wrong", [-0.1, 4.1])
    def test_values_are_checked_on_request(self, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GFLV2_CHECK", "1")
        with pytest.raises(ValueError, match="target: .*4.*bins"):
            dfl(self.LOGITS, torch.tensor([0.0, 1.0, wrong, 4.0]))
