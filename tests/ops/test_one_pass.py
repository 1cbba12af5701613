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

from gflv2.ops import dfl, native, reduction
from gflv2.ops.implementation import implementation
from gflv2.ops.one_pass import one_pass
from gflv2.ops.registration import flatten
from tests.ops import calls
from tests.ops.under_test import INTERPRETED, running

LOSSES = ("qfl", "focal", "dfl", "distribution_kl", "giou", "gfl_loss")

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
        assert one_pass(backend, reduction, tensors) is expected

    @each_loss
    def test_without_gradients_none_are_formed(self, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = "qfl" if op == "gfl_loss" else op

        def refuse(**_: object) -> None:
            raise AssertionError("called")

        monkeypatch.setattr(implementation(kernel, "cpu"), f"{kernel}_backward", refuse)
        with running("cpu"):
            with torch.no_grad():
                calls.function(op)(**made(op))
            with pytest.raises(AssertionError, match="called"):
                calls.function(op)(**made(op))

    @each_loss
    def test_checkpointed_activations_keep_nothing(self, op: str) -> None:
        """What is saved is thrown away and formed again, and so would be a gradient."""
        arguments = made(op)
        with running("cpu"):
            want = gradients(total(op, arguments), arguments, 0.5)
            loss = torch.utils.checkpoint.checkpoint(lambda: total(op, arguments), use_reentrant=False)
            assert not node_of(op, loss).one_pass
            found = gradients(loss, arguments, 0.5)
        assert_close(found, want)

    @each_loss
    def test_selective_checkpointing(self, op: str) -> None:
        arguments = made(op)

        def contexts() -> tuple:
            return torch.utils.checkpoint.create_selective_checkpoint_contexts(
                lambda *_, **__: torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE
            )

        with running("cpu"):
            want = gradients(total(op, arguments), arguments, 0.5)
            loss = torch.utils.checkpoint.checkpoint(
                lambda: total(op, arguments), use_reentrant=False, context_fn=contexts
            )
            assert_close(gradients(loss, arguments, 0.5), want)

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


@each_loss
class TestPrepared:
    def test_the_first_backward_takes_it(self, op: str) -> None:
        arguments = made(op)
        with running("cpu"):
            loss = total(op, arguments)
            node = node_of(op, loss)
            (first, *_) = waiting = flatten(node.prepared)
            places = {tensor.data_ptr() for tensor in waiting if tensor.numel()}
            found = gradients(loss, arguments, retain_graph=True)
        assert not hasattr(node, "prepared")
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
        assert all(torch.equal(gradient, expected) for gradient, expected in zip(again, want, strict=True))
        assert_close([gradient * 3.0 for gradient in other], want)

    def test_logits_that_have_changed_are_refused(self, op: str) -> None:
        """As by any operation of torch's, although the gradient that waits is still right."""
        arguments = made(op)
        with running("cpu"):
            leaves = calls.leaves(arguments)
            loss = total(op, arguments)
            with torch.no_grad():
                leaves[0].mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                gradients(loss, arguments)

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
            waiting = [weakref.ref(tensor) for tensor in flatten(node_of(op, loss).prepared)]
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
            for module in (reduction, sys.modules["gflv2.ops.gfl_loss"]):
                monkeypatch.setattr(module, "one_pass", lambda *_: False)
            other = total(op, arguments)
            assert not node_of(op, other).one_pass
            expected = gradients(other, arguments, -0.3)
        torch.testing.assert_close(loss, other, rtol=1e-6, atol=0)
        assert_close(found, expected)


def gradient(logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(dfl(logits, target, reduction="sum") * 2, logits)[0]


class TestTracing:
    """What runs more than once, or on something else than numbers, takes the registered operations."""

    LOGITS, TARGET = torch.randn(6, 5), torch.rand(6) * 3.9

    def test_fake_tensors(self) -> None:
        with FakeTensorMode() as mode, running("cpu"):
            found = gradient(mode.from_tensor(self.LOGITS), mode.from_tensor(self.TARGET))
        assert found.shape == self.LOGITS.shape

    def test_make_fx(self) -> None:
        with running("cpu"):
            want = gradient(self.LOGITS, self.TARGET)
            traced = make_fx(gradient)(self.LOGITS, self.TARGET)
            assert_close([traced(self.LOGITS, self.TARGET)], [want])

    def test_make_fx_of_backward_alone(self) -> None:
        logits = self.LOGITS.clone().requires_grad_()
        with running("cpu"):
            loss = dfl(logits, self.TARGET, reduction="sum")
            traced = make_fx(lambda upstream: torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0])(
                torch.tensor(2.0)
            )
            want = gradient(self.LOGITS, self.TARGET)
            for factor in (2.0, 2.0, 3.0):
                assert_close([traced(torch.tensor(factor))], [want * factor / 2])
            assert_close(torch.autograd.grad(loss, logits, torch.tensor(2.0)), [want])

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compiled_autograd(self, backend: str) -> None:
        from torch._dynamo import compiled_autograd

        torch._dynamo.reset()
        logits = self.LOGITS.clone().requires_grad_()
        with running("cpu"):
            want = gradient(self.LOGITS, self.TARGET)
            loss = dfl(logits, self.TARGET, reduction="sum") * 2
            with compiled_autograd._enable(lambda graph: torch.compile(graph, backend=backend)):
                for retain in (True, True, False):
                    logits.grad = None
                    loss.backward(retain_graph=retain)
                    assert_close([logits.grad], [want])

    @pytest.mark.parametrize("op", ["dfl", "distribution_kl"])
    def test_batched_gradients(self, op: str) -> None:
        arguments, factors = made(op), torch.tensor([1.0, -2.0, 3.0])
        with running("cpu"):
            loss = total(op, arguments)
            (found,) = torch.autograd.grad(
                loss, calls.leaves(arguments), factors, is_grads_batched=True, retain_graph=True
            )
            (want,) = gradients(loss, arguments)
        assert_close(list(found), [want * factor for factor in factors])


def assert_close(found: list[Tensor], want: list[Tensor]) -> None:
    for gradient, expected in zip(found, want, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
