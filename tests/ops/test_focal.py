"""``focal`` on every backend against its definition."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gflv2
from gflv2 import ops
from gflv2.ops import focal
from gflv2.ops.focal import KINDS, _settings
from gflv2.ops.implementation import implementation
from gflv2.ops.one_pass import one_pass
from gflv2.ops.reduction import Reduction
from tests.ops.focal_cases import EVERY, SETTINGS, Case, adapted
from tests.ops.layouts import CROPPED, LEVEL_LAYOUTS
from tests.ops.memory import assert_written, guarded
from tests.ops.qfl_cases import LABELS, ROW_LAYOUTS
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

BACKENDS = backends_of("focal")
KERNELS = backends_of("focal", kernels_only=True)
ON_EVERY_SET = backends_of("focal", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("focal", kernels_only=True, every_set=True)
MAIN_LAYOUTS = ("nchw", "channels_last", "rows")
# Each layout in one dtype, each dtype in the main layouts.
LAYOUTS_AND_DTYPES = [
    (layout, dtype)
    for layout in (*LEVEL_LAYOUTS, *ROW_LAYOUTS)
    for dtype in FLOATS
    if dtype == torch.bfloat16 or (layout in MAIN_LAYOUTS and not INTERPRETED)
]
# Several blocks in the first level, whatever the kernel; the interpreter pays for every block.
LARGE = Case(sizes=((23, 25), (0, 4), (1, 1))) if INTERPRETED else Case()
SMALL = Case(sizes=((5, 6), (2, 3)), rows=40, classes=7)
NONE = Reduced(True, None, "none")
fused = adapted(focal)
# A label's logit above 40 counts as 40 (`large_logit`), so that a loss without a modulating factor stays at
# e^-40 = 4e-18, where it would be less. Where nothing else is in a result, 8 units in the last place of this are more.
LEAST = 1e-11


def defined(*tensors: Tensor, **keywords: Any) -> Tensor:
    with gflv2.use_backend("reference"):
        return fused(*tensors, **keywords)


def check(case: Case, backend: str) -> None:
    def sizes(call: Call) -> dict[str, Tensor]:
        exact = results(defined, call.converted(torch.float64))
        return {name: value.abs().max().clamp(min=LEAST) for name, value in exact.items() if value.numel()}

    check_parity("focal", fused, defined, case.call(), sizes, backend, case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize(("layout", "dtype"), LAYOUTS_AND_DTYPES, ids=str)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        check(LARGE.but(layout=layout, dtype=dtype), backend)

    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    @pytest.mark.parametrize(("kind", "setting"), EVERY)
    def test_kinds_and_settings(self, kind: str, setting: int, layout: str, backend: str) -> None:
        centre = 0.0 if layout == "rows" else -2.0  # most are small negatives, or none of the groups
        check(SMALL.but(layout=layout, kind=kind, setting=setting, centre=centre, reduced=NONE), backend)

    @pytest.mark.parametrize("kind", few(KINDS, 1))
    def test_small_negatives_in_pairs(self, kind: str, backend: str) -> None:
        check(LARGE.but(kind=kind, dtype=torch.bfloat16, centre=-5.0, spread=1.0, classes=80), backend)

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("classes", few([1, 80, 3, 17, 300], 2))
    def test_classes(self, classes: int, layout: str, backend: str) -> None:
        check(Case(layout=layout, classes=classes, batch=1, sizes=((7, 6), (2, 3)), rows=45, reduced=NONE), backend)

    @pytest.mark.parametrize(("weighted", "factor", "reduction"), few(REDUCTIONS, 3), ids=str)
    def test_reductions(self, weighted: bool, factor: str | None, reduction: str, backend: str) -> None:
        check(SMALL.but(reduced=Reduced(weighted, factor, reduction)), backend)

    @pytest.mark.parametrize("labels", LABELS)
    @pytest.mark.parametrize("kind", ["sigmoid_focal", "iou_aware_bce"])
    def test_labels(self, kind: str, labels: str, backend: str) -> None:
        check(SMALL.but(kind=kind, labels=labels), backend)

    @pytest.mark.parametrize("spread", few([1e4, 30.0, 0.0, 300.0], 1))
    @pytest.mark.parametrize("kind", KINDS)
    def test_huge_logits(self, kind: str, spread: float, backend: str) -> None:
        check(SMALL.but(kind=kind, spread=spread, centre=0.0, reduced=NONE), backend)

    @pytest.mark.parametrize(
        "case",
        [SMALL.but(batch=0), SMALL.but(sizes=((0, 0), (0, 3))), SMALL.but(layout="rows", classes=0)],
        ids=["no image", "no cell", "no class"],
    )
    def test_empty(self, case: Case, backend: str) -> None:
        check(case, backend)
        check(case.but(reduced=NONE), backend)

    @settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        kind, setting = data.draw(st.sampled_from(EVERY))
        case = Case(
            kind=kind,
            setting=setting,
            layout=data.draw(st.sampled_from((*LEVEL_LAYOUTS, CROPPED, *ROW_LAYOUTS))),
            dtype=data.draw(st.sampled_from(FLOATS)),
            classes=data.draw(st.integers(1, 40)),
            labels=data.draw(st.sampled_from(LABELS)),
            reduced=Reduced(*data.draw(st.sampled_from(REDUCTIONS))),
            batch=data.draw(st.integers(0, 3)),
            sizes=tuple(data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))),
            rows=data.draw(st.integers(0, 130)),
            spread=data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e4])),
            centre=data.draw(st.sampled_from([-5.0, 0.0, 5.0])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


ENDS = torch.tensor([-torch.inf, -3.0, 0.0, 2.0, 50.0, torch.inf])
SCORES = torch.tensor([0.0, 0.3, 1.0])


def limits(kind: str, labelled: bool, dtype: torch.dtype, device: torch.device, far: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one logit a row, for every end with every score; ∞ is ``far``."""
    x, y = torch.cartesian_prod(ENDS.clamp(-far, far), SCORES).to(device).unbind(1)
    logits = x[:, None].to(dtype).requires_grad_()
    labels = torch.full(x.shape, 0 if labelled else -1, device=device)
    out = focal(logits, labels if kind == "sigmoid_focal" else (labels, y), kind=kind, reduction="none")
    return out.detach().cpu().double(), torch.autograd.grad(out.sum(), logits)[0].cpu().double()


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestExtremes:
    @pytest.mark.parametrize("labelled", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    def test_an_infinite_logit_gives_the_limit(self, kind: str, labelled: bool, backend: str) -> None:
        with running(backend) as device:
            out, gradient = limits(kind, labelled, torch.float32, device, torch.inf)
        with gflv2.use_backend("reference"):
            want, slope = limits(kind, labelled, torch.float64, torch.device("cpu"), 1e4)
        assert out.isinf().any() and not out.isnan().any()
        torch.testing.assert_close(out, torch.where(want > 60, torch.inf, want), rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(gradient, slope, rtol=2e-6, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    def test_what_is_not_a_number_stays_in_its_row(self, layout: str, kind: str, backend: str) -> None:
        case = SMALL.but(layout=layout, kind=kind, reduced=NONE)
        element, row = ((3, 2), (3,)) if case.by_rows else ((0, 2, 1, 3), (0, 9))  # class 2; of level 0, y = 1, x = 3
        for own in (True, False):
            with running(backend) as device:
                call = case.call().to(device)
                call.tensors["labels"][row] = 2 if own else 1
                right = results(fused, call)
                name = next(iter(call.tensors))
                call.tensors[name] = call.tensors[name].detach().clone()
                call.tensors[name][element] = torch.nan
                found = results(fused, call)
            assert found["output"][row].isnan() and found[f"grad of {name}"][element].isnan()
            for key in right:
                wrong = (found[key] != right[key]).nonzero().tolist()
                assert set(map(tuple, wrong)) <= {element, row}, key

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("varifocal", {}),
            *(("matchability_aware", {"gamma": gamma}) for gamma in (1.5, 0.0)),
            *(("iou_aware_bce", {"alpha": alpha}) for alpha in (0.25, 0.0, 1.0)),
        ],
    )
    def test_a_score_that_is_not_a_number_shows(self, kind: str, options: dict, backend: str) -> None:
        """With an exponent of 0, too."""
        with running(backend) as device:
            logits = torch.tensor([[0.5, -1.0], [2.0, 1.0]], device=device, requires_grad=True)
            labels, scores = torch.tensor([0, 1], device=device), torch.tensor([torch.nan, 0.5], device=device)
            out = focal(logits, (labels, scores), kind=kind, reduction="none", **options)
            gradient = torch.autograd.grad(out.sum(), logits)[0]
        assert out.isnan().tolist() == [True, False]
        assert gradient.isnan().tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_parity(self, kind: str, layout: str, backend: str) -> None:
        check(SMALL.but(layout=layout, kind=kind, dtype=torch.float64), backend)

    @pytest.mark.parametrize("gamma", [2.0, 1.5, 1.2])
    @pytest.mark.parametrize("kind", ["sigmoid_focal", "varifocal"])
    def test_gradcheck(self, kind: str, gamma: float, backend: str) -> None:
        """Where every weight is part of the gradient, numerical differences have it."""
        case = Case("rows", torch.float64, classes=3, rows=5, spread=1.0, kind=kind, reduced=NONE)
        call = case.call()
        call.keywords["gamma"] = gamma
        with running(backend):
            assert torch.autograd.gradcheck(lambda *_: call(fused), call.trained())

    @pytest.mark.parametrize("detach", [True, False])
    @pytest.mark.parametrize("kind", KINDS[1:])
    def test_constants_of_the_gradient(self, kind: str, detach: bool, backend: str) -> None:
        """The slope of a loss whose constant parts stand still while the logit moves."""
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(6, 3, generator=draw, dtype=torch.float64)
        labels, y = torch.tensor([0, 1, 2, -1, 1, 0]), torch.rand(6, generator=draw, dtype=torch.float64)
        hit = labels[:, None] == torch.arange(3)
        score = x.sigmoid()

        def standing(moved: Tensor) -> Tensor:
            weight = (score if detach else moved.sigmoid()) ** 2
            negative = 0.5 * weight if kind != "iou_aware_bce" else weight
            t = {"varifocal": y, "matchability_aware": y**2}.get(kind)
            t = (score**0.5 * y[:, None] ** 0.5).clamp(min=0.01) if t is None else t[:, None].expand_as(x)
            bce = torch.nn.functional.binary_cross_entropy_with_logits(moved, t, reduction="none")
            plain = torch.nn.functional.softplus(moved) * negative
            return torch.where(hit, bce * (y[:, None] if kind == "varifocal" else 1), plain).sum()

        want, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
        slope = torch.autograd.grad(standing(want), want)[0]
        with running(backend):
            out = focal(leaf, (labels, y), kind=kind, alpha=0.5, gamma=2.0, detach=detach, reduction="sum")
            found = torch.autograd.grad(out, leaf)[0]
        torch.testing.assert_close(out.detach(), standing(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(found, slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "rows", "rows sliced"])
    @pytest.mark.parametrize("dtype", few(FLOATS[:2], 1), ids=str)
    @pytest.mark.parametrize("reduction", ["none", "sum"])
    def test_all_of_the_output_and_no_byte_beside_it(
        self, reduction: str, dtype: torch.dtype, layout: str, backend: str
    ) -> None:
        with running(backend) as device:
            case = SMALL.but(layout=layout, dtype=dtype, labels="wild", reduced=Reduced(True, None, reduction))
            call = case.call().to(device)
            *logits, labels, scores = (tensor.detach() for tensor in call.tensors.values())
            together = one_pass(backend, reduction, logits)
            upstream = torch.ones_like if together else cotangent
            want = results(fused, call, upstream=upstream)
            kernels = implementation("focal", backend)
            how = Reduction(call.keywords["weight"], None, 1.0, reduction)
            inputs = {"logits": logits, "labels": labels, "scores": scores, "reduction": how}
            inputs |= _settings("varifocal", None, None, True, None)._asdict()
            written = [guarded(tensor) for tensor in want.values()]
            out, *gradients = (tensor for tensor, _ in written)
            kernels.focal_forward(**inputs, out=out)
            kernels.focal_backward(grad=upstream(out), **inputs, grad_logits=gradients)
            assert_written(written, want.values())
            if together:
                written = [guarded(tensor) for tensor in want.values()]
                out, *gradients = (tensor for tensor, _ in written)
                kernels.focal_backward(grad=None, **inputs, grad_logits=gradients, out=out)
                assert_written(written, want.values())


class Focal:
    op = "focal"
    function = staticmethod(fused)
    reference = staticmethod(defined)

    def make(self, *, dtype: torch.dtype = torch.float32, rows: int = 90, reduction: str = "mean") -> Call:
        factor = "tensor" if reduction == "mean" else None
        return SMALL.but(layout="rows", dtype=dtype, rows=rows, reduced=Reduced(True, factor, reduction)).call()


@pytest.mark.parametrize("backend", BACKENDS)
class TestPromises(Focal, Promises):
    pass


@pytest.mark.parametrize("backend", KERNELS)
class TestKernelPromises(Focal, KernelPromises):
    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    @pytest.mark.parametrize("kind", ["sigmoid_focal", "matchability_aware"])
    def test_opcheck(self, kind: str, layout: str, backend: str) -> None:
        with running(backend) as device:
            call = SMALL.but(layout=layout, kind=kind, dtype=torch.float16, rows=6, reduced=NONE).call().to(device)
            count = max(call.keywords["levels"], 1)
            logits, rest = list(call.tensors.values())[:count], list(call.tensors.values())[count:]
            scores = rest[1] if len(rest) > 1 else None
            how = _settings(kind, None, None, True, None)
            arguments = (logits, rest[0], scores, call.keywords["weight"], None, *how, 1.0, "none", backend)
            torch.library.opcheck(torch.ops.gflv2.focal.default, arguments)
            upstream = torch.ones_like(torch.ops.gflv2.focal(*arguments))
            for needs in [[True], [False]]:
                torch.library.opcheck(torch.ops.gflv2.focal_backward.default, (upstream, *arguments, needs))


@pytest.mark.parametrize("kind", KINDS)
class TestNames:
    """The kinds under their own names."""

    def test_defaults(self, kind: str) -> None:
        draw = torch.Generator().manual_seed(0)
        logits, labels = torch.randn(9, 4, generator=draw), torch.randint(-1, 5, (9,), generator=draw)
        target = labels if kind == "sigmoid_focal" else (labels, torch.rand(9, generator=draw))
        options = {"weight": torch.rand(9, generator=draw), "avg_factor": 3.0}
        assert torch.equal(getattr(ops, kind)(logits, target, **options), focal(logits, target, kind=kind, **options))

    @pytest.mark.parametrize("number", range(5))
    def test_options(self, number: int, kind: str) -> None:
        function = getattr(ops, kind)
        options = SETTINGS[kind][number]
        if not options.keys() <= inspect.signature(function).parameters.keys():
            pytest.skip("an option of the general function")
        logits, labels = torch.linspace(-3, 3, 12).reshape(4, 3), torch.tensor([0, 2, -1, 1])
        target = labels if kind == "sigmoid_focal" else (labels, torch.tensor([0.2, 0.0, 0.5, 1.0]))
        assert torch.equal(function(logits, target, **options), focal(logits, target, kind=kind, **options))


class TestArguments:
    LOGITS = torch.zeros(4, 3)
    TARGET = (torch.zeros(4).long(), torch.zeros(4))
    LEVELS = [torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 2, 2)]

    @pytest.mark.parametrize(
        ("logits", "target", "keywords", "error", "message"),
        [
            (LOGITS, TARGET, {"kind": "focal"}, ValueError, "kind: .*'sigmoid_focal'.*'focal'"),
            (LOGITS, TARGET[0], {}, TypeError, r"target: .*\(labels, scores\)"),
            (LOGITS, TARGET, {"kind": "sigmoid_focal"}, TypeError, r"target \(labels\): .*a tensor"),
            (LOGITS, (TARGET[1], TARGET[1]), {}, TypeError, "labels.*int64"),
            (LOGITS, (TARGET[0], TARGET[1][:2]), {}, ValueError, r"scores.*\(4\).*\(2,\)"),
            (LOGITS[0], TARGET, {}, ValueError, r"logits: .*\(\*, \*\)"),
            (LEVELS, TARGET, {}, ValueError, r"labels.*\(2, 24\).*\(4,\)"),
            (LOGITS, TARGET, {"gamma": -1.0}, ValueError, "gamma: .*≥ 0.*-1"),
            (LOGITS, TARGET, {"alpha": -1.0}, ValueError, "alpha: .*≥ 0.*-1"),
            (LOGITS, TARGET, {"alpha": 1.5, "kind": "iou_aware_bce"}, ValueError, r"alpha: .*\[0, 1\].*1.5"),
            (LOGITS, TARGET[0], {"alpha": 1.5, "kind": "sigmoid_focal"}, ValueError, "alpha: .*1.5"),
            (LOGITS, TARGET[0], {"detach": True, "kind": "sigmoid_focal"}, ValueError, "detach: .*True"),
            (LOGITS, TARGET, {"weight": torch.zeros(3)}, ValueError, r"weight: .*\(4\).*\(3,\)"),
        ],
    )
    def test_errors(self, logits: object, target: object, keywords: dict, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            focal(logits, target, **{"kind": "varifocal", **keywords})

    def test_scores_are_checked_on_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GFLV2_CHECK", "1")
        with pytest.raises(ValueError, match=r"scores\): .*1.5"):
            focal(self.LOGITS, (self.TARGET[0], self.TARGET[1] + 1.5), kind="varifocal")
