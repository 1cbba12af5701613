"""The backend ``simt``: which calls it takes, where they go, and what is said where it is absent."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import gflv2
from gflv2.ops import backends, integral, native
from gflv2.ops.backends import BackendError
from gflv2.ops.implementation import implementation
from gflv2.ops.native import loading
from gflv2.ops.native.calling import EMULATION, NATIVE
from gflv2.ops.reduction import Reduction
from gflv2.ops.reference import integral as reference
from tests.ops.under_test import running
from tests.simt.building import VARIABLE, emulation_expected

emulated = pytest.mark.skipif(not emulation_expected(), reason="the emulation is not built here")
LEVELS = [torch.randn(1, 68, 5, 7)]


def test_absent_unless_a_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "GFLV2_SIMT_LIBRARY must name" in str(native.unavailable("simt"))
    with (
        gflv2.use_backend("simt"),
        pytest.raises(BackendError, match="'simt' was asked for, but .* a test build alone"),
    ):
        integral(LEVELS)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.so"))
    assert "GFLV2_SIMT_LIBRARY names could not be loaded" in str(native.unavailable("simt"))


def test_takes_what_cuda_takes() -> None:
    for op in backends.operations():
        known = backends._refusals[op]
        assert ("simt" in known) == ("cuda" in known) and known.get("simt") is known.get("cuda"), op


@emulated
def test_never_chosen_unasked() -> None:
    with running("simt"):
        pass  # the library is there now
    with gflv2.use_backend(None):
        assert native.unavailable("simt") is None
        chosen = {row.backend: row for row in gflv2.explain("integral", LEVELS)}
    assert not chosen["simt"].chosen and "comes first" in chosen["simt"].reason


@emulated
def test_calls_go_to_the_emulation_and_no_others() -> None:
    with running("simt"):
        assert implementation("integral", "simt") is EMULATION and implementation("integral", "cpu") is NATIVE
        assert EMULATION._library() is loading._emulation()[0] and EMULATION._place(LEVELS[0])[:2] == (0, 0)
        assert NATIVE._place(LEVELS[0])[0] == -1
        if native.unavailable("cpu") is None:
            assert NATIVE._library() is loading._load()[0] is not EMULATION._library()


def arguments(level: torch.Tensor) -> dict[str, object]:
    missing = dict.fromkeys(["scales", "points", "point_strides"])
    return {"logits": [level], "projection": torch.arange(17.0), "strides": [], "offset": 0.0, **missing}


@emulated
def test_an_error_is_that_of_the_binding() -> None:
    with running("simt"), pytest.raises(ValueError, match="out: expected"):
        EMULATION.integral_forward(**arguments(LEVELS[0]), out=torch.empty(1, 35, 4, dtype=torch.float64))


@emulated
def test_the_total_of_no_point_is_written() -> None:
    """Python asks no kernel for it; but where other kernels write 0, none may leave what was there."""
    fields = {"values": [torch.empty(2, 3, 0, 4)], "quality": None, "scores": torch.empty(2, 0)}
    fields |= {"labels": torch.empty(2, 0, dtype=torch.int64), "reduction": Reduction(None, None, 1.0, "sum")}
    out = torch.full((), torch.nan)
    with running("simt"):
        EMULATION.qfl_forward(**fields, form="logits", beta=2.0, out=out)
    assert out == 0


@emulated
def test_threads_that_use_several_backends() -> None:
    """Calls of one thread never change where those of another one go; blocks of two launches never mix."""
    logits = [torch.randn(2, 68, 9, 11) for _ in range(4)]
    want = [reference.integral([level]) for level in logits]
    outs = [torch.full((2, 99, 4), torch.nan) for _ in logits]
    wrong: list[str] = []
    with running("simt"):
        rooms = [implementation("integral", "simt"), implementation("integral", "simt")]
        if native.unavailable("cpu") is None:
            rooms += [implementation("integral", "cpu"), implementation("integral", "cpu")]

        def work(index: int) -> None:
            for _ in range(20):
                outs[index].fill_(torch.nan)
                rooms[index].integral_forward(**arguments(logits[index]), out=outs[index])
                if not torch.allclose(outs[index], want[index], rtol=1e-5, atol=1e-5):
                    wrong.append(f"thread {index}")

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(rooms))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
