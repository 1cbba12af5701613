"""The report says what the tables say, and the comparison tells a regression from noise."""

from __future__ import annotations

import pytest
import torch

from benchmarks import head, host, integral, report, training_step
from benchmarks.compare import regressions
from benchmarks.harness import table
from benchmarks.harness.cases import Case
from benchmarks.plots import curve
from gflv2.ops import backends
from gflv2.ops.native import loading

CASE = Case().text(integral.OPERATION.axes)


def runs(backend: str = "cpu", times=(10.0, 10.1, 10.2), eager: float = 50.0, **columns: str) -> list[table.Row]:
    known = {"device": "box, 2 threads", "operation": "integral", "backend": backend, "mode": "both", "case": CASE}
    known |= {"torch": "2.x", "commit": "abc", "launches": "", "syncs": "0", "saved_bytes": "0", "peak_bytes": "1000"}
    rows = []
    for took in times:
        row = {
            **dict.fromkeys(table.COLUMNS, ""),
            **known,
            "ms": table.text(took),
            "vs_eager": table.text(eager / took),
        }
        rows.append(row | columns)
    return rows


@pytest.mark.parametrize(
    "new, lines",
    [
        (runs(), []),
        (runs(times=(5.0, 5.0, 5.0)), []),
        (runs(times=(10.4, 10.4, 10.4)), []),  # below the floor
        (runs(times=(13.0, 13.1, 13.0)), ["10.1 ms → 13 ms"]),
        (runs(times=(10.0, 13.0, 16.0)), []),  # its own runs differ by more
        (runs(times=(13.0, 13.1, 13.0), eager=65.0), []),  # the machine is slower today
        (runs(eager=30.0), []),  # the eager form became faster
        (runs(syncs="1"), ["syncs 0 → 1"]),
        (runs(saved_bytes="4"), ["saved_bytes 0 → 4"]),
        (runs(peak_bytes="1010"), []),
        (runs(peak_bytes="1100"), ["peak_bytes 1000 → 1100"]),
        (runs(backend="eager: rows"), ["no longer runs"]),
        ([{**row, "case": "another"} for row in runs()], []),  # not measured again
    ],
)
def test_regressions(new, lines) -> None:
    found = regressions(runs(), new)
    assert len(found) == len(lines) and all(text in line for text, line in zip(lines, found, strict=True)), found


def test_other_candidates_may_become_slower() -> None:
    old, new = runs(), runs()
    for name in ("eager: rows", "compile: default", "mmdet"):
        old, new = old + runs(backend=name), new + runs(backend=name, times=(90.0, 90.0, 90.0))
    assert regressions(old, new) == []


def test_a_backend_that_learnt_the_rest_replaces_the_mixture() -> None:
    assert regressions(runs(backend="best"), runs(backend="cpu")) == []
    assert len(regressions(runs(backend="best"), runs(backend="eager: rows"))) == 1


def test_command_line(tmp_path, capsys) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    table.write(old, runs())
    table.write(new, runs(times=(20.0, 20.0, 20.0)))
    assert report.main(["--compare", str(old), str(old)]) == 0
    assert capsys.readouterr().out == "1 compared, 0 worse\n"
    assert report.main(["--compare", str(old), str(new)]) == 1
    assert "integral both cpu" in capsys.readouterr().out
    assert report.main(["--compare", str(old), str(tmp_path / "none.csv")]) == 2
    assert report.main(["--results", str(tmp_path / "empty")]) == 2
    assert "run make bench first" in capsys.readouterr().err


def test_report(tmp_path) -> None:
    rows = []
    for mode, times in (("forward", (3.0, 3.0, 3.3)), ("backward", (7.0, 7.0, 7.0)), ("both", (10.0, 10.1, 10.2))):
        rows += runs(mode=mode, times=times, bandwidth_share="0.25")
    start = integral.OPERATION.curve_base(report._kind(rows))
    for batch, took in ((1, 4.0), (2, 8.0), (4, 16.0)):
        text = start.but(batch=batch).text(integral.OPERATION.axes)
        for name, factor in (("cpu", 1), ("eager: rows", 9)):
            rows += runs(backend=name, times=(took * factor,) * 3, case=text)
    step = Case(model="gflv2_lite0").text(training_step.OPERATION.axes)
    for name, took in (("best", 100.0), ("eager: static", 160.0), (training_step.WITHOUT_LOSS, 80.0)):
        rows += runs(backend=name, times=(took,) * 3, operation="training_step", case=step)
    table.write(tmp_path / "results" / "box.csv", rows)
    output = tmp_path / "REPORT.md"
    files = report.write(tmp_path / "results", output)
    text = output.read_text()
    assert "| cpu | 3 | 7 | 10.1 | 2 % | 4.95 |" in text and "25 %" in text
    moved = integral.OPERATION.moved(Case())["both"]
    assert f"{moved / 1e6:.4g} MB must move" in text
    assert start.but(batch=4).text(integral.OPERATION.axes).replace(" ", ", ") not in text, "a case of the curves only"
    assert "best 20 %, eager: static 50 %" in text
    picture = tmp_path / "plots" / "box-2-threads-integral.svg"
    assert files == [output, picture] and "(plots/box-2-threads-integral.svg)" in text
    drawn = picture.read_text()
    assert drawn.startswith("<?xml") and len(drawn) < 100_000 and "eager" in drawn
    report.write(tmp_path / "results", output)
    assert picture.read_text() == drawn, "the same table gives the same picture"


def test_curves() -> None:
    operation = head.OPERATION
    base = Case(batch=1, size=(640, 640))
    rows = []
    for boxes, cpu, eager in ((1, 1.0, 2.0), (10, 2.0, 4.0), (100, 3.0, 9.0)):
        case = base.but(boxes=boxes).text(operation.axes)
        rows += runs(times=(cpu,) * 3, case=case) + runs(backend="eager: a", times=(eager,) * 3, case=case)
        rows += runs(backend="eager: b", times=(eager - 0.5,) * 3, case=case)
    rows += runs(times=(99.0,) * 3, case=base.but(boxes=1000, batch=2).text(operation.axes))  # differs in two facts
    found = curve(operation, "boxes", base, rows)
    assert found == {"cpu": [(1, 1.0), (10, 2.0), (100, 3.0)], "eager": [(1, 1.5), (10, 3.5), (100, 8.5)]}
    assert curve(operation, "batch", base, rows) == {}


def test_host_times_are_reported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few calls of every operation, beside the checkout itself; and the table in the report."""
    monkeypatch.setattr(host, "CALLS", 20)
    monkeypatch.setattr(host, "TURNS", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    before = loading._load, loading._emulation, backends.requested_backend()
    host.main(["--batch", "2", "--boxes", "2", "--cells", "4", "--output", str(tmp_path / "host-box.csv")])
    rows = table.read(tmp_path / "host-box.csv", host.COLUMNS)
    assert {row["library"] for row in rows} == set(host.WAYS)
    assert {"integral forward", "gfl_loss", "head", "checks of the head"} <= {row["operation"] for row in rows}
    assert all(float(row["host_us"]) > 0 for row in rows)
    assert (loading._load, loading._emulation, backends.requested_backend()) == before
    assert table.files(tmp_path) == []  # it is none of the tables of the benchmarks
    assert any(line.startswith("| real, few cells | gfl_loss |") for line in host.section(tmp_path / "host-box.csv"))
