"""The forecast reads machine code rightly, turns red where a kernel becomes slower, and has every declared launch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

from benchmarks.harness import table  # noqa: E402
from gflv2.ops.preference import PREFERENCE  # noqa: E402
from tests.kernels import forecast, matrix, preference  # noqa: E402
from tests.kernels.forecast import Line  # noqa: E402
from tests.kernels.hot import Hot  # noqa: E402
from tests.kernels.launches import OPERATIONS, hot, variants_of  # noqa: E402
from tests.kernels.machine_code import Facts, average, facts_of  # noqa: E402
from tests.kernels.model import GPUS, UTILISATION, Launch, blocks_per_multiprocessor  # noqa: E402
from tests.kernels.model import forecast as predict  # noqa: E402

H200 = GPUS[0]
# A loop over 16 numbers a thread, four at a time, with a rare way out of the loop's straight path.
VECTOR = (
    "S2R R0, SR_TID.X",
    "@P0 EXIT",
    "head: LDG.E.128 R4, desc[UR4][R2.64]",
    "FSETP.GEU.AND P1, PT, R4, 1, PT",
    "@P1 BRA usual",
    "MUFU.LG2 R4, R4",
    "FFMA R4, R4, R4, R4",
    "FFMA R4, R4, R4, R4",
    "usual: MUFU.EX2 R5, R5",
    "STG.E.128 desc[UR4][R6.64], R4",
    "@P2 BRA head",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "EXIT",
    "end: BRA end",
)
# The same with the load taken apart, and with the store.
SCALAR_LOADS = [*VECTOR[:2], *(f"{'head: ' if i == 0 else ''}LDG.E R{4 + i}, desc[UR4][R2.64]" for i in range(4))]
SCALAR_LOADS += VECTOR[3:]
NARROW_STORES = [*VECTOR[:9], *(["STG.E.U16 desc[UR4][R6.64], R4"] * 8), *VECTOR[10:]]


def text_of(code: list[str] | tuple[str, ...]) -> str:
    """What cuobjdump prints of it."""
    places = {}
    for number, line in enumerate(code):
        label = re.match(r"(\w+): ", line)
        if label:
            places[label[1]] = f"0x{16 * number:x}"
    lines = []
    for number, line in enumerate(code):
        line = re.sub(r"^\w+: ", "", line)
        line = re.sub(r"(BRA) (\w+)", lambda found: f"{found[1]} {places[found[2]]}", line)
        lines.append(f"        /*{16 * number:04x}*/                   {line} ;   /* 0x0000000000007918 */\n")
    return "".join(lines)


def facts(code: list[str] | tuple[str, ...], loads: float = 4) -> Facts:
    return facts_of(text_of(code), {"^LDG": loads}, cold=r"MUFU\.LG2")


def line_of(found: Facts) -> Line:
    item = Hot("integral", "forward", "a.cu", "a", "", 1000, 1.0, 128 * 1000 * 16)
    return Line(item, found, Launch(1000, 4, 32, 0, 1.0), 0)


def test_counts_along_the_hot_path() -> None:
    found = facts(VECTOR)
    assert found.instructions == 2 + 4 * 6 + 2
    assert (found.loads, found.load_width, found.stores, found.store_width) == (4, 16, 4, 16)
    assert (found.mufu, found.fp32, found.barriers, found.waits, found.cold) == (4, 0, 1, 4, 0)
    assert found.local == found.shared == found.mma == 0


def test_several_ways_count_by_their_shares() -> None:
    """A loop of which a quarter of the warps takes the logarithm."""
    rare, usual = facts_of(text_of(VECTOR), {"^LDG": 4}), facts(VECTOR)
    assert rare.instructions > usual.instructions
    found = average([(0.75, usual), (0.25, rare)])
    assert found.instructions == 0.75 * usual.instructions + 0.25 * rare.instructions
    wide = average([(0.5, usual), (0.5, usual._replace(loads=12, load_width=4))])
    assert (wide.loads, wide.load_width, wide.store_width) == (8, 7, 16)


def test_a_loop_runs_as_often_as_its_work_takes() -> None:
    assert facts(VECTOR, loads=16).loads == 16
    assert facts_of(text_of(VECTOR), trips=(3,), cold="LG2").loads == 3
    assert facts_of(text_of(VECTOR), cold="LG2").loads == 1


def test_without_a_cold_instruction_the_longer_side_counts() -> None:
    assert facts_of(text_of(VECTOR)).fp32 == 2


def test_a_slow_path_behind_a_call_is_cold() -> None:
    code = ("@P0 BRA quick", "MOV R4, R5", "CALL.REL.NOINC 0x70", "BRA done", "quick: MUFU.RCP R1, R2", "done: EXIT")
    assert facts_of(text_of(code)).cold == 0
    assert facts_of(text_of(code)).mufu == 1


def test_a_conditional_call_is_a_jump() -> None:
    code = (
        "head: LDG.E R4, desc[UR4][R2.64]",
        "@!P0 CALL.REL.NOINC 0x30",
        "BRA head",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "EXIT",
    )
    found = facts_of(text_of(code), trips=(5,))
    assert (found.loads, found.barriers, found.cold) == (5, 1, 0)


def test_fences_and_atomic_operations_wait() -> None:
    code = (
        "LDG.E R4, desc[UR4][R2.64]",
        "MEMBAR.SC.GPU",
        "ATOMG.E.ADD.STRONG.GPU PT, R4, desc[UR4][R2.64], R5",
        "EXIT",
    )
    assert facts_of(text_of(code)).waits == 3
    assert facts_of(text_of(("RED.E.ADD.STRONG.GPU desc[UR4][R2.64], R5", "EXIT"))).waits == 0


def test_what_the_last_block_does_comes_on_top() -> None:
    code = ("ATOMG.E.ADD PT, R4, desc[UR4][R2.64], R5", "@P0 BRA end", "again: DADD R4, R4, R6", "@P1 BRA again")
    code = (*code, "end: EXIT")
    item = Hot("qfl", "forward", "a.cu", "a", "", 1000, 1.0, 1.0, last={"^DADD": 50})
    every, last = matrix._facts(item, text_of(code)), matrix._facts(item, text_of(code), last=True)
    assert every is not None and last is not None
    assert (every.instructions, last.instructions) == (3, 3 + 2 * 50)
    without, found = (predict(every, Launch(1000, 4, 32, 0, 1.0, of), H200) for of in (None, last))
    assert found.tail == pytest.approx((last.instructions - every.instructions) * 2 / H200.clock)
    assert found.seconds == pytest.approx(without.seconds + found.tail)


def test_the_head_has_nine_launches() -> None:
    """Of CUDA's kernels, forward and backward."""
    of_head = [item for item in hot() if item.backend == "cuda" and item.operation in forecast.HEAD.get(item.mode, ())]
    assert sum(item.launches for item in of_head) == 9


def test_shared_memory_and_tensor_cores() -> None:
    code = ("LDS.128 R4, [R2]", "LDS R4, [R2]", "STL [R1], R4", "HMMA.16816.F32.BF16 R4, R8, R12, R4")
    found = facts_of(text_of((*code, "HMMA.1688.F32.TF32 R4, R8, R12, R4", "EXIT")))
    assert (found.shared, found.shared_cycles, found.local, found.mma) == (2, 5, 1, 2)
    assert found.multiply_adds == 16 * 8 * 16 + 2 * 16 * 8 * 8


def test_a_declaration_that_fits_no_code_is_an_error() -> None:
    with pytest.raises(ValueError, match="LDSM"):
        facts_of(text_of(VECTOR), {"LDSM": 4})
    with pytest.raises(ValueError, match="2 loops are declared"):
        facts_of(text_of(VECTOR[:-1]), trips=(1, 2))
    with pytest.raises(ValueError, match="no instruction"):
        facts_of("nothing")


@pytest.mark.parametrize(
    ("slower", "found"),
    [
        (facts(SCALAR_LOADS, 16), ["instructions an element", "bytes a load"]),
        (facts(NARROW_STORES), ["instructions an element", "bytes a store"]),
        (facts([*VECTOR[:3], "FADD R1, R1, R1", *VECTOR[3:]]), ["instructions an element"]),
        (facts(VECTOR)._replace(local=1), ["spilled registers"]),
    ],
    ids=["a removed vector load", "scalar stores", "one instruction more", "a spill"],
)
def test_a_slower_kernel_is_found(slower: Facts, found: list[str]) -> None:
    before = line_of(facts(VECTOR)).held()
    texts = forecast.compare("a", line_of(slower).held(), before)
    assert len(texts) == len(found)
    assert all(words in text for words, text in zip(found, texts, strict=True))


def test_the_same_kernel_and_small_growth_pass() -> None:
    before = line_of(facts(VECTOR)).held()
    assert forecast.compare("a", before, before) == []
    assert forecast.compare("a", before | {"instructions": before["instructions"] * 1.02}, before) == []
    assert forecast.compare("a", before | {"instructions": 99.0}, before, same=False) == []
    assert len(forecast.compare("a", before | {"local": 1.0}, before, same=False)) == 1
    assert len(forecast.compare("a", before, None)) == 1


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_a_kernel_made_slower_by_hand_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store of a pair made two, in a copy of the sources: what CI compiles and compares is red."""
    shutil.copytree(matrix.CSRC, tmp_path / "csrc")
    options = [option.replace(str(matrix.CSRC), str(tmp_path / "csrc")) for option in matrix.CUDA_OPTIONS]
    monkeypatch.setattr(matrix, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(matrix, "CUDA_OPTIONS", options)
    header = tmp_path / "csrc" / "cuda" / "points.cuh"
    text, pair = header.read_text(), "*reinterpret_cast<std::uint32_t*>(at) = ptx::narrow_pair<T>(first, second);"
    assert text.count(pair) == 1
    header.write_text(text.replace(pair, "at[0] = narrow<T>(first);\n    at[1] = narrow<T>(second);"))
    result = matrix.compile_cuda("integral.cu", forecast.CHECKED)
    assert isinstance(result, list), result
    monkeypatch.setattr(preference, "problems", lambda _: [])  # it needs all kernels
    if forecast.compilers()["cuda"] != json.loads(forecast.EXPECTATION.read_text())["compilers"]["cuda"]:
        pytest.skip("another nvcc writes other machine code: CI compares none")
    found = [text for text in forecast.problems([result]) if text.startswith("integral backward")]
    assert any("bytes a store" in text for text in found) and any("instructions an element" in text for text in found)


def test_the_compile_matrix_fails_where_the_forecast_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = line_of(facts(VECTOR))
    monkeypatch.setattr(forecast, "EXPECTATION", tmp_path / "expectation.json")
    monkeypatch.setattr(forecast, "DOCUMENT", tmp_path / "forecast.md")
    monkeypatch.setattr(forecast, "PREFERENCE", tmp_path / "preference.py")
    monkeypatch.setattr(forecast, "ROOT", tmp_path)
    monkeypatch.setattr(forecast, "compilers", lambda: {"cuda": "13.0", "triton": "3.8"})
    monkeypatch.setattr(forecast, "hot", lambda: [before.hot])
    monkeypatch.setattr(matrix, "ALLOWED", {})

    def run(found: Facts, *options: str) -> int:
        launched = matrix.Launched(before.hot, found, 1000, 4, 0)
        usage = matrix.Usage("a.cu", "a", "", "a", 90, 32, 0, 0, launched)
        monkeypatch.setattr(matrix, "compile_all", lambda *_, **__: [[usage]])
        return matrix.main(["--check", "--architectures", "90", *options])

    forecast.write([[matrix.Usage("a.cu", "a", "", "a", 90, 32, 0, 0, matrix.Launched(*before[:2], 1000, 4, 0))]])
    assert run(before.facts) == 0
    assert run(facts(SCALAR_LOADS, 16)) == 1
    assert "bytes a load, 16.00 expected" in capsys.readouterr().err
    monkeypatch.setattr(forecast, "hot", lambda: [before.hot, before.hot._replace(operation="another")])
    assert run(before.facts) == 1
    assert "another forward: a.cu a: no machine code fits" in capsys.readouterr().err


def test_occupancy_is_what_fits() -> None:
    def blocks(registers: int, shared: int = 0, warps: int = 4) -> int:
        return blocks_per_multiprocessor(Launch(1, warps, registers, shared, 0), H200)

    assert blocks(32) == 16  # 64 warps
    assert blocks(56) == 9
    assert blocks(255) == 2
    assert blocks(32, shared=100 * 1024) == 2
    assert blocks(16, warps=1) == 32


def test_the_longest_limit_makes_the_time() -> None:
    found = facts(VECTOR)._replace(instructions=800.0, waits=1.0)
    issued = predict(found, Launch(5600, 4, 56, 0, 1e6), H200)
    assert issued.limit == "issue"
    assert issued.seconds == pytest.approx(22400 * 800 / (528 * 1.98e9) / UTILISATION)
    moved = predict(found, Launch(5600, 4, 56, 0, 1e9), H200)
    assert (moved.limit, moved.seconds) == ("bytes", pytest.approx(1e9 / 4.3e12 / UTILISATION))
    tail = predict(found._replace(waits=100.0), Launch(1, 4, 32, 0, 1e3), H200)
    assert tail.limit == "latency"
    assert tail.seconds > 100 * 600 / 1.98e9


def test_predicted_and_measured_stand_side_by_side(tmp_path: Path) -> None:
    line = line_of(facts(VECTOR))
    launched = matrix.Launched(line.hot, line.facts, 1000, 4, 0)
    results = [[matrix.Usage("a.cu", "a", "", "a", sm, 32, 0, 0, launched) for sm in matrix.FORECAST]]
    assert "## Predicted and measured" not in forecast.render(results, tmp_path)

    seconds = predict(line.facts, line.launch, H200).seconds
    case = "batch=16 size=800x1344 reg_max=16 dtype=bfloat16 layout=nchw"
    row = {"device": "NVIDIA H200", "operation": "integral", "mode": "forward", "driver": "580"}
    row |= {"backend": "cuda", "ms": str(2e3 * seconds), "case": case}
    others = [
        row | {"ms": "7", "case": case.replace("batch=16", "batch=2")},
        row | {"ms": "7", "device": "Some CPU", "driver": ""},
        row | {"ms": "7", "device": "NVIDIA H100 80GB", "case": case.replace("nchw", "channels_last")},
    ]
    table.write(tmp_path / "nvidia-h200.csv", [row, *others])
    text = forecast.render(results, tmp_path)
    assert text.count("## Predicted and measured") == 1
    assert "## Predicted and measured: H200" in text
    assert re.search(r"^\| integral forward \| cuda \|.*\| 2\.00 \|$", text, re.MULTILINE)
    assert f"fits the median of these: {UTILISATION / 2:.2f}" in text


def test_the_head_is_the_sum_of_its_operations() -> None:
    made = line_of(facts(VECTOR))
    found = [
        made._replace(hot=made.hot._replace(operation=operation))
        for operation in ("atss", "gfl_targets", "dgqp", "qfl", "gfl_loss")
    ]
    sums = forecast.totals(found, H200)
    assert sums["head", "forward", "cuda"] == pytest.approx(5 * sums["atss", "forward", "cuda"])
    assert ("head", "forward", "cuda") not in forecast.totals(found[1:], H200)


def test_each_declared_launch_is_one_of_those_compiled() -> None:
    names = [item.name for item in hot()]
    assert len(set(names)) == len(names)
    kernels = matrix.cuda_kernels()
    calls = {
        (f"kernels/{op}.py", variant.kernel.rsplit(".", 1)[-1], call)
        for op in OPERATIONS
        for call, variants in variants_of(op).items()
        for variant in variants
    }
    for item in hot():
        assert not item.ways or sum(way.share for way in item.ways) == pytest.approx(1), item.name
        if item.backend == "cuda":
            assert (item.source, item.kernel) in kernels, item.name
        else:
            assert (item.source, item.kernel, item.instance) in calls, item.name


def test_the_committed_forecast_has_every_declared_launch() -> None:
    expected = json.loads(forecast.EXPECTATION.read_text())
    assert set(expected["kernels"]) == {item.name for item in hot()}, "run: make forecast"
    rows = forecast.DOCUMENT.read_text()
    for item in hot():
        row = f"| {' | '.join(forecast.label(item))} |"
        assert rows.count(row) == 2, f"{row} run: make forecast"


def test_the_quicker_backend_comes_first() -> None:
    predicted = {("integral", mode, "cuda"): 20e-6 for mode in ("forward", "backward")}
    predicted |= {("integral", "forward", "triton"): 10e-6, ("integral", "backward", "triton"): 20e-6}
    predicted |= {("atss", "forward", "cuda"): 10e-6, ("atss", "forward", "triton"): 9.9e-6}
    found = preference.table(predicted, {})
    assert found["integral"] == (("triton", "cuda"), "predicted for an H200: triton 30 µs, cuda 40 µs")
    assert found["atss"][0] == ("cuda", "triton")  # a forecast is no finer
    assert "qfl" not in found
    # Measurements come first, where both backends have all of them.
    assert preference.table(predicted, {("integral", "forward", "cuda"): 1e-6})["integral"] == found["integral"]
    measured = {key: 1e-6 if key[2] == "cuda" else 2e-6 for key in predicted}
    assert preference.table(predicted, measured)["integral"] == (
        ("cuda", "triton"),
        "measured on an H200: cuda 2 µs, triton 4 µs",
    )


def test_another_order_than_the_committed_one_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "of_results", lambda _: dict(PREFERENCE))
    assert preference.problems([]) == []
    op, (order, reason) = next(iter(PREFERENCE.items()))
    monkeypatch.setattr(preference, "of_results", lambda _: {op: (order[::-1], reason)})
    (text,) = preference.problems([])
    assert "run make forecast" in text


def test_the_committed_order_is_what_is_written(tmp_path: Path) -> None:
    assert preference.render(PREFERENCE) == forecast.PREFERENCE.read_text()
