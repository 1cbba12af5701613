"""Tests of the tests: kernels with a deliberate mistake are caught, and their twins without it pass."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.simt.building import ROOT, compiler, shared_folder

HERE = Path(__file__).parent / "broken"
# Of CMakeLists.txt's gflv2_check: the engine, and the compiler's options.
WAYS = {
    "fibers": ("fibers", []),
    "address": ("fibers", ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]),
    "thread": ("threads", ["-fsanitize=thread"]),
}
# Kernel, way to run it, what is said about the mistake.
CAUGHT = [
    ("missing_barrier", "thread", "data race"),
    ("missing_barrier", "fibers", r"element \d is -?nan"),
    ("missing_second_barrier", "thread", "data race"),
    ("missing_second_barrier", "fibers", r"element \d+ is \d+, expected"),
    ("stray_store", "address", "heap-buffer-overflow"),
    ("stray_shared_store", "address", "use-after-poison"),
    (
        "stray_shared_store",
        "fibers",
        r"kernel reverse, block \d of 3: wrote 0 bytes behind its 256 bytes",
    ),
    ("unwritten_output", "fibers", "element 252 is -?nan"),
    ("unwritten_shared_memory", "fibers", r"element 0 is \d"),
    (
        "divergent_barrier",
        "fibers",
        r"kernel shift, block 2 of 3: .*: 5 have ended, 59 wait at .*:14",
    ),
    (
        "divergent_barrier",
        "thread",
        r"kernel shift, block 2 of 3: .*: 5 have ended, 59 wait at .*:14",
    ),
    ("two_blocks_one_place", "thread", "data race"),
    ("assumed_last_block", "thread", "data race"),
    ("misaligned_load", "address", "misaligned address"),
    ("too_much_shared_memory", "fibers", "launching kernel copy: CUDA refuses 49156 bytes of shared memory"),
]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")]


def compile_to(target: Path, way: str, *arguments: str) -> None:
    flags = ["-std=c++20", "-O1", "-g1", "-DGFLV2_SIMT", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", f"-I{HERE}"]
    command = [str(compiler()), *flags, *WAYS[way][1], *includes, *arguments, "-o", str(target)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stderr}"


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Object files of csrc/simt for each way."""
    folder = shared_folder(tmp_path_factory, "engines", compile_engines)
    return {way: [str(folder / f"{way}_{name}.o") for name in ("block", engine)] for way, (engine, _) in WAYS.items()}


def compile_engines(folder: Path) -> None:
    for way, (engine, _) in WAYS.items():
        for name in ("block", engine):
            compile_to(folder / f"{way}_{name}.o", way, "-c", str(ROOT / "csrc" / "simt" / f"{name}.cpp"))


@pytest.mark.parametrize(("kernel", "way", "words"), CAUGHT, ids=lambda text: text if text.isidentifier() else "")
def test_the_mistake_is_caught(
    kernel: str, way: str, words: str, engines: dict[str, list[str]], tmp_path: Path
) -> None:
    source = ["-x", "c++", str(HERE / f"{kernel}.cu"), "-x", "none"]
    answers = {}
    for twin, more in (("broken", ["-DBROKEN"]), ("sound", [])):
        compile_to(tmp_path / twin, way, *more, *source, *engines[way])
        run = subprocess.run(
            [tmp_path / twin], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
        answers[twin] = run
    assert answers["sound"].returncode == 0 and not answers["sound"].stdout, answers["sound"].stdout
    assert answers["broken"].returncode != 0
    assert re.search(words, answers["broken"].stdout), answers["broken"].stdout


def test_every_broken_kernel_is_tried() -> None:
    assert {kernel for kernel, _, _ in CAUGHT} == {path.stem for path in HERE.glob("*.cu")}
