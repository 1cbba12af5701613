"""The README and docs/kernels.md say what is true: tables, command lines, Python, links, picture.

``python -m tests.test_readme`` writes their tables anew (``make tables``).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.harness import table as results
from benchmarks.harness.candidates import BEST, KERNELS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MODELS_PAGE = ROOT / "docs" / "models.md"
KERNELS_PAGE = ROOT / "docs" / "kernels.md"
ROOMS = ("reference", "cpu", "triton", "cuda", "simt")
_MEANING = {
    "integral": "softmax over the bins and its expectation; optionally the box",
    "dgqp": "quality logit from the statistics of the four distributions",
    "dgqp_statistics": "these statistics alone",
    "atss": "assignment of boxes to points, whole batch",
    "task_aligned": "the same by the points' own predictions (TOOD, Ultralytics)",
    "dynamic_soft_label": "assignment by the cost of the predictions (RTMDet, NanoDet-Plus, SimOTA, AlignOTA)",
    "qfl": "quality focal loss",
    "focal": "sigmoid focal, varifocal and matchability-aware loss, IoU-aware cross-entropy",
    "dfl": "distribution focal loss",
    "distribution_kl": "divergence of a student's distributions from a teacher's (distillation)",
    "fgl": "D-FINE's fine-grained localisation loss: `dfl` on bins that are not uniform",
    "ddf": "D-FINE's distillation loss: `distribution_kl`, matched and other rows weighed apart",
    "giou": "GIoU loss of aligned boxes",
    "iou": "IoU of aligned boxes, the target of the scores",
    "ciou": "CIoU loss of aligned boxes, as Ultralytics or mmdet have it",
    "gfl_targets": "assignment → targets and weights of the losses",
    "gfl_loss": "all losses of the head",
    "decode": "scores, best points, boxes (then torchvision's NMS)",
}
_MODULES = {
    "integral": "Integral",
    "dgqp": "DGQP",
    "atss": "ATSSAssigner",
    "qfl": "QualityFocalLoss",
    "dfl": "DistributionFocalLoss",
    "distribution_kl": "KnowledgeDistillationKLDivLoss",
    "giou": "GIoULoss",
}
_SENTENCE = "Each of them has all backends:"
# What the README shows of benchmarks/results: the first case of each.
_MEASURED = {
    "head": "the training head: assignment, losses, all gradients",
    "training_step": "a training step of",
    "inference": "inference with",
}


def configurations() -> list[str]:
    """Rows of the configurations' table, the authors' models first, weakest first."""
    from gflv2 import list_models, load_config

    # Those of GFLV1 and ATSS, which are others', stand in docs/models.md.
    configs = [load_config(name) for name in list_models("gflv2_*")]
    configs.sort(key=lambda c: (c.authors.ap_minival is None, c.authors.ap_minival or 0, c.name))
    rows = []
    for config in configs:
        authors, backbone = config.authors, config.model.backbone
        stages = ", ".join(f"c{stage}" for stage in backbone.deform.stages) or "–"
        numbers = (authors.ap_minival, authors.ap_test_dev, authors.fps_2080ti)
        shown = " | ".join("–" if number is None else f"{number:.1f}" for number in numbers)
        rows.append(f"| `{config.name}` | {authors.name or '–'} | {backbone.name} | {stages} | {shown} |")
    return rows


def published() -> list[str]:
    """Rows of the table of the weights that come by name."""
    from gflv2.checkpoint import list_weights

    rows = []
    for named in list_weights():
        numbers = (named.ap, named.ap_test_dev, None if named.size is None else named.size / 1e6)
        shown = " | ".join("–" if number is None else f"{number:.1f}" for number in numbers)
        how = "download" if named.address else "by hand"
        file = f"[{named.file}]({named.address or named.page})"
        rows.append(f"| `{named.name}` | {shown} | {named.source} | {named.licence} | {how} | {file} |")
    return rows


def operations() -> list[str]:
    """Rows of the operations' table."""
    rows = []
    for name in sorted(_registered(), key=lambda name: list(_MEANING).index(name)):
        module = f"`{_MODULES[name]}`" if name in _MODULES else "–"
        rows.append(f"| `{name}` | {_MEANING[name]} | {module} |")
    return rows


def _registered() -> dict[str, set[str]]:
    """The backends of every operation."""
    import gflv2.ops  # noqa: F401
    from gflv2.ops import backends

    return {name: set(backends._refusals[name]) for name in backends.operations()}


def kernels() -> list[str]:
    """Rows of the table of docs/kernels.md that says what has been done with the kernels of each kind."""
    rows = []
    for backend, told, emulation in (
        ("triton", "Triton, `kernels/`", "Triton's interpreter"),
        ("cuda", "CUDA, `csrc/cuda/`", "`csrc/simt`"),
    ):
        names = [name for name, rooms in _registered().items() if backend in rooms]
        compiled = {name: _compiled_for(_source(name, backend)) for name in names}
        everywhere = [each for each in _architectures() if all(each in found for found in compiled.values())]
        gpus = _gpus(backend)
        ran = "; ".join(f"{gpu}: {', '.join(sorted(ops))}" for gpu, ops in sorted(gpus.items())) or "not yet"
        rows.append(f"| {told} | {len(names)} | {', '.join(everywhere) or '–'} | {emulation} | {ran} |")
    return rows


def _source(operation: str, backend: str) -> str:
    """Where the kernels of an operation stand, as the table of their registers names it."""
    page = KERNELS_PAGE.read_text()
    shared = {"dgqp_statistics": "dgqp", "iou": "giou", "ciou": "giou", "gfl_targets": "gfl_loss"}
    shared |= {"fgl": "dfl", "ddf": "distribution_kl"}
    names = [
        f"kernels/{name}.py" if backend == "triton" else f"{name}.cu" for name in (operation, shared.get(operation))
    ]
    return next((name for name in names if f"\n| {name} |" in page), names[0])


def _architectures() -> list[str]:
    return re.findall(r"sm_\d+", re.search(r"^\| source .*$", KERNELS_PAGE.read_text(), re.MULTILINE)[0])


def _compiled_for(source: str) -> list[str]:
    """Architectures for which the compile matrix has compiled a source."""
    rows = re.findall(rf"^\| {re.escape(source)} \|.*$", KERNELS_PAGE.read_text(), re.MULTILINE)
    return [
        name for place, name in enumerate(_architectures()) if any(row.split(" | ")[2 + place] != "–" for row in rows)
    ]


def _rows() -> list[results.Row]:
    return [row for path in results.files(ROOT / "benchmarks" / "results") for row in results.read(path)]


def _gpus(backend: str) -> dict[str, set[str]]:
    """The operations that were measured on each GPU; the day stands beside its name."""
    found: dict[str, set[str]] = {}
    for row in _rows():
        if row["backend"] == backend and row["driver"]:  # a GPU's
            found.setdefault(f"{row['device']}, {_day(row['commit'])}", set()).add(f"`{row['operation']}`")
    return found


def _day(commit: str) -> str:
    """The day of a commit, or its name where the history is not here."""
    run = subprocess.run(["git", "show", "-s", "--format=%cs", commit], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else f"commit {commit}"


def measured() -> list[str]:
    """Rows of the table of speed: of head, training step and inference the first case, on every device."""
    found, rows = [], _rows()
    for name, told in _MEASURED.items():
        runs = results.by_key(row for row in rows if row["operation"] == name)
        first = next(iter(runs))[-1]
        wanted = "both" if any(key[3] == "both" for key in runs) else "forward"
        for device, _, backend, mode, case in runs:
            if backend not in (*KERNELS, BEST) or (mode, case) != (wanted, first):
                continue
            others = {key[2]: runs[key] for key in runs if (key[0], key[3], key[4]) == (device, mode, case)}
            times = {candidate: results.median(of, "ms") for candidate, of in others.items()}
            eager = min(time for candidate, time in times.items() if candidate.startswith("eager: "))
            cells = [f"{told} {_shown(case)}", device, results.shown(times[backend])]
            cells += [f"{results.shown(eager)} ({results.shown(eager / times[backend])} ×)"]
            cells += [_least(times, "compile: "), results.shown(times.get("mmdet (GFLV1)")) or "–"]
            found.append(f"| {' | '.join(cells)} |")
    return found


def _shown(case: str) -> str:
    """``batch=2 size=800x1344 …`` in words."""
    facts = dict(fact.split("=") for fact in case.split())
    text = f"{facts['batch']} image{'s' * (facts['batch'] != '1')} of {facts['size'].replace('x', ' × ')}"
    text += f", {facts['boxes']} boxes each" if "boxes" in facts else ""
    return f"`{facts['model']}`, {text}" if "model" in facts else f"({text})"


def _least(times: dict[str, float], prefix: str) -> str:
    return results.shown(min((time for name, time in times.items() if name.startswith(prefix)), default=None)) or "–"


TABLES = {configurations: README, published: MODELS_PAGE, operations: README, measured: README, kernels: KERNELS_PAGE}


def table(name: str, text: str) -> list[str]:
    """The rows below the head of a table."""
    block = re.search(rf"<!-- table: {name}.*?-->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert block is not None, f"there is no table {name!r}"
    return block[1].splitlines()[2:]


@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
def test_tables(make):
    pytest.importorskip("yaml")
    assert table(make.__name__, TABLES[make].read_text()) == make(), "run: make tables"


def test_length():
    assert len(README.read_text().splitlines()) <= 160


def test_every_operation_has_every_backend():
    lacking = {name: sorted(set(ROOMS) - rooms) for name, rooms in _registered().items() if set(ROOMS) - rooms}
    assert (_SENTENCE in README.read_text()) == (not lacking), lacking


def test_modules():
    from gflv2 import nn

    assert sorted(_MODULES.values()) == sorted(set(nn.__all__) - {"AssignResult"})


def test_the_architectures_are_those_of_the_compile_matrix():
    text = README.read_text()
    assert set(re.findall(r"sm_\d+", text)) == set(_architectures())
    for row in table("kernels", KERNELS_PAGE.read_text()):
        assert re.findall(r"sm_\d+", row) == _architectures(), row


def test_a_run_on_a_gpu_is_told():
    """As soon as one is among the results, the sentence that says there was none is false."""
    ran = bool(_gpus("triton") or _gpus("cuda"))
    assert ("**not yet been run on a GPU**" in README.read_text().replace("\n", " ")) == (not ran)


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
        assert hasattr(Result, name) or name in Result.__dataclass_fields__, name


def test_links_and_picture():
    text = README.read_text()
    for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    picture = ROOT / "docs" / "images" / "distributions.jpg"
    assert picture.stat().st_size <= 300_000
    for heading in re.findall(r"\]\(#([^)]+)\)", text):
        slugs = [line.strip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")]
        assert heading in slugs


def _write() -> None:
    for make, path in TABLES.items():
        rows = "\n".join(make())
        pattern = rf"(<!-- table: {make.__name__}[^\n]*\n[^\n]*\n[^\n]*\n).*?(<!-- end -->)"
        found = re.sub(
            pattern, lambda match, rows=rows: f"{match[1]}{rows}\n{match[2]}", path.read_text(), flags=re.DOTALL
        )
        path.write_text(found)


if __name__ == "__main__":
    _write()
