"""The README says what is true: its tables, its command lines, its Python, its picture.

``python -m tests.test_readme`` writes its tables anew (``make kernels-table``).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.harness import table as results
from benchmarks.harness.candidates import BEST, KERNELS
from benchmarks.registry import operations as measured_operations

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
_MEANING = {
    "integral": "softmax over the bins and its expectation; optionally the box",
    "dgqp": "quality logit from the statistics of the four distributions",
    "dgqp_statistics": "these statistics alone",
    "atss": "assignment of boxes to points, whole batch",
    "qfl": "quality focal loss",
    "dfl": "distribution focal loss",
    "distribution_kl": "divergence of a student's distributions from a teacher's (distillation)",
    "giou": "GIoU loss of aligned boxes",
    "iou": "IoU of aligned boxes, the target of the scores",
    "gfl_targets": "assignment → targets and weights of the losses",
    "gfl_loss": "all losses of the head",
    "decode": "scores, best points, boxes (then torchvision's NMS)",
}


def configurations() -> list[str]:
    """Rows of the configurations' table, the authors' models first, weakest first."""
    from gflv2.config import list_models, load_config

    configs = [load_config(name) for name in list_models()]
    configs.sort(key=lambda c: (c.authors.ap_minival is None, c.authors.ap_minival or 0, c.name))
    rows = []
    for config in configs:
        authors, backbone = config.authors, config.model.backbone
        stages = ", ".join(f"c{stage}" for stage in backbone.deform.stages) or "–"
        numbers = (authors.ap_minival, authors.ap_test_dev, authors.fps_2080ti)
        shown = " | ".join("–" if number is None else f"{number:.1f}" for number in numbers)
        rows.append(f"| `{config.name}` | {authors.name or '–'} | {backbone.name} | {stages} | {shown} |")
    return rows


def operations() -> list[str]:
    """Rows of the operations' table."""
    import gflv2.ops  # noqa: F401
    from gflv2.ops import backends

    rows = []
    for name in sorted(backends.operations(), key=lambda name: list(_MEANING).index(name)):
        rooms = ("reference", "cpu", "triton", "cuda", "simt")
        marks = ["yes" if backend in backends._refusals[name] else "–" for backend in rooms]
        rows.append(f"| `{name}` | {_MEANING[name]} | {' | '.join(marks)} |")
    return rows


def kernels() -> list[str]:
    """Rows of the kernels' table: where each GPU kernel was compiled (docs/kernels.md), and where it ran."""
    import gflv2.ops  # noqa: F401
    from gflv2.ops import backends

    rows = []
    for name in sorted(backends.operations(), key=lambda name: list(_MEANING).index(name)):
        file = {"dgqp_statistics": "dgqp", "iou": "giou", "gfl_targets": "gfl_loss"}.get(name, name)
        for backend, source in (("triton", f"kernels/{file}.py"), ("cuda", f"{file}.cu")):
            if backend not in backends._refusals[name]:
                continue
            emulation = "Triton's interpreter" if backend == "triton" else "`csrc/simt`"
            rows.append(f"| `{name}` | {backend} | {_compiled_for(source)} | {emulation} | {_gpus(name, backend)} |")
    return rows


def _compiled_for(source: str) -> str:
    """Architectures for which the compile matrix has compiled a source."""
    text = (ROOT / "docs" / "kernels.md").read_text()
    columns = re.findall(r"sm_\d+", text)
    rows = re.findall(rf"^\| {re.escape(source)} \|.*$", text, re.MULTILINE)
    found = [name for place, name in enumerate(columns) if any(row.split(" | ")[2 + place] != "–" for row in rows)]
    return ", ".join(found) or "–"


def _gpus(operation: str, backend: str) -> str:
    """GPUs on which an operation was measured, and when, from benchmarks/results."""
    found = {}
    for path in results.files(ROOT / "benchmarks" / "results"):
        for row in results.read(path):
            if row["operation"] == operation and row["backend"] == backend and row["driver"]:
                found[row["device"]] = row["commit"]  # the driver is a GPU's
    return "; ".join(f"{device}, {_day(commit)}" for device, commit in sorted(found.items())) or "not yet"


def _day(commit: str) -> str:
    """The day of a commit, or its name where the history is not here."""
    run = subprocess.run(["git", "show", "-s", "--format=%cs", commit], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else f"commit {commit}"


def speed() -> list[str]:
    """Rows of the table of speed: what benchmarks/results holds of each operation, but for the scaling curves."""
    rows = [row for path in results.files(ROOT / "benchmarks" / "results") for row in results.read(path)]
    found = []
    for operation in measured_operations():
        runs = results.by_key(row for row in rows if row["operation"] == operation.name)
        for device, _, backend, mode, case in runs:
            others = {key[2]: runs[key] for key in runs if key[:2] + key[3:] == (device, operation.name, mode, case)}
            # Along a curve, no other package and no further form takes part.
            if backend not in (*KERNELS, BEST) or mode != (operation.mode or "both") or len(others) < 3:
                continue
            took = results.median(runs[device, operation.name, backend, mode, case], "ms")
            times = {name: results.median(of, "ms") / took for name, of in others.items()}
            cells = [f"`{operation.name}`", case.replace(" ", ", "), mode, device, backend, results.shown(took)]
            cells += [_least(times, "eager: "), _least(times, "compile: ")]
            found.append(f"| {' | '.join(cells)} | {', '.join(_packages(times)) or '–'} |")
    return found


def _least(times: dict[str, float], prefix: str) -> str:
    return results.shown(min((time for name, time in times.items() if name.startswith(prefix)), default=None)) or "–"


def _packages(times: dict[str, float]) -> list[str]:
    """The same of each package that computes the same, or less."""
    names = ("mmdet", "mmdet (GFLV1)", "ultralytics", "torchvision")
    return [f"{name} {results.shown(times[name])}" for name in names if name in times]


def table(name: str, text: str) -> list[str]:
    """The rows below the head of a table of the README."""
    block = re.search(rf"<!-- table: {name}.*?-->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert block is not None, f"README.md has no table {name!r}"
    return block[1].splitlines()[2:]


@pytest.mark.parametrize("make", [configurations, operations, kernels, speed], ids=lambda make: make.__name__)
def test_tables(make):
    pytest.importorskip("yaml")
    assert table(make.__name__, README.read_text()) == make(), "run: make kernels-table"


def test_the_authors_numbers_are_theirs():
    # Typed a second time, from the authors' publication.
    text = "\n".join(table("configurations", README.read_text()))
    for name, numbers in {
        "gflv2_r50_fpn_1x": "41.0 | 41.1 | 19.4",
        "gflv2_r50_fpn_ms2x": "43.9 | 44.4 | 19.4",
        "gflv2_r101_fpn_ms2x": "45.8 | 46.0 | 14.6",
        "gflv2_r101_dcn_fpn_ms2x": "48.0 | 48.2 | 12.7",
        "gflv2_x101_dcn_fpn_ms2x": "48.8 | 49.0 | 10.7",
        "gflv2_r2n101_dcn_fpn_ms2x": "49.9 | 50.5 | 10.9",
    }.items():
        assert re.search(rf"`{name}`.*\| {re.escape(numbers)} \|", text), name


def test_command_lines():
    from gflv2 import cli

    lines = re.findall(r"^gflv2 (.*?)\s*(?:#.*)?$", README.read_text(), re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        words, _ = cli._split_overrides(line.split())
        cli._parser().parse_args(words)  # an unknown verb or option raises UsageError


def test_python():
    text = README.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "README.md", "exec")
    from gflv2.engine.results import Result

    for name in re.findall(r"result\.(\w+)", text):
        assert hasattr(Result, name), name


def test_links_and_picture():
    text = README.read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", text):
        assert (ROOT / target).is_file(), target
    picture = ROOT / "docs" / "images" / "distributions.jpg"
    assert picture.stat().st_size <= 300_000
    for heading in re.findall(r"\]\(#([^)]+)\)", text):
        slugs = [line.strip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")]
        assert heading in slugs


def _write() -> None:
    text = README.read_text()
    for make in (configurations, operations, kernels, speed):
        rows = "\n".join(make())
        pattern = rf"(<!-- table: {make.__name__}[^\n]*\n[^\n]*\n[^\n]*\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, rows=rows: f"{match[1]}{rows}\n{match[2]}", text, flags=re.DOTALL)
    README.write_text(text)


if __name__ == "__main__":
    _write()
