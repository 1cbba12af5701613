"""``dgqp`` and ``dgqp_statistics`` on every backend against their definition."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gflv2
from gflv2.ops import dgqp, dgqp_statistics
from gflv2.ops.implementation import implementation
from gflv2.ops.reference import dgqp as reference
from tests.ops.dgqp_cases import PREDICTOR, Case, definitions, magnitudes, results
from tests.ops.layouts import CROPPED, LEVEL_LAYOUTS, ROW_LAYOUTS
from tests.ops.memory import GUARD, guarded
from tests.ops.parity import assert_parity
from tests.ops.under_test import EXAMPLES, INTERPRETED, backends_of, few, running

# `gflv2.ops.dgqp` is the function; the module of that name has to be asked for.
module = importlib.import_module("gflv2.ops.dgqp")
BACKENDS = backends_of("dgqp")
KERNELS = backends_of("dgqp", kernels_only=True)
ON_EVERY_SET = backends_of("dgqp", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("dgqp", kernels_only=True, every_set=True)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAIN_LAYOUTS = ("nchw", "channels_last", "rows")
# Under the interpreter the other layouts are tested in one dtype only, and the statistics alone in the main ones.
LAYOUTS_AND_DTYPES = [
    (layout, dtype, hidden)
    for layout in (*LEVEL_LAYOUTS, *ROW_LAYOUTS)
    for dtype in FLOATS
    for hidden in (64, 0)
    if not INTERPRETED or (dtype == torch.bfloat16 and (hidden or layout in MAIN_LAYOUTS))
]
PUBLISHED = Case(scales=True)  # the head of the paper: CUDA has kernels of its own for it
SMALL = PUBLISHED.but(sizes=((5, 6), (2, 3)), rows=20)
if INTERPRETED:  # blocks of 32 cells, of which a program takes two
    PUBLISHED = PUBLISHED.but(sizes=((7, 11), (0, 4), (1, 1)), rows=70)
    SMALL = SMALL.but(batch=1, sizes=((4, 6), (2, 3)))
MIDDLE = SMALL if INTERPRETED else PUBLISHED.but(sizes=((12, 13), (3, 4)), rows=300)
EVERYTHING = PUBLISHED.but(variance=True)
STATISTICS = EVERYTHING.but(hidden=0)
SIDES = st.integers(0, 6 if INTERPRETED else 9)
BOTH = pytest.mark.parametrize("hidden", [64, 0], ids=["dgqp", "dgqp_statistics"])


def check(case: Case, backend: str) -> None:
    with running(backend) as device:
        inputs = case.inputs(device)
        found = results(inputs)
        for name, leaf in inputs.leaves().items():
            assert found[name].dtype == leaf.dtype
        expected = torch.float64 if case.dtype == torch.float64 else torch.float32
        assert found["output"].dtype == expected
    assert_parity("dgqp", found, *definitions(inputs), magnitudes(inputs), context=case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize(("layout", "dtype", "hidden"), LAYOUTS_AND_DTYPES, ids=str)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, hidden: int, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, dtype=dtype, hidden=hidden), backend)

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize(
        ("bins", "topk"),
        few(
            [(2, 2), (33, 9), (20, 4), (17, 1), (2, 1), (3, 3), (7, 2), (8, 8), (17, 8), (33, 4), (64, 5), (65, 65)], 4
        ),
    )
    def test_bins_and_topk(self, bins: int, topk: int, layout: str, backend: str) -> None:
        case = MIDDLE.but(layout=layout, bins=bins, topk=topk, variance=True, sizes=MIDDLE.sizes[:1])
        check(case, backend)

    @BOTH
    @pytest.mark.parametrize("layout", few(["nchw", "rows"], 1))
    @pytest.mark.parametrize("scales", few([False, True], 1))
    @pytest.mark.parametrize(("mean", "variance"), list(itertools.product([False, True], repeat=2)))
    def test_options(self, mean: bool, variance: bool, scales: bool, layout: str, hidden: int, backend: str) -> None:
        check(SMALL.but(layout=layout, mean=mean, variance=variance, scales=scales, hidden=hidden), backend)

    @pytest.mark.parametrize("hidden", few([1, 130, 5, 63, 65, 200]))
    def test_hidden_units(self, hidden: int, backend: str) -> None:
        check(MIDDLE.but(hidden=hidden), backend)

    def test_hidden_units_of_more_than_eight_ranks(self, backend: str) -> None:
        check(MIDDLE.but(hidden=70, topk=12), backend)

    @pytest.mark.parametrize("count", few([8, 1, 2, 3, 4, 5, 6, 7]))
    def test_number_of_levels(self, count: int, backend: str) -> None:
        check(SMALL.but(sizes=tuple((2 + level, 3) for level in range(count))), backend)

    @BOTH
    @pytest.mark.parametrize("layout", few(MAIN_LAYOUTS))
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_huge_logits(self, dtype: torch.dtype, layout: str, hidden: int, backend: str) -> None:
        check(SMALL.but(layout=layout, dtype=dtype, spread=1e4, hidden=hidden), backend)

    @BOTH
    @pytest.mark.parametrize("layout", few(MAIN_LAYOUTS))
    @pytest.mark.parametrize("topk", few([4, 11, 1]))
    def test_many_ties(self, topk: int, layout: str, hidden: int, backend: str) -> None:
        check(MIDDLE.but(layout=layout, topk=topk, spread=1.0, ties=True, hidden=hidden), backend)

    @BOTH
    @pytest.mark.parametrize("factor", [0.0, -2.0])
    def test_scale_that_is_zero_or_negative(self, factor: float, hidden: int, backend: str) -> None:
        for bins in (17, 20):  # a masked bin must not come back with the sign turned, nor as 0 · −inf
            with running(backend) as device:
                inputs = Case(bins=bins, scales=True, hidden=hidden, sizes=((3, 5),)).inputs(device)
                inputs.scales.fill_(factor)
                found = results(inputs)
            assert_parity("dgqp", found, *definitions(inputs), magnitudes(inputs))

    @pytest.mark.parametrize("kind", FLOATS, ids=str)
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_dtypes_of_logits_and_predictor(self, dtype: torch.dtype, kind: torch.dtype, backend: str) -> None:
        check(MIDDLE.but(dtype=dtype, predictor_dtype=kind), backend)

    def test_weights_of_convolutions(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            want = results(inputs)
            inputs.predictor = [t.detach()[..., None, None] if t.dim() == 2 else t.detach() for t in inputs.predictor]
            inputs.predictor[0] = inputs.predictor[0].contiguous(memory_format=torch.channels_last)
            found = results(inputs)
        for name in want:
            assert torch.equal(found[name].flatten(), want[name].flatten())
        assert found["grad of weight2"].shape == (1, 64, 1, 1)

    @pytest.mark.parametrize("bins", [17, 33])
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_published_head(self, dtype: torch.dtype, bins: int, backend: str) -> None:
        check(PUBLISHED.but(dtype=dtype, bins=bins), backend)

    @pytest.mark.parametrize("layout", few(["channels_last", CROPPED, "rows", "rows sliced"], 1))
    @pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16], 1), ids=str)
    def test_published_head_with_bins_side_by_side(self, dtype: torch.dtype, layout: str, backend: str) -> None:
        check(PUBLISHED.but(dtype=dtype, layout=layout), backend)

    @pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4028e38])
    @pytest.mark.parametrize("name", ["weight1", "bias1", "weight2"])
    def test_a_weight_without_bounds(self, name: str, value: float, backend: str) -> None:
        """A unit whose sum is −∞ is not active; that of +∞ gives what the definition gives."""
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            inputs.predictor[PREDICTOR.index(name)].view(-1)[3] = value
            found = inputs.call().cpu()
        want = inputs.converted(torch.float32).call(of_reference=True)
        # The last bits of so large a number do not count.
        torch.testing.assert_close(found, want, rtol=1e-3 if value == 3.4028e38 else 1e-5, atol=1e-5, equal_nan=True)

    def test_strided_predictor_and_scales(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            want = results(inputs)
            inputs.predictor = [torch.stack([t, t * 7], dim=-1).detach()[..., 0] for t in inputs.predictor]
            inputs.scales = torch.stack([inputs.scales, inputs.scales * 7], dim=1).detach()[:, 0]
            found = results(inputs)
        assert all(torch.equal(found[name], want[name]) for name in want)

    def test_the_definition_s_two_steps(self, backend: str) -> None:
        """The quality is the predictor on the statistics."""
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            quality = inputs.call()
            inputs.case = STATISTICS
            layers, inputs.predictor = inputs.predictor, []
            composed = reference.quality_of(inputs.call(), *layers)
        torch.testing.assert_close(quality, composed, rtol=1e-5, atol=1e-5)

    @BOTH
    @pytest.mark.parametrize(
        "changes",
        [
            {"batch": 0},
            {"sizes": ((0, 0), (0, 3))},
            {"layout": "channels_last", "batch": 0},
            {"layout": "rows", "rows": 0},
        ],
        ids=["no image", "no cell", "no image, channels_last", "no row"],
    )
    def test_empty(self, changes: dict[str, object], hidden: int, backend: str) -> None:
        case = EVERYTHING.but(hidden=hidden, **changes)
        check(case, backend)
        with running(backend) as device:
            found = results(case.inputs(device))
        for name in ["grad of scales", *(f"grad of {part}" for part in PREDICTOR if hidden)]:
            assert float(found[name].abs().sum()) == 0  # written, not left as it was allocated

    @pytest.mark.parametrize(("bins", "seed"), [(45, 47), (45, 299), (17, 295)])
    def test_neighbours_far_from_zero(self, bins: int, seed: int, backend: str) -> None:
        """Two logits of 10⁴ that are near each other: what their products are rounded by must cancel."""
        check(
            STATISTICS.but(layout="rows sliced", bins=bins, rows=40, spread=1e4, variance=False, mean=False, seed=seed),
            backend,
        )

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        bins = data.draw(st.one_of(st.sampled_from([17, 33]), st.integers(2, 65)))
        case = Case(
            layout=data.draw(st.sampled_from([*LEVEL_LAYOUTS, CROPPED, *ROW_LAYOUTS])),
            dtype=data.draw(st.sampled_from(FLOATS)),
            bins=bins,
            topk=data.draw(
                st.one_of(st.just(min(4, bins)), st.integers(1, 8 if INTERPRETED else bins).map(lambda k: min(k, bins)))
            ),
            mean=data.draw(st.booleans()),
            variance=data.draw(st.booleans()),
            scales=data.draw(st.booleans()),
            hidden=data.draw(st.one_of(st.sampled_from([0, 64]), st.integers(0, 140))),
            predictor_dtype=data.draw(st.sampled_from([None, *FLOATS])),
            batch=data.draw(st.integers(0, 2 if INTERPRETED else 3)),
            sizes=tuple(data.draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))),
            rows=data.draw(st.integers(0, 70 if INTERPRETED else 130)),
            spread=data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e4])),
            ties=data.draw(st.booleans()),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestTies:
    """Of equal probabilities the lower bin counts as the larger one, which only gradients see."""

    @pytest.mark.parametrize("topk", [1, 2, 3])
    @pytest.mark.parametrize("bins", [17, 20])
    def test_the_lower_bin_gets_the_gradient(self, bins: int, topk: int, backend: str) -> None:
        with running(backend) as device:
            rows = torch.zeros(1, 4, bins, device=device)
            rows[..., -1] = rows[..., 3] = rows[..., 5] = 2.0  # the three largest, one of them the last bin
            rows.requires_grad_()
            statistics = dgqp_statistics(rows, topk=topk, mean=False)
            found = torch.autograd.grad(statistics[0, topk - 1], rows)[0][0, 0]
        share = float(statistics.detach()[0, 0])
        winner = (3, 5, bins - 1)[topk - 1]
        want = -share * rows.detach()[0, 0].softmax(0)
        want[winner] += share
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-7)

    def test_all_equal(self, backend: str) -> None:
        with running(backend) as device:
            rows = torch.full((2, 4, 17), -1.5, device=device, requires_grad=True)
            statistics = dgqp_statistics(rows, topk=4, mean=False)
            weights = torch.arange(1.0, 5.0, device=device).repeat(4)
            found = torch.autograd.grad((statistics * weights).sum(), rows)[0]
        torch.testing.assert_close(statistics, torch.full_like(statistics, 1 / 17))
        want = torch.zeros(17, device=device)
        want[:4] = torch.arange(1.0, 5.0)
        want = (want - want.sum() / 17) / 17
        torch.testing.assert_close(found, want.expand(2, 4, 17), rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("above", [False, True])
    def test_next_to_a_tie_one_of_the_two_orders_is_right(self, above: bool, backend: str) -> None:
        """One unit in the last place apart: exp may or may not tell them apart."""
        with running(backend) as device:
            rows = torch.linspace(-1, 1, 17, device=device).repeat(1, 4, 1)
            rows[..., 2] = 3.0
            rows[..., 9] = torch.nextafter(torch.tensor(3.0), torch.tensor(9.0 if above else 0.0))
            rows.requires_grad_()
            found = torch.autograd.grad(dgqp_statistics(rows, topk=1, mean=False).sum(), rows)[0]
        candidates = []
        for winner in (2, 9):
            exact = rows.detach().double().cpu()
            exact[..., winner] = 3.0 + 1e-6
            exact.requires_grad_()
            candidates.append(torch.autograd.grad(reference.dgqp_statistics(exact, topk=1, mean=False).sum(), exact)[0])
        errors = [float((found.double().cpu() - candidate).abs().max()) for candidate in candidates]
        assert min(errors) < 1e-5 < max(errors), errors


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @BOTH
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    def test_parity(self, layout: str, hidden: int, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, dtype=torch.float64, hidden=hidden), backend)

    @BOTH
    @pytest.mark.parametrize(("bins", "topk"), [(5, 3), (17, 4)])
    @pytest.mark.parametrize("layout", ["nchw", "sliced", "rows"])
    def test_gradcheck(self, layout: str, bins: int, topk: int, hidden: int, backend: str) -> None:
        case = EVERYTHING.but(
            layout=layout, dtype=torch.float64, bins=bins, topk=topk, hidden=hidden and 6, batch=1, spread=1.0
        ).but(sizes=((2, 3), (1, 1)), rows=3)
        with running(backend):
            inputs = case.inputs()
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]

            def function(*_: torch.Tensor) -> torch.Tensor:
                return inputs.call()

            # Numerical differences are written into the leaves themselves, so that the call above sees them.
            assert torch.autograd.gradcheck(function, leaves, fast_mode=bins > 5)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @BOTH
    @pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "rows", "rows bins apart"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16] if INTERPRETED else FLOATS, ids=str)
    def test_all_of_the_output_and_no_byte_beside_it(
        self, dtype: torch.dtype, layout: str, hidden: int, backend: str
    ) -> None:
        with running(backend) as device:
            case = MIDDLE.but(layout=layout, dtype=dtype, hidden=hidden)
            inputs = case.inputs(device)
            want = results(inputs)
            kernels = implementation("dgqp", backend)
            logits = [tensor.detach() for tensor in inputs.tensors]
            layers = [tensor.detach() for tensor in inputs.predictor]
            if layers:
                layers[2] = layers[2].flatten()
            arguments = {"logits": logits, "predictor": layers, "scales": inputs.scales.detach()}
            arguments |= {"topk": case.topk, "mean": case.mean, "variance": case.variance}

            expected = [want["output"], *(want[name] for name in inputs.leaves())]
            watched = [guarded(tensor) for tensor in expected]
            out, *written = (tensor for tensor, _ in watched)
            levels, parts = written[: len(logits)], written[len(logits) : -1]
            if parts:
                parts[2] = parts[2].view(-1)
            kernels.dgqp_forward(**arguments, out=out)
            gradients = {"grad_logits": levels, "grad_predictor": parts, "grad_scales": written[-1]}
            kernels.dgqp_backward(grad=inputs.cotangent.to(out), **arguments, **gradients)
        for (tensor, guards), wanted in zip(watched, expected, strict=True):
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
            assert all(bool((part == GUARD).all()) for part in guards), "bytes beside an output were overwritten"

    @BOTH
    def test_allocations_are_filled(self, hidden: int, backend: str) -> None:
        """With every torch.empty full of NaN (outputs and partial sums), nothing of it comes through."""
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN
        try:
            assert torch.empty(3).isnan().all()
            with running(backend) as device:
                found = results(PUBLISHED.but(hidden=hidden).inputs(device))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())

    @BOTH
    def test_inputs_are_left_alone(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = PUBLISHED.but(hidden=hidden).inputs(device)
            tensors = [*inputs.tensors, *inputs.predictor, inputs.scales]
            before = [tensor.clone() for tensor in tensors]
            found = results(inputs)
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor, old)
            assert all(tensor.data_ptr() != other.data_ptr() for other in found.values() if other.numel())


@pytest.mark.parametrize("backend", BACKENDS)
class TestMetamorphic:
    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    def test_twice_the_same_bits(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            first, second = (results(PUBLISHED.but(layout=layout).inputs(device)) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_permuted_images(self, backend: str) -> None:
        with running(backend) as device:
            inputs = PUBLISHED.but(batch=3, sizes=((5, 6), (2, 3))).inputs(device)
            out = inputs.call()
            order = torch.tensor([2, 0, 1], device=device)
            inputs.tensors = [tensor[order] for tensor in inputs.tensors]
            assert torch.equal(inputs.call(), out[order])

    def test_permuted_hidden_units(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            straight = results(inputs)
            order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).to(device)
            weight1, bias1, weight2, bias2 = (tensor.detach() for tensor in inputs.predictor)
            inputs.predictor = [weight1[order], bias1[order], weight2[:, order], bias2]
            moved = results(inputs)
        torch.testing.assert_close(moved["output"], straight["output"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moved["grad of weight1"], straight["grad of weight1"][order], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_scaled_loss_scales_the_gradients(self, dtype: torch.dtype, backend: str) -> None:
        with running(backend) as device:
            case = SMALL.but(dtype=dtype)
            once, four_times = (results(case.inputs(device), scale=scale) for scale in (1.0, 4.0))
        for name in once:
            if name != "output":
                # A power of two is exact, but where a float16 gradient is subnormal.
                atol = 2.0**-22 if dtype == torch.float16 else 0.0
                torch.testing.assert_close(once[name] * 4, four_times[name], rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
class TestAutograd:
    @BOTH
    def test_no_gradient_wanted(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(hidden=hidden).inputs(device)
            assert not inputs.call().requires_grad
            with torch.inference_mode():
                found = inputs.call()
        want = inputs.converted(torch.float32).call(of_reference=True)
        torch.testing.assert_close(found.cpu(), want, rtol=1e-5, atol=1e-5)

    @BOTH
    @pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:], ids=str)
    def test_each_gradient_alone(self, wanted: tuple[bool, bool, bool], hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(hidden=hidden).inputs(device)
            every = results(inputs)
            leaves = inputs.leaves()
            for name, leaf in leaves.items():
                leaf.requires_grad_(wanted[0] if "logits" in name else wanted[2] if "scales" in name else wanted[1])
            names = [name for name in leaves if leaves[name].requires_grad]
            if not names:
                return
            out = inputs.call()
            found = torch.autograd.grad(out, [leaves[name] for name in names], inputs.cotangent.to(out))
        for name, gradient in zip(names, found, strict=True):
            assert torch.equal(gradient, every[name])

    def test_gradient_of_one_tensor_of_the_predictor_alone(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            want = results(inputs)["grad of bias1"]
            for leaf in inputs.leaves().values():
                leaf.requires_grad_(False)
            inputs.predictor[1].requires_grad_()
            out = inputs.call()
            found = torch.autograd.grad(out, inputs.predictor[1], inputs.cotangent.to(out))[0]
        assert torch.equal(found, want)

    @BOTH
    def test_backward_twice_over_a_retained_graph(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(hidden=hidden).inputs(device)
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]
            out = inputs.call()
            first = torch.autograd.grad(out, leaves, inputs.cotangent.to(out), retain_graph=True)
            second = torch.autograd.grad(out, leaves, inputs.cotangent.to(out))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @BOTH
    def test_backward_runs_on_the_backend_of_its_forward(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(hidden=hidden).inputs(device)
            want = results(inputs)
            out = inputs.call()
        with gflv2.use_backend("reference"):
            found = torch.autograd.grad(out, list(inputs.leaves().values()), inputs.cotangent.to(out))
        assert all(torch.equal(a, b) for a, b in zip(found, list(want.values())[1:], strict=True))

    @BOTH
    def test_upstream_gradient_of_any_strides(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(hidden=hidden).inputs(device)
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]
            out = inputs.call()
            expanded = torch.autograd.grad(out.sum(), leaves, retain_graph=True)  # arrives as one number, expanded
            dense = torch.autograd.grad(out, leaves, torch.ones_like(out))
        assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))

    def test_activation_checkpointing(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            leaf = inputs.tensors[0].requires_grad_()

            def run(level: torch.Tensor) -> torch.Tensor:
                return dgqp([level * 2], *inputs.predictor)

            plain = torch.autograd.grad(run(leaf).sum(), leaf)[0]
            out = torch.utils.checkpoint.checkpoint(run, leaf, use_reentrant=False)
            found = torch.autograd.grad(out.sum(), leaf)[0]
        assert torch.equal(found, plain)

    @BOTH
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    @pytest.mark.parametrize("predictor_dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_autocast_changes_nothing(
        self, predictor_dtype: torch.dtype, dtype: torch.dtype, hidden: int, backend: str
    ) -> None:
        with running(backend) as device:
            case = SMALL.but(dtype=dtype, predictor_dtype=predictor_dtype, hidden=hidden)
            plain = results(case.inputs(device))

            def mixed(*args: object, **kwargs: object) -> torch.Tensor:
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    return (dgqp if hidden else dgqp_statistics)(*args, **kwargs)

            found = results(case.inputs(device), function=mixed)
        assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.parametrize("backend", KERNELS)
class TestRefusedTransforms:
    @BOTH
    def test_double_backward(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(hidden=hidden).inputs(device)
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]
            out = inputs.call()
            with pytest.raises(RuntimeError, match=f"{inputs.case.op}: double backward"):
                torch.autograd.grad(out, leaves, inputs.cotangent.to(out), create_graph=True)

    @pytest.mark.parametrize("gradient", [False, True])
    def test_vmap(self, gradient: bool, backend: str) -> None:
        with running(backend) as device:
            rows = torch.randn(3, 5, 4, 17, device=device, requires_grad=gradient)
            layers = SMALL.inputs(device).predictor
            with pytest.raises(RuntimeError, match="dgqp_statistics.*vmap"):
                torch.vmap(dgqp_statistics)(rows)
            with pytest.raises(RuntimeError, match="dgqp.*vmap"):
                torch.vmap(lambda row: dgqp(row, *layers))(rows)


@pytest.mark.parametrize("backend", KERNELS)
class TestRegistration:
    @pytest.mark.parametrize("layout", few(MAIN_LAYOUTS, 1))
    def test_opcheck(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            case = SMALL.but(layout=layout, dtype=torch.float16, sizes=((2, 3), (1, 1)), rows=6)
            inputs = case.inputs(device)
            layers = [inputs.predictor[0], inputs.predictor[1], inputs.predictor[2].flatten(), inputs.predictor[3]]
            settings = (inputs.scales, case.topk, case.mean, case.variance, backend)
            ops = torch.ops.gflv2
            torch.library.opcheck(ops.dgqp.default, (inputs.tensors, layers, *settings))
            torch.library.opcheck(ops.dgqp_statistics.default, (inputs.tensors, *settings))
            upstream = inputs.cotangent.float().to(device)
            for needs in ([True, True, True], [False, True, False]):
                torch.library.opcheck(ops.dgqp_backward.default, (upstream, inputs.tensors, layers, *settings, needs))
            upstream = torch.randn_like(ops.dgqp_statistics(inputs.tensors, *settings))
            for needs in ([True, True], [False, True]):
                arguments = (upstream, inputs.tensors, *settings, needs)
                torch.library.opcheck(ops.dgqp_statistics_backward.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
class TestCompile:
    @BOTH
    @pytest.mark.parametrize("layout", few(MAIN_LAYOUTS))
    def test_full_graph(self, layout: str, hidden: int, backend: str) -> None:
        with running(backend) as device:
            case = SMALL.but(layout=layout, hidden=hidden)
            torch._dynamo.reset()
            compiled = torch.compile(dgqp if hidden else dgqp_statistics, fullgraph=True, backend="aot_eager")
            found, plain = results(case.inputs(device), function=compiled), results(case.inputs(device))
        for name in plain:
            torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)

    @BOTH
    def test_other_image_sizes(self, hidden: int, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            function = dgqp if hidden else dgqp_statistics
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
            for size in few((4, 5, 9)):
                case = SMALL.but(hidden=hidden, sizes=((size, size + 1), (size // 2, 2)))
                found, plain = results(case.inputs(device), function=compiled), results(case.inputs(device))
                for name in plain:
                    torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", KERNELS)
def test_inductor(backend: str) -> None:
    with running(backend) as device:
        compiled = torch.compile(dgqp, fullgraph=True, backend="inductor")
        found, plain = results(SMALL.inputs(device), function=compiled), results(SMALL.inputs(device))
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.skipif("cpu" not in KERNELS, reason="about the threads of the cpu backend")
@BOTH
def test_the_number_of_threads_changes_no_bit(hidden: int) -> None:
    before, found = torch.get_num_threads(), []
    try:
        with running("cpu"):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(results(EVERYTHING.but(hidden=hidden, sizes=((40, 41), (20, 21), (3, 3))).inputs()))
    finally:
        torch.set_num_threads(before)
    for name, first in found[0].items():
        assert all(torch.equal(first, other[name]) for other in found[1:]), name


def test_explain_says_why_triton_refuses() -> None:
    inputs = SMALL.but(hidden=1025).inputs()
    choices = {choice.backend: choice.reason for choice in gflv2.explain("dgqp", inputs.tensors, *inputs.predictor)}
    if choices["triton"] and "interpreted" not in choices["triton"] and "installed" not in choices["triton"]:
        assert "1024 hidden units, not 1025" in choices["triton"]
    assert module.refuse_triton(module._describe(inputs.tensors, *inputs.predictor)) is not None
    assert module.refuse_triton(module._describe(inputs.tensors, inputs.predictor[0][:1024])) is None
