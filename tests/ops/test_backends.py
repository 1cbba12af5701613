"""Which backend runs a call: preference, request, refusal, explanation, and the one warning about a fallback."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import gflv2
from gflv2.ops import backends, integral
from gflv2.ops.backends import BackendError, Call, Choice

CPU = torch.device("cpu")
LEVELS = [torch.randn(1, 68, 2, 3)]


def test_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GFLV2_BACKEND", raising=False)
    assert backends.requested_backend() is None
    with gflv2.use_backend("reference"):
        assert backends.requested_backend() == "reference"
        with gflv2.use_backend("cpu"):
            assert backends.requested_backend() == "cpu"
        with gflv2.use_backend(None):
            assert backends.requested_backend() is None
        assert backends.requested_backend() == "reference"
    assert backends.requested_backend() is None


def test_request_without_a_block_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GFLV2_BACKEND", raising=False)
    gflv2.use_backend("reference")
    try:
        assert backends.requested_backend() == "reference"
    finally:
        gflv2.use_backend(None)
    assert backends.requested_backend() is None


def test_request_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), gflv2.use_backend("reference"):
        raise KeyError
    assert backends._requested is None


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFLV2_BACKEND", "reference")
    assert backends.requested_backend() == "reference"
    with gflv2.use_backend("cpu"):  # a request in the program goes before the environment
        assert backends.requested_backend() == "cpu"
    monkeypatch.setenv("GFLV2_BACKEND", "")
    assert backends.requested_backend() is None


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="use_backend: name: expected one of cuda, triton, cpu.*got 'gpu'"):
        gflv2.use_backend("gpu")
    monkeypatch.setenv("GFLV2_BACKEND", "gpu")
    with pytest.raises(ValueError, match="GFLV2_BACKEND: expected one of cuda.*got 'gpu'"):
        integral(LEVELS)


def test_what_a_requested_backend_cannot_take_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with gflv2.use_backend("cuda"), pytest.raises(BackendError, match="integral: backend 'cuda' .*tensors are on cpu"):
        integral(LEVELS)
    monkeypatch.setitem(backends._refusals, "invented", {"reference": None})
    with gflv2.use_backend("triton"), pytest.raises(BackendError, match="invented has no triton kernel"):
        backends.select("invented", _call())


def test_triton_on_a_cpu_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    monkeypatch.setattr(backends, "_available", set())  # what is found here holds for this test alone
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with gflv2.use_backend("triton"), pytest.raises(BackendError, match="TRITON_INTERPRET=1 before the import"):
        integral(LEVELS)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with (
        gflv2.use_backend("triton"),
        pytest.raises(BackendError, match="integral: .*float64 runs on cpu and reference"),
    ):
        integral([level.double() for level in LEVELS])


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"), [("3.6.0", "2.4.6", False), ("3.6.0", "2.3.5", True), ("3.7.0", "2.4.0", True)]
)
def test_an_interpreter_that_cannot_read_numpy(
    triton: str, numpy: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in {"triton": triton, "numpy": numpy}.items():
        monkeypatch.setattr(pytest.importorskip(name), "__version__", version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = backends._why_unavailable("triton", "cpu")
    assert reason == (None if runs else "the interpreter of Triton 3.6.0 needs numpy below 2.4, not 2.4.6")


def test_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best backend of the device that takes the call; the interpreter and the emulation only on request."""
    monkeypatch.delenv("GFLV2_BACKEND", raising=False)
    monkeypatch.setattr(backends, "unavailable", lambda backend, device: None)
    every = {name: None for name in backends.BACKENDS}
    picky = {**every, "cpu": lambda call: None if call.facts["bins"] < 9 else "it takes 8 bins at most"}
    monkeypatch.setitem(backends._refusals, "invented", picky)
    assert backends.select("invented", Call(CPU, torch.float32, {"bins": 8})) == "cpu"
    assert backends.select("invented", Call(CPU, torch.float32, {"bins": 9})) == "reference"
    assert backends.select("invented", Call(torch.device("cuda"), torch.float32, {"bins": 9})) == "cuda"
    assert backends.select("invented", Call(torch.device("meta"), torch.float32, {"bins": 9})) == "reference"
    del picky["cuda"]
    assert backends.select("invented", Call(torch.device("cuda"), torch.float32, {"bins": 9})) == "triton"
    with gflv2.use_backend("cpu"), pytest.raises(BackendError, match="invented: backend 'cpu'.*8 bins at most"):
        backends.select("invented", Call(CPU, torch.float32, {"bins": 9}))


def test_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GFLV2_BACKEND", raising=False)
    for op in (integral, "integral"):
        rows = gflv2.explain(op, LEVELS)
        assert [row.backend for row in rows] == list(backends.BACKENDS)
        assert [row.backend for row in rows if row.chosen] == [backends.select("integral", _call())]
        assert all(bool(row.reason) != row.chosen for row in rows)
        assert {row.backend: row.reason for row in rows}["cuda"] == "the tensors are on cpu"
    with gflv2.use_backend("reference"):
        rows = {row.backend: row for row in gflv2.explain("integral", LEVELS)}
    assert rows["reference"] == Choice("reference", True, "")
    assert not any(row.chosen for name, row in rows.items() if name != "reference")


def test_explain_where_the_request_cannot_be_met() -> None:
    with gflv2.use_backend("cuda"):
        rows = gflv2.explain("integral", LEVELS)
    assert not any(row.chosen for row in rows)
    assert all(row.reason for row in rows)


def test_explain_prints_a_table() -> None:
    with gflv2.use_backend("reference"):
        lines = repr(gflv2.explain("integral", LEVELS)).splitlines()
    assert len(lines) == len(backends.BACKENDS)
    assert "reference  runs this call" in lines


def test_explain_computes_nothing_and_checks_arguments() -> None:
    assert gflv2.explain("integral", [torch.empty(1, 68, 2, 3, device="meta")])
    with pytest.raises(ValueError, match="box_logits"):
        gflv2.explain("integral", torch.zeros(3, 5))
    with pytest.raises(ValueError, match="explain: op: expected one of .*integral.*got 'softmax'"):
        gflv2.explain("softmax", LEVELS)


def test_every_operation_has_a_reference() -> None:
    assert "integral" in backends.operations()
    for op in backends.operations():
        assert "reference" in backends._refusals[op], op


class TestFallback:
    """Plain PyTorch instead of the native library is told once a process."""

    @pytest.fixture(autouse=True)
    def _no_native_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GFLV2_BACKEND", raising=False)
        monkeypatch.setattr(backends, "_warned", False)
        monkeypatch.setattr(
            backends, "unavailable", lambda backend, device: None if backend == "reference" else "there is no compiler"
        )

    def test_told_once(self) -> None:
        with pytest.warns(RuntimeWarning, match="integral runs in plain PyTorch: there is no compiler.*gflv2.env"):
            found = integral(LEVELS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(integral(LEVELS), found)

    def test_not_told_where_it_was_asked_for(self) -> None:
        with warnings.catch_warnings(), gflv2.use_backend("reference"):
            warnings.simplefilter("error")
            integral(LEVELS)

    def test_not_told_where_no_native_kernel_exists(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(backends._refusals, "invented", {"reference": None})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backends.select("invented", Call(CPU, torch.float32, {})) == "reference"


def test_the_environment_chooses_for_a_whole_program() -> None:
    program = (
        "import torch, gflv2\n"
        "rows = gflv2.explain('integral', torch.zeros(2, 4, 17))\n"
        "print([row.backend for row in rows if row.chosen])\n"
    )
    environment = {**os.environ, "GFLV2_BACKEND": "reference"}
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "['reference']", run.stderr


def test_an_exported_graph_is_plain_pytorch() -> None:
    """It must run where this package is not installed."""

    class Module(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return integral([logits])

    program = torch.export.export(Module(), (LEVELS[0],))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not any("gflv2" in target for target in targets)
    torch.testing.assert_close(program.module()(LEVELS[0]), integral(LEVELS))


def _call() -> Call:
    return Call(CPU, torch.float32, {"bins": 17})


def test_compiling_is_not_exporting() -> None:
    """torch 2.9 takes the one for the other, and compiled code would run in plain PyTorch, silently."""

    def ask(x: torch.Tensor) -> torch.Tensor:
        return x + int(backends.exporting())

    torch._dynamo.reset()
    assert torch.compile(ask, fullgraph=True, backend="eager")(torch.zeros(())) == ask(torch.zeros(())) == 0

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ask(x)

    for strict in (False, True):
        assert torch.export.export(Module(), (torch.zeros(()),), strict=strict).module()(torch.zeros(())) == 1


@pytest.mark.parametrize("first", ["cuda", "triton"])
def test_the_order_on_a_gpu_is_that_of_the_table(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forecast or a measurement found quicker comes first, and `explain` says so."""
    monkeypatch.delenv("GFLV2_BACKEND", raising=False)
    monkeypatch.setattr(backends, "unavailable", lambda backend, device: None)
    second = "triton" if first == "cuda" else "cuda"
    monkeypatch.setitem(backends.PREFERENCE, "integral", ((first, second), "measured on an H200: 1 µs, 2 µs"))
    call = Call(torch.device("cuda"), torch.float32, {"bins": 17})
    assert backends.select("integral", call) == first
    rows = {row.backend: row.reason for row in backends.explain_call("integral", call)}
    assert rows[second] == f"{first} comes first (measured on an H200: 1 µs, 2 µs)"
    assert rows["reference"] == f"{first} comes first"
    assert backends.select("integral", Call(CPU, torch.float32, {"bins": 17})) == "cpu"


def test_the_table_names_operations_and_backends() -> None:
    for op, (order, reason) in backends.PREFERENCE.items():
        assert op in backends.operations()
        assert sorted(order) == ["cuda", "triton"]
        assert reason
