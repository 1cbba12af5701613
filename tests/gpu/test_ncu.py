"""What ncu prints becomes the forecast's table; on made output, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch  # noqa: E402

from benchmarks.focal import OPERATION  # noqa: E402
from benchmarks.harness import table  # noqa: E402
from benchmarks.harness.candidates import gradients  # noqa: E402
from benchmarks.harness.cases import TINY  # noqa: E402
from tests.gpu import ncu  # noqa: E402
from tests.gpu.workload import STAGES, on_levels, stages  # noqa: E402
from tests.kernels import forecast, matrix  # noqa: E402
from tests.kernels.launches import hot  # noqa: E402
from tests.kernels.machine_code import Facts  # noqa: E402
from tests.kernels.model import GPUS, UTILISATION  # noqa: E402

MARK = "_ZN2at4cuda53_GLOBAL__N__11_spin_kernelEl"
REST = [MARK] * (len(STAGES) - 5)  # of the stages behind the first five, without a launch
CUDA = "_ZN5gflv24cuda12_GLOBAL__N_124integral_forward_stridedINS_8bfloat16ELi17EEEvNS_17IntegralArgumentsE"


def printed(*names: str) -> str:
    """The output of ``ncu --csv --page raw`` for these launches: messages, heading, units, rows."""
    columns = ["ID", "Process ID", "Kernel Name", *ncu.METRICS.split(",")]
    rows = [columns, ["", "", "", "ns", "inst", "sector", "sector", "byte", "register/thread"]]
    for number, name in enumerate(names):
        rows.append([str(number), "7", name, "25,000", "18,000,000", "9", "8", "54,000,000", "56"])
    lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
    return "\n".join(["==PROF== Connected to process 7", *lines, "==PROF== Disconnected from process 7"])


def test_launches_become_rows_of_the_forecast() -> None:
    text = printed(MARK, "fill", MARK, MARK, CUDA, CUDA, MARK, MARK, "decode_keys_kernel", *REST)
    rows, others = ncu.read(text, "NVIDIA H200")
    assert others == 1
    assert [(row["operation"], row["mode"], row["source"]) for row in rows] == [
        ("integral", "forward", "integral.cu"),
        ("decode", "forward", "kernels/decode.py"),
    ]
    numbers = {"us": "25", "instructions": "1.8e+07", "bytes": "5.4e+07", "registers": "56"}
    assert numbers.items() <= rows[0].items()


def test_a_kernel_counts_for_its_stage_alone() -> None:
    """The head has several totals of blocks; so has the forward pass of another operation."""
    _, others = ncu.read(printed(MARK, CUDA, MARK, MARK, MARK, MARK, CUDA, *REST), "")
    assert others == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==ERROR== no permission", "expected a table"),
        ('"ID","Kernel Name"\n"0","a"', "missing: gpu__time_duration.sum"),
        (printed(CUDA), "stands outside"),
        (printed(MARK, CUDA), f"expected {len(STAGES)} marks, found 1"),
    ],
)
def test_other_output_is_refused(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        ncu.read(text, "")
    path = tmp_path / "ncu.csv"
    path.write_text(text)
    assert ncu.main([str(path), "--output", str(tmp_path / "out.csv")]) == 2
    assert str(path) in capsys.readouterr().err


def test_the_forecast_shows_them_and_fits_the_utilisation(tmp_path: Path) -> None:
    item = next(item for item in hot() if item.name.startswith("integral forward: integral.cu"))
    facts = Facts(*[0.0] * len(Facts._fields))._replace(instructions=800.0)
    launched = matrix.Launched(item, facts, 5600, 4, 0)
    results = [[matrix.Usage(item.source, item.kernel, "", "", sm, 56, 0, 0, launched) for sm in matrix.FORECAST]]
    (line,) = forecast.lines(results, 90)
    seconds = forecast.forecast(line.facts, line.launch, GPUS[0]).seconds
    assert "kernel by kernel" not in forecast.render(results, tmp_path)
    source = tmp_path / "printed.csv"
    source.write_text(printed(MARK, MARK, MARK, CUDA, MARK, MARK, *REST).replace("25,000", f"{1.5e9 * seconds:.0f}"))
    assert ncu.main([str(source), "--output", str(tmp_path / "ncu-h200.csv"), "--device", "NVIDIA H200"]) == 0
    source.unlink()
    text = forecast.render(results, tmp_path)
    assert "## Predicted and measured, kernel by kernel: H200" in text
    assert text.count("kernel by kernel") == 1
    assert "| 1.50 | 17,920,000 | 18,000,000 |" in text
    assert f"latency apart: {UTILISATION / 1.5:.2f}" in text
    assert table.files(tmp_path) == []  # the benchmarks' report does not read it


def test_every_launch_of_the_forecast_is_in_a_stage() -> None:
    for item in hot():
        assert any(item.mode == mode and item.operation in operations for _, mode, operations in STAGES), item.name


def test_focal_reads_levels_as_the_forecast_has_it() -> None:
    """Rows, which its benchmark has, run another kernel."""
    focal = [item for item in hot() if item.operation == "focal"]
    assert all("levels" in item.instance for item in focal if item.backend == "triton")
    device = torch.device("cpu")
    given = on_levels(OPERATION.inputs(TINY, device, 0), TINY, device)
    logits, (labels, scores) = given.args
    assert [level.shape[2:] for level in logits] == TINY.level_shapes
    assert labels.shape == scores.shape == given.kwargs["weight"].shape == (TINY.batch, TINY.points)
    assert all(bool(grad.any()) for grad in gradients(OPERATION, OPERATION.run(*given.args, **given.kwargs), given))


def test_the_workload_runs() -> None:
    for call in stages(torch.device("cpu"), TINY):
        call()
