"""What torch answers about who observes a call. When torch changes the private functions behind it, it is said here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gflv2
from gflv2.ops import dfl, native, observed
from tests.ops.under_test import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter's process tests Triton alone")


@pytest.mark.parametrize(
    "name",
    [
        "_C._len_torch_dispatch_stack",
        "_C._functorch.peek_interpreter_stack",
        "_C._dispatch_key_parse",
        "_C._dispatch_tls_is_dispatch_key_included",
        "_C._autograd._top_saved_tensors_default_hooks",
        "_C._get_tracing_state",
        "autograd.profiler._is_profiler_enabled",
    ],
)
def test_torch_still_has(name: str) -> None:
    found: object = torch
    for part in name.split("."):
        found = getattr(found, part, None)
        assert found is not None, (
            f"torch {torch.__version__} has no torch.{name}: gflv2/ops/observed.py must ask something else"
        )


def test_plain_tensors_are_ordinary() -> None:
    tensor, parameter = torch.zeros(2), torch.nn.Parameter(torch.zeros(2))
    assert observed.ordinary([tensor, parameter, None, [tensor, parameter], []])
    assert not observed.saving_is_observed()


class Subclass(Tensor):
    pass


def test_subclasses_are_not() -> None:
    assert not observed.ordinary([torch.zeros(2).as_subclass(Subclass)])
    assert not observed.ordinary([None, [torch.zeros(2), torch.zeros(2).as_subclass(Subclass)]])


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [FakeTensorMode, Names])
def test_modes_are_seen(mode: type) -> None:
    tensor = torch.zeros(2)
    with mode():
        assert not observed.ordinary([tensor])
    assert observed.ordinary([tensor])


def test_transforms_are_seen() -> None:
    answers = []

    def ask(tensor: Tensor) -> Tensor:
        answers.append(observed.ordinary([torch.zeros(2)]))
        return tensor.sum()

    torch.func.grad(ask)(torch.zeros(2))
    torch.func.vmap(ask)(torch.zeros(3, 2))
    assert answers == [False, False]


def test_batched_gradients_are_seen() -> None:
    answers = []

    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):  # noqa: ANN001
            return tensor * 2

        @staticmethod
        def backward(ctx, grad):  # noqa: ANN001
            answers.append(observed.ordinary([grad]))
            return grad * 2

    tensor = torch.zeros(2, requires_grad=True)
    torch.autograd.grad(Asking.apply(tensor), tensor, torch.eye(2), is_grads_batched=True)
    assert answers == [False]


@pytest.mark.filterwarnings("ignore")
def test_a_trace_is_seen() -> None:
    answers = []

    def ask(tensor: Tensor) -> Tensor:
        answers.append(observed.ordinary([torch.zeros(2)]))
        return tensor + 1

    torch.jit.trace(ask, torch.zeros(2), check_trace=False)
    assert answers == [False]


def test_hooks_on_saved_tensors_are_seen() -> None:
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        assert observed.saving_is_observed()


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason=str(native.unavailable("cpu")))
class TestObservers:
    """They see the registered operation, although an ordinary call does not pass torch's dispatcher."""

    LOGITS, TARGET = torch.randn(6, 5), torch.rand(6) * 3.9

    def test_a_mode(self) -> None:
        with gflv2.use_backend("cpu"), Names() as mode:
            dfl(self.LOGITS, self.TARGET)
        assert "gflv2.dfl.default" in mode.names

    def test_the_profiler(self) -> None:
        logits = self.LOGITS.clone().requires_grad_()
        with gflv2.use_backend("cpu"), torch.profiler.profile() as profile:
            dfl(logits, self.TARGET).backward()
        assert {"gflv2::dfl", "gflv2::dfl_backward"} <= {event.name for event in profile.events()}

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
    def test_an_average_factor_of_any_dtype_is_read_as_a_number(self, dtype: torch.dtype) -> None:
        with gflv2.use_backend("cpu"):
            want = dfl(self.LOGITS, self.TARGET, avg_factor=5.0)
            found = dfl(self.LOGITS, self.TARGET, avg_factor=torch.tensor(5, dtype=dtype))
        torch.testing.assert_close(found, want)

    def test_a_lazily_negated_tensor_is_read_as_what_it_means(self) -> None:
        negated = torch.randn(6, 5, dtype=torch.complex64).conj().imag
        assert negated.is_neg()
        with gflv2.use_backend("cpu"):
            torch.testing.assert_close(dfl(negated, self.TARGET), dfl(negated.clone(), self.TARGET))

    def test_forward_mode_is_refused(self) -> None:
        with gflv2.use_backend("cpu"), pytest.raises(RuntimeError, match="dfl: forward-mode derivatives"):
            torch.func.jvp(lambda logits: dfl(logits, self.TARGET), (self.LOGITS,), (torch.ones(6, 5),))
