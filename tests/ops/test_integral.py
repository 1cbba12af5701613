"""``integral`` on every backend against its definition."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gflv2
from gflv2.ops import integral
from gflv2.ops.implementation import implementation
from gflv2.ops.reference import integral as reference
from tests.ops.integral_cases import Case, cotangent, definitions, magnitudes, results
from tests.ops.layouts import CROPPED, LEVEL_LAYOUTS, ROW_LAYOUTS, SIZES
from tests.ops.memory import GUARD, guarded
from tests.ops.parity import assert_parity
from tests.ops.under_test import EXAMPLES, INTERPRETED, backends_of, running

# `gflv2.ops.integral` is the function; the module of that name has to be asked for.
module = importlib.import_module("gflv2.ops.integral")
BACKENDS = backends_of("integral")
KERNELS = backends_of("integral", kernels_only=True)
ON_EVERY_SET = backends_of("integral", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("integral", kernels_only=True, every_set=True)
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)
MAIN_LAYOUTS = ("nchw", "channels_last", "rows")
# Under the interpreter, which takes a second for a case, the other layouts are tested in one dtype only.
LAYOUTS_AND_DTYPES = [
    (layout, dtype)
    for layout in (*LEVEL_LAYOUTS, *ROW_LAYOUTS)
    for dtype in FLOATS
    if layout in MAIN_LAYOUTS or dtype == torch.bfloat16 or not INTERPRETED
]
EVERYTHING = Case(projection="learned", scales=True, decode=True, offset=0.5)


def check(case: Case, backend: str) -> None:
    with running(backend) as device:
        inputs = case.inputs(device)
        found = results(integral, inputs)
        for name, leaf in inputs.leaves().items():
            assert found[name].dtype == leaf.dtype
        expected = torch.float64 if case.dtype == torch.float64 else torch.float32
        assert found["output"].dtype == expected
    assert_parity("integral", found, *definitions(inputs), magnitudes(inputs), context=case)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize(("layout", "dtype"), LAYOUTS_AND_DTYPES, ids=str)
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, dtype=dtype), backend)

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("bins", [2, 3, 7, 8, 33, 64, 65])
    def test_bins(self, bins: int, layout: str, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, bins=bins, sizes=((9, 11),), rows=90), backend)

    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    @pytest.mark.parametrize("projection", ["default", "given", "learned"])
    @pytest.mark.parametrize(("scales", "decode"), [(False, False), (True, False), (False, True)])
    def test_options(self, projection: str, scales: bool, decode: bool, layout: str, backend: str) -> None:
        case = Case(layout=layout, projection=projection, scales=scales, decode=decode, sizes=((6, 7), (3, 4)), rows=60)
        check(case, backend)

    @pytest.mark.parametrize("count", range(1, 9))
    def test_number_of_levels(self, count: int, backend: str) -> None:
        check(EVERYTHING.but(sizes=tuple((2 + level, 3) for level in range(count))), backend)

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_huge_logits(self, dtype: torch.dtype, layout: str, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, dtype=dtype, spread=1e4, sizes=((6, 7),), rows=60), backend)

    @pytest.mark.parametrize("factor", [0.0, -2.0])
    def test_scale_that_is_zero_or_negative(self, factor: float, backend: str) -> None:
        for bins in (17, 20):  # a masked bin must not come back with the sign turned, nor as 0 · −inf
            with running(backend) as device:
                inputs = Case(bins=bins, scales=True, sizes=((3, 5),)).inputs(device)
                inputs.scales.fill_(factor)
                found = results(integral, inputs)
            assert_parity("integral", found, *definitions(inputs), magnitudes(inputs))

    def test_equal_logits_give_the_mean_of_the_projection(self, backend: str) -> None:
        with running(backend) as device:
            found = integral(torch.full((3, 4, 17), 2.5, device=device))
        torch.testing.assert_close(found.cpu(), torch.full((3, 4), 8.0), rtol=0, atol=2e-6)

    def test_scalar_scale_of_rows(self, backend: str) -> None:
        with running(backend) as device:
            rows, scale = torch.randn(5, 4, 9, device=device), torch.tensor(1.5, device=device, requires_grad=True)
            found = integral(rows, scales=scale)
            gradient = torch.autograd.grad(found.sum(), scale)[0]
        assert gradient.shape == ()
        torch.testing.assert_close(found, reference.integral(rows, scales=scale), rtol=1e-5, atol=1e-5)

    def test_strided_projection_and_scales(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.but(sizes=((3, 4), (2, 2))).inputs(device)
            inputs.projection = torch.stack([inputs.projection, inputs.projection * 7], dim=1)[:, 0]
            inputs.scales = torch.stack([inputs.scales, inputs.scales * 7], dim=1)[:, 0]
            found = results(integral, inputs)
        assert_parity("integral", found, *definitions(inputs), magnitudes(inputs))

    @pytest.mark.parametrize(
        "case",
        [
            EVERYTHING.but(batch=0),
            EVERYTHING.but(sizes=((0, 0), (0, 3))),
            EVERYTHING.but(layout="channels_last", batch=0),
            EVERYTHING.but(layout="rows", rows=0),
        ],
        ids=["no image", "no cell", "no image, channels_last", "no row"],
    )
    def test_empty(self, case: Case, backend: str) -> None:
        check(case, backend)
        with running(backend) as device:
            found = results(integral, case.inputs(device))
        assert float(found["grad of projection"].abs().sum()) == 0  # written, not left as it was allocated
        assert float(found["grad of scales"].abs().sum()) == 0

    def test_a_row_far_from_zero(self, backend: str) -> None:
        """What the products of large logits are rounded by must cancel."""
        check(Case(layout="rows", bins=15, projection="learned", rows=1, spread=30.0, seed=86), backend)

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
    @given(data=st.data())
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        case = Case(
            layout=data.draw(st.sampled_from([*LEVEL_LAYOUTS, CROPPED, *ROW_LAYOUTS])),
            dtype=data.draw(st.sampled_from(FLOATS)),
            bins=data.draw(st.integers(2, 65)),
            projection=data.draw(st.sampled_from(["default", "given", "learned"])),
            scales=data.draw(st.booleans()),
            decode=data.draw(st.booleans()),
            offset=data.draw(st.sampled_from([0.0, 0.5])),
            batch=data.draw(st.integers(0, 3)),
            sizes=tuple(data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))),
            rows=data.draw(st.integers(0, 130)),
            spread=data.draw(st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e4])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", [name for name in ON_EVERY_SET if name in ("reference", "cpu")])
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    def test_parity(self, layout: str, backend: str) -> None:
        check(EVERYTHING.but(layout=layout, dtype=torch.float64), backend)

    @pytest.mark.parametrize("bins", [5, 17])
    @pytest.mark.parametrize("layout", ["nchw", "sliced", "rows"])
    def test_gradcheck(self, layout: str, bins: int, backend: str) -> None:
        case = EVERYTHING.but(
            layout=layout, dtype=torch.float64, bins=bins, batch=1, sizes=((2, 3), (1, 1)), rows=3, spread=1.0
        )
        with running(backend):
            inputs = case.inputs()
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]

            def function(*_: torch.Tensor) -> torch.Tensor:
                return inputs.call(integral)

            # Numerical differences are written into the leaves themselves, so that the call above sees them.
            assert torch.autograd.gradcheck(function, leaves, fast_mode=bins > 5)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "rows", "rows bins apart"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16] if INTERPRETED else FLOATS, ids=str)
    def test_all_of_the_output_and_no_byte_beside_it(self, dtype: torch.dtype, layout: str, backend: str) -> None:
        with running(backend) as device:
            case = EVERYTHING.but(layout=layout, dtype=dtype)
            inputs = case.inputs(device)
            want = results(integral, inputs)
            kernels = implementation("integral", backend)
            point_strides = inputs.strides if case.by_rows else None
            strides = [] if case.by_rows else inputs.strides
            arguments = {
                "logits": inputs.tensors,
                "projection": inputs.projection,
                "scales": inputs.scales,
                "points": inputs.points,
                "point_strides": point_strides,
            }
            arguments = {name: _detached(value) for name, value in arguments.items()}
            arguments |= {"strides": strides, "offset": 0.5}

            out, guards = guarded(want["output"])
            kernels.integral_forward(**arguments, out=out)
            gradients = [want[name] for name in inputs.leaves()]
            watched = [guarded(gradient) for gradient in gradients]
            written = [tensor for tensor, _ in watched]
            *levels, grad_projection, grad_scales = written
            of_small = {"grad_projection": grad_projection, "grad_scales": grad_scales}
            kernels.integral_backward(grad=cotangent(out), **arguments, grad_logits=levels, **of_small)
        for tensor, expected in zip([out, *written], [want["output"], *gradients], strict=True):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
        for _, guard in [(out, guards), *watched]:
            assert all(bool((part == GUARD).all()) for part in guard), "bytes beside an output were overwritten"

    def test_allocations_are_filled(self, backend: str) -> None:
        """With every torch.empty full of NaN (outputs and partial sums), nothing of it comes through."""
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN
        try:
            assert torch.empty(3).isnan().all()
            with running(backend) as device:
                found = results(integral, EVERYTHING.inputs(device))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())

    def test_inputs_are_left_alone(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            before = [tensor.clone() for tensor in (*inputs.tensors, inputs.projection, inputs.scales)]
            found = results(integral, inputs)
        for tensor, old in zip((*inputs.tensors, inputs.projection, inputs.scales), before, strict=True):
            assert torch.equal(tensor, old)
            assert all(tensor.data_ptr() != other.data_ptr() for other in found.values() if other.numel())


@pytest.mark.parametrize("backend", BACKENDS)
class TestMetamorphic:
    @pytest.mark.parametrize("layout", ["nchw", "rows"])
    def test_twice_the_same_bits(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            first, second = (results(integral, EVERYTHING.but(layout=layout).inputs(device)) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_permuted_images(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.but(batch=3, sizes=((5, 6), (2, 3))).inputs(device)
            straight = results(integral, inputs)
            order = torch.tensor([2, 0, 1], device=device)
            out = straight["output"]
            moved = inputs.converted(torch.float32)
            moved.tensors = [tensor.to(device)[order] for tensor in moved.tensors]
            moved.projection, moved.scales = moved.projection.to(device), moved.scales.to(device)
            found = moved.call(integral)
        assert torch.equal(found.detach(), out[order])

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_scaled_loss_scales_the_gradients(self, dtype: torch.dtype, backend: str) -> None:
        with running(backend) as device:
            case = EVERYTHING.but(dtype=dtype, sizes=((5, 6), (2, 3)))
            once, four_times = (results(integral, case.inputs(device), scale=scale) for scale in (1.0, 4.0))
        for name in once:
            if name != "output":
                # A power of two is exact, but where a float16 gradient is subnormal.
                atol = 2.0**-22 if dtype == torch.float16 else 0.0
                torch.testing.assert_close(once[name] * 4, four_times[name], rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
class TestAutograd:
    def test_no_gradient_wanted(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            assert not inputs.call(integral).requires_grad
            with torch.inference_mode():
                found = inputs.call(integral)
        torch.testing.assert_close(
            found.cpu(), inputs.converted(torch.float32).call(reference.integral), rtol=1e-5, atol=1e-3
        )

    @pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:], ids=str)
    def test_each_gradient_alone(self, wanted: tuple[bool, bool, bool], backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.but(sizes=((5, 6), (2, 3))).inputs(device)
            every = results(integral, inputs)
            leaves = inputs.leaves()
            for name, leaf in leaves.items():
                leaf.requires_grad_(wanted[1] if "projection" in name else wanted[2] if "scales" in name else wanted[0])
            names = [name for name in leaves if leaves[name].requires_grad]
            out = inputs.call(integral)
            found = torch.autograd.grad(out, [leaves[name] for name in names], cotangent(out))
        for name, gradient in zip(names, found, strict=True):
            assert torch.equal(gradient, every[name])

    def test_gradient_of_one_level_alone(self, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(sizes=((3, 4), (2, 3))).inputs(device)
            inputs.tensors[1].requires_grad_()
            out = inputs.call(integral)
            found = torch.autograd.grad(out, inputs.tensors[1], cotangent(out))[0]
            want = results(integral, Case(sizes=((3, 4), (2, 3))).inputs(device))["grad of logits 1"]
        assert torch.equal(found, want)

    def test_backward_runs_on_the_backend_of_its_forward(self, backend: str) -> None:
        with running(backend) as device:
            inputs = EVERYTHING.inputs(device)
            want = results(integral, inputs)
            out = inputs.call(integral)
        leaves = list(inputs.leaves().values())
        with gflv2.use_backend("reference"):
            found = torch.autograd.grad(out, leaves, cotangent(out))
        assert all(torch.equal(a, b) for a, b in zip(found, list(want.values())[1:], strict=True))

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_autocast_changes_nothing(self, dtype: torch.dtype, backend: str) -> None:
        with running(backend) as device:
            case = EVERYTHING.but(dtype=dtype, sizes=((5, 6), (2, 3)))
            plain = results(integral, case.inputs(device))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                found = results(integral, case.inputs(device))
        assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.parametrize("backend", KERNELS)
class TestRegistration:
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    def test_opcheck(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            case = EVERYTHING.but(layout=layout, dtype=torch.float16, sizes=((3, 4), (2, 3)), rows=6)
            inputs = case.inputs(device)
            point_strides = inputs.strides if case.by_rows else None
            strides = [] if case.by_rows else inputs.strides
            arguments = (inputs.tensors, inputs.projection, inputs.scales, inputs.points, point_strides, strides, 0.5)
            arguments = (*arguments, backend)
            torch.library.opcheck(torch.ops.gflv2.integral.default, arguments)
            upstream = cotangent(torch.ops.gflv2.integral(*arguments))
            for needs in ([True, True, True], [False, True, False]):
                torch.library.opcheck(torch.ops.gflv2.integral_backward.default, (upstream, *arguments, needs))


@pytest.mark.parametrize("backend", BACKENDS)
class TestCompile:
    @pytest.mark.parametrize("layout", MAIN_LAYOUTS)
    def test_full_graph(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            case = EVERYTHING.but(layout=layout, sizes=((5, 6), (2, 3)), rows=20)
            torch._dynamo.reset()
            compiled = torch.compile(integral, fullgraph=True, backend="aot_eager")
            found, plain = results(compiled, case.inputs(device)), results(integral, case.inputs(device))
        for name in plain:
            torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)

    def test_other_image_sizes(self, backend: str) -> None:
        with running(backend) as device:
            torch._dynamo.reset()
            compiled = torch.compile(integral, fullgraph=True, backend="aot_eager", dynamic=True)
            for size in (4, 6, 9):
                case = EVERYTHING.but(sizes=((size, size + 1), (size // 2, 2)))
                found, plain = results(compiled, case.inputs(device)), results(integral, case.inputs(device))
                for name in plain:
                    torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", KERNELS)
def test_inductor(backend: str) -> None:
    with running(backend) as device:
        case = EVERYTHING.but(sizes=((5, 6), (2, 3)))
        compiled = torch.compile(integral, fullgraph=True, backend="inductor")
        found, plain = results(compiled, case.inputs(device)), results(integral, case.inputs(device))
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-6, atol=1e-6)


class TestArguments:
    """Errors name the argument, what was expected and what came."""

    LEVELS = [torch.zeros(2, 68, 3, 4), torch.zeros(2, 68, 2, 2)]
    ROWS = torch.zeros(5, 4, 17)

    @pytest.mark.parametrize(
        ("arguments", "keywords", "error", "message"),
        [
            ((torch.zeros(5, 68),), {}, ValueError, r"box_logits: .*\(M, 4, R\).*\(5, 68\)"),
            (([torch.zeros(2, 66, 3, 4)],), {}, ValueError, r"box_logits: .*4·R channels.*\(2, 66, 3, 4\)"),
            (([],), {}, ValueError, "box_logits: .*1 to 8 levels.*0"),
            (([torch.zeros(1, 8, 1, 1)] * 9,), {}, ValueError, "box_logits: .*1 to 8 levels.*9"),
            ((torch.zeros(5, 4, 66),), {}, ValueError, "box_logits: .*2 to 65 bins.*66"),
            ((torch.zeros(5, 4, 1),), {}, ValueError, "box_logits: .*2 to 65 bins"),
            ((torch.zeros(5, 4, 17, dtype=torch.int64),), {}, TypeError, "box_logits: .*float32.*int64"),
            (([LEVELS[0], LEVELS[1].double()],), {}, TypeError, r"box_logits\[1\]: .*float32.*float64"),
            (([LEVELS[0], torch.zeros(3, 68, 2, 2)],), {}, ValueError, r"box_logits\[1\]: .*batch 2.*\(3, 68, 2, 2\)"),
            ((LEVELS, torch.zeros(16)), {}, ValueError, r"projection: .*\(17\).*\(16,\)"),
            ((LEVELS, torch.zeros(17, device="meta")), {}, ValueError, "projection: .*cpu.*meta"),
            ((LEVELS,), {"scales": torch.ones(3)}, ValueError, r"scales: .*\(2,\).*\(3,\)"),
            ((LEVELS,), {"scales": 1.0}, TypeError, "scales: expected a tensor, got 1.0"),
            ((LEVELS,), {"strides": [8.0]}, ValueError, "strides: .*2 numbers"),
            ((LEVELS,), {"strides": [8.0, -1.0]}, ValueError, r"strides.1.: .*number > 0.*-1.0"),
            ((LEVELS,), {"strides": torch.ones(2)}, TypeError, "strides: .*list of 2 numbers"),
            ((LEVELS,), {"points": torch.zeros(5, 2)}, ValueError, "points: .*None with levels"),
            ((ROWS,), {"points": torch.zeros(5, 2)}, ValueError, "strides: .*both"),
            ((ROWS,), {"strides": torch.ones(5)}, ValueError, "points: .*both"),
            (
                (ROWS,),
                {"points": torch.zeros(4, 2), "strides": torch.ones(5)},
                ValueError,
                r"points: .*\(5, 2\).*\(4, 2\)",
            ),
        ],
    )
    def test_errors(self, arguments: tuple, keywords: dict, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            integral(*arguments, **keywords)

    def test_sizes_of_the_shared_cases(self) -> None:
        """The cases must reach several blocks of a kernel, a level without cells, and one of a single cell."""
        counts = [height * width for height, width in SIZES]
        assert max(counts) > 512 and 0 in counts and 1 in counts


def _detached(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(item) for item in value)
    return value
