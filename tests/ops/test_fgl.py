"""``fgl`` and ``bin_positions``: against the definition, values by hand, and `dfl`, whose kernels it runs on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gflv2
from gflv2.ops import bin_positions, dfl, fgl
from gflv2.ops.checks import compute_dtype
from gflv2.ops.reference import fgl as reference
from tests.ops.row_losses import FLOATS, REDUCTIONS, Call, Promises, Reduced, results
from tests.ops.under_test import backends_of, few, running

BACKENDS = backends_of("fgl")
ON_EVERY_SET = backends_of("fgl", every_set=True)


def bin_values(bins: int = 33, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not uniform, as D-FINE's: steps that grow to both sides, and far ends."""
    half = torch.arange(1, bins // 2, dtype=torch.float64)
    inner = 1.08**half - 1
    end = 2 * inner[-1:]
    return torch.cat([-end, -inner.flip(0), torch.zeros(1, dtype=torch.float64), inner, end]).to(dtype)


def make(dtype: torch.dtype = torch.float32, rows: int = 90, reduced: Reduced | None = None, seed: int = 0) -> Call:
    draw = torch.Generator().manual_seed(seed)
    kind = compute_dtype(dtype)
    values = bin_values(dtype=kind)
    target = (torch.rand(rows, generator=draw, dtype=kind) * 2.4 - 1.2) * values[-1]  # a sixth lies outside
    # A fifth lies on a bin.
    on_bins = torch.rand(rows, generator=draw) < 0.2
    target = torch.where(on_bins, values[torch.randint(33, (rows,), generator=draw)], target)
    tensors = {"logits": (3 * torch.randn(rows, 33, generator=draw)).to(dtype), "target": target, "bins": values}
    return Call(tensors, (reduced or Reduced()).keywords(rows, kind, draw), ("logits",))


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("dtype", few(FLOATS, 2), ids=str)
    @pytest.mark.parametrize(("weighted", "factor", "reduction"), few(REDUCTIONS, 3), ids=str)
    def test_the_definition(
        self, weighted: bool, factor: str | None, reduction: str, dtype: torch.dtype, backend: str
    ) -> None:
        call = make(dtype, reduced=Reduced(weighted, factor, reduction))
        with running(backend) as device:
            found = results(fgl, call.to(device))
        wanted = results(reference.fgl, call.converted(torch.float64))
        # A position among 33 bins has an error of 32 halves of a unit in the last place.
        tolerance = 3e-6 if dtype == torch.float32 else 2e-3 if dtype == torch.float16 else 2e-2
        for name, value in wanted.items():
            limit = (3e-6 if name == "output" else tolerance) * float(1 + value.abs().max())
            torch.testing.assert_close(found[name].cpu().double(), value, rtol=0, atol=limit, msg=name)

    def test_uniform_bins_are_dfl(self, backend: str) -> None:
        call = make(rows=40)
        with running(backend) as device:
            logits = call.tensors["logits"].to(device)
            target = torch.linspace(-3, 40, 40, device=device)
            found = fgl(logits, target, torch.arange(33.0, device=device), reduction="none")
            assert torch.equal(found, dfl(logits, target, reduction="none"))

    def test_by_hand(self, backend: str) -> None:
        """Between the bins at 1 and 5, a quarter of the way; and beyond both ends."""
        with running(backend) as device:
            logits = torch.tensor([[0.5, -1, 2, 0, 0.25, 0, 0, 1]] * 4, device=device)
            bins = torch.tensor([-2.0, -1, 0, 1, 5, 6, 7, 9], device=device)
            target = torch.tensor([2.0, -3, 100, 5], device=device)
            found = fgl(logits, target, bins, reduction="none").cpu()
        log_p = logits[0].cpu().log_softmax(0)
        wanted = torch.stack([-(0.75 * log_p[3] + 0.25 * log_p[4]), -log_p[0], -log_p[7], -log_p[4]])
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)

    def test_half_precision_is_float32_inside(self, backend: str) -> None:
        """D-FINE's own loss of float16 logits is a sum in float16, which ends at 65504."""
        with running(backend) as device:
            logits = 30 * torch.randn(4000, 33, device=device).half()
            call = make(rows=4000)
            target, bins = call.tensors["target"].to(device), call.tensors["bins"].to(device)
            total = fgl(logits, target, bins, reduction="sum")
            wanted = reference.fgl(logits.double(), target, bins, reduction="sum")
        assert total.dtype == torch.float32 and float(total) > 65504
        torch.testing.assert_close(total.double(), wanted, rtol=1e-5, atol=0)


class TestPositions:
    def test_the_value_of_the_bins_comes_back(self) -> None:
        """W interpolated at a position is the distance, clamped to the ends."""
        bins = bin_values(dtype=torch.float64)
        distances = torch.linspace(-1.3, 1.3, 401, dtype=torch.float64) * bins[-1]
        found = bin_positions(distances, bins)
        low = found.floor().clamp(max=31).long()
        back = torch.lerp(bins[low], bins[low + 1], found - low)
        torch.testing.assert_close(back, distances.clamp(float(bins[0]), float(bins[-1])))
        assert found.min() == 0 and found.max() == 32 and bool((found.diff() >= 0).all())
        assert torch.equal(bin_positions(bins, bins), torch.arange(33, dtype=torch.float64))

    def test_shapes_dtypes_and_gradients(self) -> None:
        bins = bin_values().requires_grad_()
        found = bin_positions(torch.zeros(2, 3, 4, dtype=torch.float16).requires_grad_(), bins)
        assert found.shape == (2, 3, 4) and found.dtype == torch.float32 and not found.requires_grad
        assert bin_positions(torch.zeros(2).double(), bins).dtype == torch.float64
        assert bin_positions(torch.zeros(2), bins.double()).dtype == torch.float64
        assert bin_positions(torch.tensor([torch.nan]), bins).isnan().all()
        assert bin_positions(torch.zeros(0), bins).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromises(Promises):
    op = "fgl"
    function = staticmethod(fgl)
    reference = staticmethod(reference.fgl)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return make(dtype, rows, Reduced(True, factor, reduction))

    def test_permuted_rows(self, backend: str) -> None:
        order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
        with running(backend) as device:
            call = self.on(device, reduction="none")
            straight = call(fgl)
            moved = call.map(lambda tensor: tensor[order.to(device)] if len(tensor) == 90 else tensor)(fgl)
        torch.testing.assert_close(moved, straight[order.to(device)], rtol=1e-6, atol=1e-6)


class TestArguments:
    LOGITS, TARGET, BINS = torch.zeros(3, 9), torch.zeros(3), torch.arange(9.0)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"logits": torch.zeros(3)}, ValueError, r"logits: .*\(\*, \*\)"),
            ({"target": torch.zeros(4)}, ValueError, r"target: .*\(3\).*\(4,\)"),
            ({"bins": torch.zeros(8)}, ValueError, r"bins: .*\(9\).*\(8,\)"),
            ({"bins": list(range(9))}, TypeError, "bins: expected a tensor"),
            ({"weight": torch.zeros(4)}, ValueError, r"weight: .*\(3\).*\(4,\)"),
        ],
    )
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_errors(self, changes: dict, error: type, message: str, backend: str) -> None:
        with gflv2.use_backend(backend), pytest.raises(error, match=message):
            fgl(**{"logits": self.LOGITS, "target": self.TARGET, "bins": self.BINS, **changes})

    def test_bins_that_do_not_increase(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GFLV2_CHECK", "1")
        with pytest.raises(ValueError, match="bins: expected increasing values"):
            fgl(self.LOGITS, self.TARGET, self.BINS.flip(0))
        with pytest.raises(ValueError, match="bins: expected two values or more"):
            bin_positions(self.TARGET, torch.zeros(1))
