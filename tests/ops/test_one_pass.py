"""Losses whose gradient is formed with their value: which they are, and what happens to the gradient that waits."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from gflv2.ops import dfl, native
from gflv2.ops.one_pass import one_pass
from tests.ops import calls
from tests.ops.under_test import INTERPRETED, running

LOSSES = ("qfl", "dfl", "distribution_kl", "giou", "gfl_loss")

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter's process tests Triton alone"),
    pytest.mark.skipif(native.unavailable("cpu") is not None, reason=str(native.unavailable("cpu"))),
]
each_loss = pytest.mark.parametrize("op", LOSSES)


def made(op: str) -> calls.Arguments:
    found = calls.arguments(op, torch.device("cpu"))
    if "reduction" in found:
        found["reduction"] = "sum"
        found.pop("avg_factor", None)
    return found


def total(op: str, arguments: calls.Arguments) -> Tensor:
    return sum(calls.differentiable(calls.function(op)(**arguments)))


def gradients(loss: Tensor, arguments: calls.Arguments, factor: float = 1.0, **options: bool) -> list[Tensor]:
    found = torch.autograd.grad(loss, calls.leaves(arguments), loss.new_tensor(factor), allow_unused=True, **options)
    return [gradient for gradient in found if gradient is not None]


def node_of(op: str, loss: Tensor) -> object:
    """The autograd.Function's own context."""
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "one_pass"):
            return node
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    raise AssertionError(f"{op} is not in the graph")


class TestChoice:
    @pytest.mark.parametrize(
        ("backend", "reduction", "dtypes", "expected"),
        [
            ("cpu", "sum", [torch.float32], True),
            ("cpu", "mean", [torch.float64, None, torch.float64], True),
            ("cpu", "none", [torch.float32], False),
            ("cpu", "sum", [torch.bfloat16], False),
            ("cpu", "sum", [torch.float32, torch.float16], False),
            ("cpu", "sum", [torch.float32, torch.float64], False),
            ("cuda", "sum", [torch.float32], False),
            ("triton", "sum", [torch.float32], False),
            ("simt", "sum", [torch.float32], False),
        ],
        ids=str,
    )
    def test_for(self, backend: str, reduction: str, dtypes: list, expected: bool) -> None:
        tensors = [None if dtype is None else torch.zeros(2, dtype=dtype) for dtype in dtypes]
        assert one_pass(backend, reduction, *tensors) is expected

    @each_loss
    def test_without_gradients_none_are_formed(self, op: str) -> None:
        arguments = made(op)
        with running("cpu"), torch.no_grad(), torch.profiler.profile() as profile:
            calls.function(op)(**arguments)
        assert not any("with_gradient" in event.key for event in profile.key_averages())

    @each_loss
    def test_a_compiled_graph_has_a_backward_of_its_own(self, op: str) -> None:
        arguments, names = made(op), []

        def note(graph: torch.fx.GraphModule, _: object) -> object:
            names.extend(str(node.target) for node in graph.graph.nodes)
            return graph

        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        torch._dynamo.reset()
        noting = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(note(graph, inputs)))
        with running("cpu"):
            loss = torch.compile(lambda given: total(op, given), backend=noting, fullgraph=True)(arguments)
            gradients(loss, arguments)
        assert any(f"{op}_backward" in name for name in names)
        assert not any("with_gradient" in name for name in names)


@each_loss
class TestPrepared:
    def test_the_first_backward_takes_it(self, op: str) -> None:
        arguments = made(op)
        with running("cpu"):
            loss = total(op, arguments)
            node = node_of(op, loss)
            (first, *_) = waiting = list(node.prepared)
            places = {tensor.data_ptr() for tensor in waiting if tensor.numel()}
            found = gradients(loss, arguments, retain_graph=True)
        assert node.prepared is None
        # Handed over, not copied (gfl_loss prepares a part, and also what is no gradient of a leaf).
        assert first.data_ptr() in {tensor.data_ptr() for tensor in found}
        if op != "gfl_loss":
            assert places == {tensor.data_ptr() for tensor in found if tensor.numel()}

    def test_what_becomes_of_it_is_nothing_to_a_second_backward(self, op: str) -> None:
        arguments = made(op)
        with running("cpu"):
            loss = total(op, arguments)
            first = gradients(loss, arguments, 3.0, retain_graph=True)
            want = [gradient.clone() for gradient in first]
            for gradient in first:
                gradient.fill_(7.0)
            again = gradients(loss, arguments, 3.0, retain_graph=True)
            other = gradients(loss, arguments, 1.0)
        assert any(gradient.abs().max() > 0 for gradient in want)
        for gradient, expected, unscaled in zip(again, want, other, strict=True):
            assert torch.equal(gradient, expected)
            torch.testing.assert_close(unscaled * 3.0, expected, rtol=1e-5, atol=1e-7)

    def test_a_freed_graph_says_so(self, op: str) -> None:
        arguments = made(op)
        with running("cpu"):
            loss = total(op, arguments)
            gradients(loss, arguments)
            with pytest.raises(RuntimeError, match="second time"):
                gradients(loss, arguments)

    def test_it_goes_with_the_graph(self, op: str) -> None:
        with running("cpu"):
            loss = total(op, made(op))
            waiting = [weakref.ref(tensor) for tensor in node_of(op, loss).prepared]
            assert all(reference() is not None for reference in waiting)
            del loss
        gc.collect()
        assert all(reference() is None for reference in waiting)

    def test_equals_the_two_passes(self, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernels of forward and backward, which torch.compile and 16-bit tensors take."""
        arguments = made(op)
        with running("cpu"):
            loss = total(op, arguments)
            found = gradients(loss, arguments, -0.3)
            monkeypatch.setattr(sys.modules[calls.function(op).__module__], "one_pass", lambda *_: False)
            other = total(op, arguments)
            assert not node_of(op, other).one_pass
            expected = gradients(other, arguments, -0.3)
        torch.testing.assert_close(loss, other, rtol=1e-6, atol=0)
        for gradient, want in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-7)


class TestTracing:
    """Without torch.compile: forward and backward are traced as they run."""

    LOGITS, TARGET = torch.randn(6, 5), torch.rand(6) * 3.9

    @staticmethod
    def gradient(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.detach().requires_grad_()
        loss = dfl(logits, target, reduction="sum") * 2
        return torch.autograd.grad(loss, logits)[0]

    def test_fake_tensors(self) -> None:
        with FakeTensorMode() as mode, running("cpu"):
            found = self.gradient(mode.from_tensor(self.LOGITS), mode.from_tensor(self.TARGET))
        assert found.shape == self.LOGITS.shape

    def test_make_fx(self) -> None:
        with running("cpu"):
            want = self.gradient(self.LOGITS, self.TARGET)
            traced = make_fx(self.gradient)(self.LOGITS, self.TARGET)
            assert torch.equal(traced(self.LOGITS, self.TARGET), want)


@pytest.mark.parametrize("needs", [[True, True], [True, False], [False, True]], ids=str)
class TestOperations:
    """The registered operations, as torch checks them."""

    def test_opcheck(self, needs: list[bool]) -> None:
        draw = torch.Generator().manual_seed(3)
        logits, target = torch.randn(5, 4, generator=draw), torch.rand(5, generator=draw)
        how = (torch.rand(5, generator=draw), None, 2.0, "sum", "cpu")
        boxes = torch.rand(2, 5, 4, generator=draw).cumsum(-1)
        labels = torch.tensor([0, 3, -1, 2, 1])
        for name, arguments in (
            ("dfl_with_gradient", (logits, target, *how)),
            ("distribution_kl_with_gradient", (logits, logits.flip(0).contiguous(), 3.0, *how)),
            ("giou_with_gradients", (*boxes, True, 1e-6, *how, needs)),
            ("qfl_with_gradients", ([logits], target + 1, labels, target, "class_logits", 2.0, *how, needs)),
        ):
            torch.library.opcheck(getattr(torch.ops.gflv2, name).default, arguments)

    def test_scale(self, needs: list[bool]) -> None:
        tensors = [torch.ones(3) for _ in needs]
        torch.library.opcheck(torch.ops.gflv2.scale_.default, (tensors, torch.tensor(2.0)))


def test_losses_are_all_here() -> None:
    """Every loss that has such an operation."""
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("gflv2::")}
    assert {name.partition("_with_gradient")[0] for name in names if "_with_gradient" in name} == set(LOSSES)
