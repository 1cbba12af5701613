"""The compile matrix reads compilers rightly, refuses what it must, and its table has every kernel.

Compiling itself is a step of its own, ``make compile-matrix``: nothing is compiled here.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

from tests.kernels import matrix  # noqa: E402
from tests.kernels.matrix import ROOT, Failure, Usage  # noqa: E402

SYMBOL = "_ZN5gflv24cuda12_GLOBAL__N_110atss_claimILi9EEEvNS_13AtssArgumentsENS1_6ImagesEji"
REPORT = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_90'
ptxas info    : Function properties for {SYMBOL}
    16 bytes stack frame, 8 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 16 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""
CLEAN = Usage("atss.cu", "atss_clear", "", "atss_clear", 90, 20, 0, 0)
SPILLED = Usage("atss.cu", "atss_claim", "<9>", SYMBOL, 90, 56, 128, 24)


def test_the_report_of_ptxas() -> None:
    first, second = matrix.read_ptxas("atss.cu", 90, REPORT)
    assert (first.symbol, first.registers, first.shared, first.stack) == (SYMBOL, 56, 128, 24)
    assert (second.kernel, second.registers, second.shared, second.stack) == ("plain", 12, 0, 0)


def test_names_are_read_from_symbols() -> None:
    name, instance = matrix.read_symbol(SYMBOL)
    assert (name, instance) in {("atss_claim", "<9>"), (SYMBOL, "")}  # without c++filt the symbol itself


def test_a_stack_without_a_reason_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "ALLOWED", {})
    assert matrix.problems([[CLEAN]]) == []
    assert [text[:40] for text in matrix.problems([[CLEAN, SPILLED]])] == [
        f"atss.cu: {SPILLED.kernel} <9> on sm_90 has a s"
    ]
    monkeypatch.setattr(matrix, "ALLOWED", {"atss.cu": [("atss_claimILi9", "told")]})
    assert matrix.problems([[CLEAN, SPILLED]]) == []
    assert "| told |" in matrix.render([[CLEAN, SPILLED]])
    monkeypatch.setattr(matrix, "ALLOWED", {"atss.cu": [("another", "told")]})
    assert len(matrix.problems([[CLEAN, SPILLED]])) == 2  # and an expression that finds nothing


def test_what_does_not_compile_is_a_problem() -> None:
    assert matrix.problems([Failure("atss.cu", 80, "no such thing")]) == ["atss.cu on sm_80: no such thing"]


def test_the_committed_table_has_every_kernel() -> None:
    """Which kernels there are; what they need differs between versions of the compilers."""
    assert matrix.listed_kernels() == matrix.cuda_kernels() | matrix.triton_kernels(), "run: make compile-matrix"


def test_every_triton_kernel_is_launched_by_a_listed_call() -> None:
    defined = set()
    for path in (ROOT / "kernels").glob("*.py"):
        defined |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    assert defined == {kernel for _, kernel in matrix.triton_kernels()}
