"""``gfl_targets`` and ``gfl_loss`` on every backend against their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gflv2
from gflv2.ops import GFLTargets, Predictor, gfl_loss, gfl_targets
from gflv2.ops.box_losses import SavedBoxLoss
from gflv2.ops.checks import compute_dtype
from gflv2.ops.implementation import implementation
from gflv2.ops.registration import flatten
from tests.ops.gfl_loss_cases import STRIDES, Case, definitions, fixed_targets, magnitudes, results
from tests.ops.layouts import CROPPED, LEVEL_LAYOUTS
from tests.ops.memory import assert_untouched, guarded
from tests.ops.parity import assert_parity
from tests.ops.under_test import EXAMPLES, INTERPRETED, backends_of, few, running

BACKENDS = backends_of("gfl_loss")
KERNELS = backends_of("gfl_loss", kernels_only=True)
ON_EVERY_SET = backends_of("gfl_loss", every_set=True)
KERNELS_ON_EVERY_SET = backends_of("gfl_loss", kernels_only=True, every_set=True)
DOUBLE = [name for name in ON_EVERY_SET if name in ("reference", "cpu")]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Case(sizes=((7, 9), (3, 4)))
# Where the quality comes from.
SOURCES = ("predictor", "given", None)

each_source = pytest.mark.parametrize("quality", SOURCES)


def check_targets(case: Case, backend: str) -> None:
    with running(backend) as device:
        inputs = case.inputs(device)
        found = inputs.targets()
    exact, eager = (inputs.converted(d).targets(of_reference=True) for d in (torch.float64, torch.float32))
    assert torch.equal(found.index, inputs.assignment.index)
    assert torch.equal(found.labels.cpu(), exact.labels)
    names = ("boxes", "scores", "weights", "label_weights", "sums", "quality")
    names = [name for name in names if getattr(exact, name) is not None]
    assert (found.quality is None) == (exact.quality is None)
    rooms = [{name: getattr(targets, name) for name in names} for targets in (found, exact, eager)]
    for tensor in rooms[0].values():
        assert tensor.dtype == compute_dtype(case.dtype) and not tensor.requires_grad
    # An IoU is a ratio of areas that are differences of coordinates; a quality is a sum of terms that cancel.
    scale = {"sums": exact.sums.abs(), "scores": torch.ones(()), "quality": torch.full((), 10.0)}
    if exact.quality is not None and exact.quality.numel():
        scale["quality"] += exact.quality.abs().max()
    if exact.quality is not None and exact.weights.numel():
        # An error of the quality is a relative one of the weight.
        scale["weights"] = exact.weights.max() * (1 + scale["quality"])
        scale["sums"] = exact.sums * torch.stack([torch.ones(()), 1 + scale["quality"]])
    assert_parity("gfl_targets", *rooms, scale, context=case)


def check_losses(case: Case, backend: str) -> None:
    with running(backend) as device:
        inputs = case.inputs(device)
        targets, normalisers = fixed_targets(inputs)
        found = results(inputs, targets, normalisers)
        for name, leaf in inputs.leaves().items():
            assert found[name].dtype == leaf.dtype
    exact, eager = definitions(inputs, targets, normalisers)
    assert_parity("gfl_loss", found, exact, eager, magnitudes(inputs, targets, normalisers, exact), context=case)


def check(case: Case, backend: str) -> None:
    check_targets(case, backend)
    check_losses(case, backend)


@pytest.mark.parametrize("backend", ON_EVERY_SET)
class TestParity:
    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    @pytest.mark.parametrize("layout", few(LEVEL_LAYOUTS))
    def test_layouts_and_dtypes(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        check(Case(layout=layout, dtype=dtype), backend)

    @each_source
    @pytest.mark.parametrize("layout", few(["nchw", "channels_last"], 1))
    def test_sources_of_the_quality(self, layout: str, quality: str | None, backend: str) -> None:
        check(SMALL.but(layout=layout, quality=quality), backend)

    @pytest.mark.parametrize("box", few(FLOATS, 1), ids=str)
    @pytest.mark.parametrize("cls", few(FLOATS[::-1]), ids=str)
    def test_mixed_dtypes(self, cls: torch.dtype, box: torch.dtype, backend: str) -> None:
        check(SMALL.but(dtype=box, class_dtype=cls), backend)

    @each_source
    @pytest.mark.parametrize(("bins", "topk"), few([(33, 4), (20, 9), (2, 1), (2, 2), (8, 4), (65, 3)], 1))
    def test_bins(self, bins: int, topk: int, quality: str | None, backend: str) -> None:
        check(SMALL.but(bins=bins, topk=topk, quality=quality), backend)

    @pytest.mark.parametrize("classes", few([1, 2, 80], 1))
    def test_classes(self, classes: int, backend: str) -> None:
        check(SMALL.but(classes=classes), backend)

    @pytest.mark.parametrize(
        "changes",
        few(
            [
                {"projection": (-2.0, 1.5), "offset": 0.5},
                {"padded": True, "batch": 3},
                {"cropped": True, "scales": False},
                {"padded": True, "boxes": 0},
                {"projection": (0.0, 0.5)},
                {"beta": 0.0},
                {"beta": 1.5},
                {"mean": False, "variance": True},
                {"hidden": 5},
                {"boxes": 1, "batch": 3},
                {"spread": 30.0},
            ],
            4,
        ),
        ids=str,
    )
    def test_options(self, changes: dict[str, Any], backend: str) -> None:
        check(SMALL.but(**changes), backend)

    @pytest.mark.skipif(INTERPRETED, reason="the interpreter takes seconds for a case")
    @given(data=st.data())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    def test_any_case(self, backend: str, data: st.DataObject) -> None:
        bins = data.draw(st.one_of(st.sampled_from([17, 33]), st.integers(2, 65)))
        case = Case(
            layout=data.draw(st.sampled_from([*LEVEL_LAYOUTS, CROPPED])),
            dtype=data.draw(st.sampled_from(FLOATS)),
            class_dtype=data.draw(st.sampled_from([None, *FLOATS])),
            bins=bins,
            classes=data.draw(st.sampled_from([1, 3, 20, 80])),
            quality=data.draw(st.sampled_from(SOURCES)),
            topk=data.draw(st.one_of(st.just(min(4, bins)), st.integers(1, min(bins, 9)))),
            mean=data.draw(st.booleans()),
            variance=data.draw(st.booleans()),
            hidden=data.draw(st.integers(1, 80)),
            scales=data.draw(st.booleans()),
            projection=data.draw(st.sampled_from([None, (0.0, 0.5), (1.0, 2.0)])),
            offset=data.draw(st.sampled_from([0.0, 0.5])),
            beta=data.draw(st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0])),
            batch=data.draw(st.integers(1, 3)),
            sizes=tuple(data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))),
            boxes=data.draw(st.integers(0, 9)),
            padded=data.draw(st.booleans()),
            cropped=data.draw(st.booleans()),
            spread=data.draw(st.sampled_from([0.1, 1.5, 10.0])),
            seed=data.draw(st.integers(0, 2**16)),
        )
        check(case, backend)


@pytest.mark.parametrize("backend", DOUBLE)
class TestDouble:
    """float64 runs on ``reference`` and ``cpu``."""

    @each_source
    @pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
    def test_parity(self, layout: str, quality: str | None, backend: str) -> None:
        check(Case(layout=layout, dtype=torch.float64, quality=quality), backend)

    @each_source
    @pytest.mark.parametrize("beta", [1.5, 2.0])
    def test_gradcheck(self, beta: float, quality: str | None, backend: str) -> None:
        """Targets and normalisers are constants."""
        case = Case(dtype=torch.float64, bins=6, topk=3, hidden=6, classes=3, quality=quality, beta=beta)
        with running(backend):
            inputs = case.but(sizes=((4, 5), (2, 2)), spread=1.0).inputs()
            targets, normalisers = fixed_targets(inputs)
            assert (targets.weights > 0).sum() > 3
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]

            def function(*_: Tensor) -> tuple[Tensor, ...]:
                return tuple(inputs.losses(targets, normalisers))

            # Numerical differences are written into the leaves themselves, so that the call above sees them.
            assert torch.autograd.gradcheck(function, leaves, fast_mode=True)

    def test_a_mix_with_float64_runs_on_the_reference(self, backend: str) -> None:
        case = SMALL.but(class_dtype=torch.float64)
        with running(backend):
            inputs = case.inputs()
            if backend == "cpu":
                with pytest.raises(gflv2.ops.backends.BackendError, match="only one is float64"):
                    inputs.targets()
            else:
                inputs.targets()


@pytest.mark.parametrize("backend", BACKENDS)
class TestTargets:
    def test_the_quality_serves_the_loss(self, backend: str) -> None:
        """With the quality of the targets, and without: the same bits."""
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            targets = inputs.targets()
            normalisers = targets.sums.clamp(min=1e-12)
            first = results(inputs, targets, normalisers)
            second = results(inputs, targets._replace(quality=None), normalisers)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_numbers_that_no_box_has(self, backend: str) -> None:
        """Wrong on the device: nothing is read beyond the boxes."""
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            index = inputs.assignment.index
            index[0, :5], index[1, :5] = 10**12, -(10**12)
            targets = inputs.targets()
        assert torch.isfinite(targets.boxes).all()
        assert not targets.weights[1, :5].any() and not targets.label_weights[1, :5].any()

    def test_labels_that_no_class_has(self, backend: str) -> None:
        """They are background; box losses stay."""
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            targets, normalisers = fixed_targets(inputs)
            wrong = torch.where(targets.labels >= 0, 10**9, targets.labels)
            for labels in (wrong, torch.full_like(wrong, -7)):
                found = results(inputs, targets._replace(labels=labels), normalisers)
                want = results(inputs, targets._replace(labels=torch.full_like(labels, -1)), normalisers)
                assert all(torch.equal(found[name], want[name]) for name in found)

    def test_sums_count_an_image_without_boxes_as_one(self, backend: str) -> None:
        with running(backend) as device:
            targets = SMALL.but(boxes=1, batch=4).inputs(device).targets()
            empty = SMALL.but(sizes=((0, 3),)).inputs(device).targets()
        assert float(targets.sums[0]) == float((targets.index[0] > 0).sum()) + 3
        assert empty.sums.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
class TestEmpty:
    @each_source
    def test_no_positive_point(self, quality: str | None, backend: str) -> None:
        """The box losses are exactly 0, and so are their gradients; every gradient is finite."""
        with running(backend) as device:
            inputs = SMALL.but(boxes=0, quality=quality).inputs(device)
            targets = inputs.targets()
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]
            losses = inputs.losses(targets, torch.tensor([1.0, 1e-12], device=device))
            boxes = torch.autograd.grad(losses[1] + losses[2], leaves, retain_graph=True, allow_unused=True)
            every = torch.autograd.grad(sum(losses), leaves)
        assert losses[1].item() == 0 and losses[2].item() == 0 and losses[0].item() > 0
        assert all(gradient is None or not gradient.any() for gradient in boxes)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in every)

    @pytest.mark.parametrize("changes", [{"batch": 0, "padded": False}, {"sizes": ((0, 3), (2, 0))}], ids=str)
    def test_no_point(self, changes: dict[str, Any], backend: str) -> None:
        if changes.get("batch") == 0:
            changes = {"sizes": ((0, 0),)}
        with running(backend) as device:
            inputs = SMALL.but(**changes).inputs(device)
            targets = inputs.targets()
            found = results(inputs, targets, targets.sums.clamp(min=1e-12))
        assert all(not tensor.any() for tensor in found.values())


@pytest.mark.parametrize("backend", BACKENDS)
class TestGradients:
    def test_each_alone(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            targets, normalisers = fixed_targets(inputs)
            every = results(inputs, targets, normalisers)
            leaves = inputs.leaves()
            for group in ("class logits", "grad of logits", "weight1", "bias2", "scales"):
                names = [name for name in leaves if group in name]
                for name, leaf in leaves.items():
                    leaf.requires_grad_(name in names)
                losses = inputs.losses(targets, normalisers)
                total = sum(weight * loss for weight, loss in zip((0.7, -1.3, 2.0), losses, strict=True))
                found = torch.autograd.grad(total, [leaves[name] for name in names])
                assert all(torch.equal(gradient, every[name]) for name, gradient in zip(names, found, strict=True))

    def test_of_one_loss_alone(self, backend: str) -> None:
        """The three add up."""
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            targets, normalisers = fixed_targets(inputs)
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]
            losses = inputs.losses(targets, normalisers)
            parts = [
                torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
                for loss in losses
            ]
            whole = torch.autograd.grad(sum(losses), leaves)
        for total, *pieces in zip(whole, *parts, strict=True):
            torch.testing.assert_close(sum(pieces), total, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    def test_scaled_loss_scales_the_gradients(self, dtype: torch.dtype, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(dtype=dtype).inputs(device)
            targets, normalisers = fixed_targets(inputs)
            once, more = (results(inputs, targets, normalisers, scale=scale) for scale in (1.0, 4.0))
        for name in inputs.leaves():
            # A power of two is exact, but where a float16 gradient is subnormal.
            atol = 2.0**-22 if dtype == torch.float16 else 0.0
            torch.testing.assert_close(once[name] * 4, more[name], rtol=0, atol=atol)

    def test_loss_weights(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.inputs(device)
            targets, normalisers = fixed_targets(inputs)
            maps = (inputs.class_logits, inputs.box_logits, targets, normalisers)
            plain = gfl_loss(*maps, **inputs.arguments, loss_weights=(1.0, 1.0, 1.0))
            found = gfl_loss(*maps, **inputs.arguments, loss_weights=(0.0, 3.0, 0.5))
        torch.testing.assert_close(torch.stack(found), torch.stack(plain) * torch.tensor([0.0, 3.0, 0.5]).to(device))

    def test_permuted_images(self, backend: str) -> None:
        with running(backend) as device:
            inputs = SMALL.but(batch=3).inputs(device)
            targets, normalisers = fixed_targets(inputs)
            straight = results(inputs, targets, normalisers)
            order = torch.tensor([2, 0, 1], device=device)
            levels = ([level.detach()[order] for level in maps] for maps in (inputs.class_logits, inputs.box_logits))
            moved = replace(inputs, **dict(zip(("class_logits", "box_logits"), levels, strict=True)))
            turned = GFLTargets(*(t if t is None or t.dim() == 1 else t[order] for t in targets))
            found = results(moved, turned, normalisers)
        for name, tensor in found.items():
            want = straight[name][order] if "logits" in name else straight[name]
            torch.testing.assert_close(tensor, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", KERNELS_ON_EVERY_SET)
class TestMemory:
    """What the kernels write, and nothing else."""

    @pytest.mark.parametrize("layout", few(["nchw", "channels_last"], 1))
    def test_targets(self, layout: str, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(layout=layout).inputs(device)
            want = inputs.targets()
            outputs = [want.labels, want.boxes, want.scores, want.weights, want.label_weights, want.sums]
            watched = [guarded(tensor) for tensor in outputs]
            names = ("labels", "target_boxes", "scores", "weights", "label_weights", "sums")
            implementation("gfl_targets", backend).gfl_targets(
                class_logits=inputs.class_logits,
                box_logits=inputs.box_logits,
                index=inputs.assignment.index,
                assigned=inputs.assignment.labels,
                boxes=inputs.boxes,
                valid=[],
                strides=list(STRIDES),
                scales=inputs.arguments["scales"],
                projection=torch.arange(17.0, device=device),
                quality=want.quality,
                offset=0.0,
                **{name: tensor for name, (tensor, _) in zip(names, watched, strict=True)},
            )
        for (tensor, guards), expected in zip(watched, outputs, strict=True):
            assert torch.equal(tensor, expected)
            assert_untouched(guards)

    @pytest.mark.parametrize("dtype", few(FLOATS, 1), ids=str)
    @pytest.mark.parametrize("layout", few(["nchw", "channels_last", "sliced"], 1))
    def test_box_losses_and_their_gradient(self, layout: str, dtype: torch.dtype, backend: str) -> None:
        with running(backend) as device:
            inputs = Case(layout=layout, dtype=dtype, quality=None).inputs(device)
            targets, normalisers = fixed_targets(inputs)
            want = results(inputs, targets, normalisers)
            box_logits = [level.detach() for level in inputs.box_logits]
            scales, projection = inputs.arguments["scales"].detach(), torch.arange(17.0, device=device)
            shape = (*targets.weights.shape, 4, 2)
            outputs = [guarded(torch.empty(size, device=device)) for size in (shape, (), ())]
            sides, giou, dfl = (tensor for tensor, _ in outputs)
            implementation("gfl_loss", backend).box_loss_forward(
                box_logits=box_logits,
                boxes=targets.boxes,
                weights=targets.weights,
                normalisers=normalisers,
                strides=list(STRIDES),
                scales=scales,
                projection=projection,
                offset=0.0,
                factors=(2.0, 0.0625),
                sides=sides,
                giou=giou,
                dfl=dfl,
            )
            assert torch.isfinite(sides).all() and not sides[targets.weights == 0].any()
            assert torch.equal(giou, want["giou"]) and torch.equal(dfl, want["dfl"])
            assert_untouched(*(guards for _, guards in outputs))

            watched = [guarded(level) for level in box_logits] + [guarded(scales)]
            *levels, grad_scales = (tensor for tensor, _ in watched)
            upstream = torch.tensor([-1.3, 2.0], device=device).unbind()
            box = SavedBoxLoss(sides, targets.weights, projection, normalisers, *upstream, (2.0, 0.0625))
            statistics = {"topk": 4, "mean": False, "variance": False}
            gradients = {"grad_logits": levels, "grad_predictor": [], "grad_scales": grad_scales}
            implementation("gfl_loss", backend).box_loss_backward(
                grad_quality=None,
                box_logits=box_logits,
                predictor=[],
                scales=scales,
                **statistics,
                **gradients,
                box=box,
            )
        for index, level in enumerate(levels):
            assert torch.equal(level, want[f"grad of logits {index}"])
        assert torch.equal(grad_scales, want["grad of scales"])
        for _, guards in watched:
            assert_untouched(guards)

    def test_allocations_are_filled(self, backend: str) -> None:
        """With every torch.empty full of NaN (outputs and partial sums), nothing of it comes through."""
        torch.use_deterministic_algorithms(True)  # makes torch.empty write NaN
        try:
            assert torch.empty(3).isnan().all()
            with running(backend) as device:
                inputs = SMALL.inputs(device)
                targets = inputs.targets()
                found = results(inputs, targets, targets.sums.clamp(min=1e-12))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in [*targets, *found.values()])

    def test_saved_for_backward(self, backend: str) -> None:
        """The inputs, and a few numbers a point: nothing of the size of a score map, but on a CPU what backward hands
        over: the gradient of the class logits."""
        with running(backend) as device:
            inputs = Case().inputs(device)
            targets, normalisers = fixed_targets(inputs)
            leaves = [leaf.requires_grad_() for leaf in inputs.leaves().values()]
            known = {tensor.data_ptr() for tensor in [*leaves, *targets, normalisers] if tensor is not None}
            new = []

            def pack(tensor: Tensor) -> Tensor:
                if tensor.data_ptr() not in known:
                    new.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                inputs.losses(targets, normalisers)
            losses = inputs.losses(targets, normalisers)  # who asks to see what is saved leaves nothing else
        if backend != "reference":
            points = targets.weights.numel()
            assert sum(new) <= 10 * points + 2000, new
            context = losses.qfl.grad_fn
            waiting = sum(tensor.numel() for tensor in flatten(context.prepared)) if context.one_pass else 0
            expected = points + sum(level.numel() for level in inputs.class_logits) if backend == "cpu" else 0
            assert waiting == expected


class TestHost:
    def test_a_projection_that_learns_runs_on_the_reference(self) -> None:
        inputs = SMALL.but(projection=(0.0, 1.0)).inputs()
        targets, normalisers = fixed_targets(inputs)
        projection = inputs.arguments["projection"].requires_grad_()
        rows = {row.backend: row for row in gflv2.explain("gfl_loss", *maps_of(inputs), **inputs.arguments)}
        assert rows["reference"].chosen and "projection that needs a gradient" in rows["cpu"].reason
        losses = inputs.losses(targets, normalisers)
        assert torch.autograd.grad(losses[1], projection)[0].any()

    def test_no_class(self) -> None:
        inputs = SMALL.inputs()
        inputs.class_logits = [level[:, :0] for level in inputs.class_logits]
        with pytest.raises(ValueError, match="class_logits: expected at least one class"):
            inputs.targets()

    def test_quality_of_another_shape(self) -> None:
        inputs = SMALL.inputs()
        targets, normalisers = fixed_targets(inputs)
        with pytest.raises(ValueError, match="targets.quality: expected a tensor of shape"):
            inputs.losses(targets._replace(quality=torch.zeros(2, 3)), normalisers)

    def test_predictor_of_convolutions(self) -> None:
        inputs = SMALL.inputs()
        plain = inputs.targets()
        layers = inputs.arguments["predictor"]
        shaped = [layer[..., None, None] if layer.dim() == 2 else layer for layer in layers[:4]]
        inputs.arguments["predictor"] = Predictor(*shaped, *layers[4:])
        assert torch.equal(inputs.targets().weights, plain.weights)
        with pytest.raises(ValueError, match="quality_logits: expected None with a predictor"):
            gfl_targets(
                *maps_of(inputs), inputs.assignment, inputs.boxes, **inputs.arguments, quality_logits=plain.scores
            )


def maps_of(inputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    return inputs.class_logits, inputs.box_logits
