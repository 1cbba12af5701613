"""``ddf``: against the definition, plain formulas, and `distribution_kl`, whose kernels it runs on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gflv2
from gflv2.ops import ddf
from gflv2.ops.checks import compute_dtype
from tests.ops.row_losses import FLOATS, Call, results
from tests.ops.under_test import backends_of, running

BACKENDS = backends_of("ddf")
ON_EVERY_SET = backends_of("ddf", every_set=True)


def make(dtype: torch.dtype = torch.float32, rows: int = 90, matched: float = 0.2, **keywords: object) -> Call:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "logits": (3 * torch.randn(rows, 33, generator=draw)).to(dtype),
        "teacher_logits": (3 * torch.randn(rows, 33, generator=draw)).to(dtype),
        "matched": torch.rand(rows, generator=draw) < matched,
    }
    weight = torch.rand(rows, generator=draw).to(compute_dtype(dtype))
    return Call(tensors, {"weight": weight, **keywords}, ("logits",))


def plain(
    logits: Tensor, teacher: Tensor, matched: Tensor, *, weight: Tensor, temperature: float = 5.0, balance: tuple = ()
) -> Tensor:
    """With boolean indexing, as the paper says it."""
    log_p, p = (logits / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    rows = weight * temperature**2 * F.kl_div(log_p, p, reduction="none").sum(-1)
    parts = [rows[mask].mean() if bool(mask.any()) else rows.new_zeros(()) for mask in (matched, ~matched)]
    first, second = balance or (matched.sum().sqrt(), (~matched).sum().sqrt())
    return (parts[0] * first + parts[1] * second) / (first + second)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("matched", [0.0, 0.2, 1.0], ids=["none", "some", "all"])
    def test_plain_formulas(self, matched: float, dtype: torch.dtype, backend: str) -> None:
        call = make(dtype, matched=matched)
        with running(backend) as device:
            found = results(ddf, call.to(device))
        wanted = results(plain, call.converted(torch.float64))
        assert found["output"].dtype == torch.float32 and found["grad of logits"].dtype == dtype
        for name, value in wanted.items():
            epsilon = 1e-6 if name == "output" or dtype == torch.float32 else torch.finfo(dtype).eps
            limit = epsilon * float(value.abs().max()) + (1e-7 if dtype == torch.float16 else 0)
            torch.testing.assert_close(found[name].cpu().double(), value, rtol=0, atol=limit, msg=name)

    @pytest.mark.parametrize("balance", [(2.0, 6.0), (torch.tensor(2.0), torch.tensor(6.0)), (0, 1)], ids=str)
    def test_balance_and_temperature(self, balance: tuple, backend: str) -> None:
        call = make(temperature=2.5)
        with running(backend) as device:
            there = tuple(part.to(device) if isinstance(part, Tensor) else part for part in balance)
            found = ddf(*call.to(device).tensors.values(), **call.to(device).keywords, balance=there)
        wanted = plain(*call.tensors.values(), **call.keywords, balance=tuple(map(float, balance)))
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("balance", [(0, 0), (torch.tensor(0.0), torch.tensor(0.0))], ids=str)
    def test_a_balance_of_nothing(self, balance: tuple, backend: str) -> None:
        """The call that D-FINE takes it from had no rows: no loss, and a gradient of zeros, not 0 / 0."""
        with running(backend) as device:
            call = make(balance=tuple(part.to(device) if isinstance(part, Tensor) else part for part in balance))
            found = results(ddf, call.to(device))
        assert float(found["output"]) == 0 and not found["grad of logits"].any()

    def test_its_own_teacher(self, backend: str) -> None:
        """No loss, and no gradient beyond rounding: nothing has to compare the two before."""
        with running(backend) as device:
            call = make().to(device)
            call.tensors["teacher_logits"] = call.tensors["logits"].detach().clone()
            found = results(ddf, call)
        assert float(found["output"].abs()) < 1e-6 and float(found["grad of logits"].abs().max()) < 1e-9

    def test_no_rows(self, backend: str) -> None:
        with running(backend) as device:
            found = results(ddf, make(rows=0).to(device))
        assert float(found["output"]) == 0 and found["grad of logits"].shape == (0, 33)

    def test_half_precision_is_float32_inside(self, backend: str) -> None:
        """In float16 the square root of 300,000 times 8 rows is no number."""
        with running(backend) as device:
            call = make(torch.float16, rows=5000).to(device)
            one = ddf(*call.tensors.values(), **call.keywords)
            call = call.map(lambda tensor: tensor.repeat(60, *[1] * (tensor.dim() - 1)))
            many = ddf(*call.tensors.values(), **call.keywords)
        torch.testing.assert_close(many, one, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
class TestCompiled:
    def test_full_graph(self, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(ddf, fullgraph=True, backend="aot_eager", dynamic=True)
            for rows in (6, 9):
                call = make(rows=rows, matched=0.5).to(device)
                one, other = results(compiled, call), results(ddf, call)
                for name in other:
                    torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7)


def test_gradcheck() -> None:
    call = make(torch.float64, rows=6, matched=0.5)
    for backend in ("cpu", "reference"):
        with running(backend):
            rest = list(call.tensors.values())[1:]
            assert torch.autograd.gradcheck(lambda z: ddf(z, *rest, **call.keywords), call.trained())  # noqa: B023


class TestArguments:
    GOOD = {
        "logits": torch.zeros(3, 9),
        "teacher_logits": torch.zeros(3, 9),
        "matched": torch.zeros(3, dtype=torch.bool),
        "weight": torch.zeros(3),
    }

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"teacher_logits": torch.zeros(3, 8)}, ValueError, r"teacher_logits: .*\(3, 9\).*\(3, 8\)"),
            ({"matched": torch.zeros(3)}, TypeError, "matched: .*bool.*float32"),
            ({"matched": torch.zeros(2, dtype=torch.bool)}, ValueError, r"matched: .*\(3\).*\(2,\)"),
            ({"weight": torch.zeros(4)}, ValueError, r"weight: .*\(3\).*\(4,\)"),
            ({"temperature": 0}, ValueError, "temperature: .*number > 0.*0"),
            ({"balance": 1.0}, TypeError, "balance: expected two numbers or 0-d tensors, got 1.0"),
            ({"balance": (1.0, -1.0)}, ValueError, "balance: .*≥ 0.*-1.0"),
            ({"balance": (torch.zeros(2), 1.0)}, ValueError, "balance: expected two numbers or 0-d tensors"),
        ],
    )
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_errors(self, changes: dict, error: type, message: str, backend: str) -> None:
        with gflv2.use_backend(backend), pytest.raises(error, match=message):
            ddf(**{**self.GOOD, **changes})
