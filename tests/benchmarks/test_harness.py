"""The machinery of the benchmarks: who takes part, what is counted, which rows come out. Never how fast anything is."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import peers, registry
from benchmarks.harness import candidates, machine, probes, table
from benchmarks.harness.candidates import Candidate, Settings
from benchmarks.harness.cases import TINY, Case, facts, read
from benchmarks.harness.contest import Contest
from benchmarks.harness.operation import Inputs, Operation
from gflv2.engine.memory import saved_bytes, tensors_in
from gflv2.ops import backends
from gflv2.ops.observed import saving_is_observed

CPU = torch.device("cpu")
QUICK = Settings(seconds=0.0, runs=2, sets=2, compile="none", peers=False)


class Square(Operation):
    """(N,) → N squares; the form `wasteful` waits and stores too much."""

    name, axes, curves = "integral", ("rows",), {"rows": (8, 64)}
    forms = {"wasteful": lambda x: torch.where(x * 0 == 0, x.square(), x) + 0 * x.nonzero().shape[0]}

    def run(self, x):
        return x * x

    def reference(self, x):
        return x.square()

    def inputs(self, case, device, seed):
        x = torch.randn(case.rows, generator=torch.Generator(device).manual_seed(seed), device=device).requires_grad_()
        return Inputs((x,), {}, [x])

    def calls(self, inputs):
        rows = torch.zeros(1, 4, 2)  # any call that the cpu backend takes
        return [("integral", (rows,), {})]

    def moved(self, case):
        return {"both": 12 * case.rows}


@pytest.mark.parametrize("text", ["batch=3 size=96x64 reg_max=7 dtype=bfloat16", "rows=12 form=logits boxes=0"])
def test_a_case_survives_its_text(text: str) -> None:
    assert read(text).text(tuple(facts(text))) == text


def test_a_case_knows_its_pyramid() -> None:
    case = Case(size=(800, 1344))
    assert case.level_shapes == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    assert case.points == 22400 and case.bins == 17


def test_every_operation_has_a_benchmark() -> None:
    assert set(backends.operations()) - set(registry.NAMES) == {"iou", "gfl_targets", "gfl_loss"}, (
        "the last two are in `head`, the first is half of `giou`"
    )


@pytest.mark.parametrize("operation", registry.operations(), ids=lambda operation: operation.name)
def test_cases_and_bytes(operation) -> None:
    for device in (CPU, torch.device("cuda")):
        cases = [*operation.bases(device), *operation.curve_cases(device)]
        assert len({case.text(operation.axes) for case in operation.bases(device)}) == len(operation.bases(device))
        for case in cases:
            moved = operation.moved(case)
            assert all(count > 0 for count in moved.values())
            if {"forward", "backward"} <= set(moved):
                assert moved["both"] == moved["forward"] + moved["backward"]
    for axis in operation.curves:
        assert axis in operation.axes


def test_bytes_are_those_of_the_tensors() -> None:
    """Counted once more, from the tensors themselves."""
    for name in ("integral", "dgqp", "dgqp_statistics", "atss"):
        operation = importlib.import_module(f"benchmarks.{name}").OPERATION
        inputs = operation.inputs(TINY, CPU, 0)
        with torch.no_grad():
            results = tensors_in(operation.reference(*inputs.args, **inputs.kwargs))
        given = tensors_in(inputs.args)
        if name != "atss":
            given = given[: len(TINY.level_shapes)]  # scales and weights are not worth counting
        wanted = sum(tensor.nbytes for tensor in (*given, *results))
        assert operation.moved(TINY)["forward"] == wanted, name


# ---- who takes part ----------------------------------------------------------------


def test_backends_that_can_run_take_part() -> None:
    square, inputs = Square(), Square().inputs(Case(rows=8), CPU, 0)
    names = [candidate.name for candidate in candidates.ours(square, inputs)]
    assert names == (["cpu"] if backends.unavailable("cpu", "cpu") is None else [])


def test_a_mixture_is_called_best(monkeypatch) -> None:
    square, inputs = Square(), Square().inputs(Case(rows=8), CPU, 0)
    monkeypatch.setattr(candidates, "can_run", lambda *_: False)
    monkeypatch.setattr(candidates, "chosen", lambda *_: ["cpu", "reference"])
    assert [candidate.name for candidate in candidates.ours(square, inputs)] == ["best"]
    monkeypatch.setattr(candidates, "chosen", lambda *_: ["reference"])
    assert candidates.ours(square, inputs) == []


def test_the_fastest_form_is_found() -> None:
    square, inputs = Square(), Square().inputs(Case(rows=8), CPU, 0)

    def slow(x):
        time.sleep(0.1)  # a busy machine must not make the other as slow
        return x.square()

    forms = [Candidate("slow", slow, "eager"), Candidate("quick", square.reference, "eager")]
    assert candidates.fastest(square, forms, inputs)[0].name == "quick"
    assert candidates.fastest(square, forms[::-1], inputs)[0].name == "quick"


def test_a_form_without_enough_memory_is_left_out_with_a_note() -> None:
    square, inputs, notes = Square(), Square().inputs(Case(rows=8), CPU, 0), []

    def large(x):
        return x.square() + torch.empty(1 << 50, dtype=torch.uint8)[0]

    def broken(x):
        raise RuntimeError("of another kind")

    forms = [Candidate("large", large, "eager"), Candidate("small", square.reference, "eager")]
    assert [one.name for one in candidates.fastest(square, forms, inputs, notes=notes.append)] == ["small"]
    assert len(notes) == 1 and "integral: large: " in notes[0] and "memory" in notes[0]
    with pytest.raises(RuntimeError, match="another kind"):
        candidates.fastest(square, [*forms, Candidate("broken", broken, "eager")], inputs)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux")
def test_memory_has_a_limit_that_raises() -> None:
    """Memory that is there is given; of what goes beyond it nothing is promised. It is not touched."""
    code = """
import torch
from benchmarks.harness import machine
from gflv2.data.cache import free_memory
machine.limit_memory()
free = free_memory()
torch.empty(free // 4, dtype=torch.uint8)
try:
    torch.empty(free * 102 // 100, dtype=torch.uint8)
except RuntimeError as error:
    print("memory" in str(error))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_absent_packages_are_named_with_their_pip_line() -> None:
    square, notes = Square(), []

    def build(case):
        raise peers.Absent("not installed: pip install nothing")

    square.peers = {"other": build, "not for this case": lambda case: None, "here": lambda case: square.run}
    found = candidates.other_packages(square, Case(), notes.append)
    assert [candidate.name for candidate in found] == ["here"] and notes == [
        "other: not installed: pip install nothing"
    ]


def test_what_fails_or_takes_too_long_drops_out_unless_it_is_ours() -> None:
    def broken(x):
        raise RuntimeError("cannot\nand more")

    def endless(x):
        time.sleep(60)

    contest, notes = Contest(Square(), Case(rows=8), CPU, QUICK, full=False), []
    contest.settings = Settings(sets=2, compile_seconds=0.2)
    start = time.perf_counter()
    given = [Candidate("broken", broken, "peer"), Candidate("endless", endless, "compile")]
    assert contest._warm(given, notes.append) == [] and time.perf_counter() - start < 30
    assert notes[0] == "integral: broken: RuntimeError: cannot" and "more than 0.2 s" in notes[1]
    with pytest.raises(RuntimeError):
        contest._warm([Candidate("broken", broken, "ours")], notes.append)


# ---- what is counted ----------------------------------------------------------------


def test_saved_bytes() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp(), (x,)) == 4000  # its result
    assert saved_bytes(lambda: x.square(), (x,)) == 0  # its argument, which lives on anyway
    assert saved_bytes(lambda: x.exp()[:10].exp(), (x,)) == 4000 + 40
    assert saved_bytes(lambda: x.detach().exp(), (x,)) == 0
    assert saved_bytes(lambda: (x.exp().mean().detach(), x + 1), (x,)) == 0  # that graph is gone


class _Keeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.kept = [torch.zeros(50), x]
        return x * 2

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def test_saved_bytes_on_a_context() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: (_Keeps.apply(x).sum(), _Keeps.apply(x) + 1), (x,)) == 2 * 200


def test_saved_bytes_of_both_count_once() -> None:
    """What one function saves and another keeps on its context."""
    x = torch.randn(50, requires_grad=True)
    assert saved_bytes(lambda: [_Keeps.apply(x.exp()) for _ in range(10)], (x,)) == 10 * 2 * 200


class _KeepsMoreUnseen(_Keeps):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.kept = torch.zeros(10 if saving_is_observed() else 50)
        return x * 2


def test_saved_bytes_while_nobody_looks_on() -> None:
    """Counted apart: the second pass gets the first one's memory, and one number for both took them for the same."""
    x = torch.randn(50, requires_grad=True)

    def forward() -> list[torch.Tensor]:
        exps, kept = [x.exp() for _ in range(10)], [_KeepsMoreUnseen.apply(x) for _ in range(10)]
        return [*exps, *kept] if saving_is_observed() else [*kept, *exps]

    assert saved_bytes(forward, (x,)) == 10 * 2 * 200


def test_peak_bytes() -> None:
    x = torch.randn(100_000)
    for call, peak in (
        (lambda: x + 1, 400_000),
        (lambda: ((x + 1) + 1).sum(), 800_000),
        (lambda: [x + 1, x + 2, x + 3], 1_200_000),
        (lambda: [(x + 1).sum(), (x + 2).sum(), (x + 3).sum()], 400_000),
    ):
        assert probes.peak_bytes(call, CPU) == pytest.approx(peak, abs=200)  # torch makes the numbers tensors too


def test_waits_of_the_host() -> None:
    x = torch.arange(6.0)
    index = torch.tensor([0, 1])
    waits = {
        "none": (lambda: x[index] + x[2:].sum(), 0),
        "item": (lambda: x.sum().item(), 1),
        "bool": (lambda: bool(x.sum() > 0), 1),
        "nonzero": (lambda: x.nonzero(), 1),
        "mask": (lambda: x[x > 2], 1),
        "mask, written": (lambda: x.clone().__setitem__(x > 2, x[3:]), 1),
        "mask, filled": (lambda: x.clone().__setitem__(x > 2, 0.0), 0),
        "index, written": (lambda: x.clone().__setitem__(index, x[:2]), 0),
    }
    for name, (call, count) in waits.items():
        assert (probes.syncs(call, CPU) > 0) == bool(count), name
    assert probes.launches(lambda: x + 1, CPU) is None


def test_copy_bandwidth() -> None:
    assert machine.copy_bandwidth(1 << 16, CPU) > 1e6
    assert machine.copy_bandwidth(1, CPU) > 0


# ---- the rows ----------------------------------------------------------------


def test_rows() -> None:
    contest = Contest(Square(), Case(rows=64), CPU, QUICK)
    contest.run()
    rows = contest.rows()
    names = [candidate.name for candidate in contest.candidates]
    assert len(rows) == len(names) * 3 * QUICK.runs and "eager: reference" in names
    for row in rows:
        assert list(row) == table.COLUMNS
        assert row["case"] == "rows=64" and row["host_us"] == "" and row["launches"] == "" and float(row["ms"]) > 0
        assert (row["bandwidth_share"] != "") == (row["mode"] == "both")
        assert row["saved_bytes"] == ("" if row["mode"] == "backward" else row["saved_bytes"])
    for runs in table.by_key(rows).values():
        assert len(runs) == QUICK.runs
    for run in zip(*(runs for key, runs in table.by_key(rows).items() if key[3] == "both"), strict=True):
        times = {row["backend"]: float(row["ms"]) for row in run}
        eager = min(took for name, took in times.items() if name.startswith("eager"))
        for row in run:
            assert float(row["vs_eager"]) == pytest.approx(eager / float(row["ms"]), rel=1e-4)


def test_candidates_take_turns_on_the_same_inputs() -> None:
    seen: dict[str, list[float]] = {"a": [], "b": []}
    order: list[str] = []

    def watch(name):
        def call(x):
            seen[name].append(float(x[0].detach()))
            order.append(name)
            return x.square()

        return call

    contest = Contest(Square(), Case(rows=64), CPU, QUICK, full=False)
    contest.candidates = [Candidate("a", watch("a"), "ours"), Candidate("b", watch("b"), "eager")]
    contest.repeats = {"a": 1, "b": 1}
    for _ in range(4):
        contest.round()
    assert seen["a"] == seen["b"] and len(set(seen["a"])) == QUICK.sets
    assert order == list("abbaabba")


def test_a_table_is_merged_by_case(tmp_path) -> None:
    def row(operation: str, case: str, ms: str) -> table.Row:
        return {**dict.fromkeys(table.COLUMNS, ""), "device": "d", "operation": operation, "case": case, "ms": ms}

    path = tmp_path / "sub" / "t.csv"
    table.merge(path, [row("a", "1", "1"), row("a", "2", "1"), row("b", "1", "1")])
    table.merge(path, [row("a", "2", "5"), row("a", "2", "6")])
    assert [(r["operation"], r["case"], r["ms"]) for r in table.read(path)] == [
        ("a", "1", "1"),
        ("b", "1", "1"),
        ("a", "2", "5"),
        ("a", "2", "6"),
    ]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns"):
        table.read(path)
