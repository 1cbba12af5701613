"""The compile matrix: every kernel for every architecture of a release, its registers, shared memory and spills.

``python -m tests.kernels.matrix`` compiles the CUDA sources (nvcc) and the Triton launches listed in ``launches``, and
writes the table of docs/kernels.md and, from the same machine code, the forecast (``forecast``). It fails where a
kernel does not compile; where it needs a stack or spills a register, unless ``allowed`` says why; where a Triton kernel
that must not fuse a product into a sum does so; and where a kernel got worse than the committed forecast expects.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gflv2.kernels.variants import ARCHITECTURES, Variant
from tests.kernels.allowed import ALLOWED
from tests.kernels.hot import Hot
from tests.kernels.launches import OPERATIONS, hot, variants_of
from tests.kernels.machine_code import Facts, average, disassemble, facts_of

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
TABLE = ROOT / "docs" / "kernels.md"
CUDA_SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
# Whose machine code the forecast reads: sm_80 also runs on sm_89.
FORECAST = (80, 90)
# As in CMakeLists.txt.
CUDA_OPTIONS = ["-std=c++17", "-O3", "-fmad=false", f"-I{CSRC}", f"-I{CSRC / 'include'}", "-DGFLV2_HAS_CUDA"]


class Launched(NamedTuple):
    """A launch of the forecast's workload, and what its machine code does."""

    hot: Hot
    facts: Facts
    blocks: int
    warps: int  # of a block
    shared: int  # bytes of a block
    last: Facts | None = None  # of the block that ends last


class Usage(NamedTuple):
    """One compiled instance of one kernel."""

    source: str  # dgqp.cu, or kernels/dgqp.py
    kernel: str
    instance: str  # template arguments, or the call that launches it
    symbol: str
    architecture: int
    registers: int
    shared: int  # bytes that are known when it is compiled
    stack: int  # bytes of the stack frame, spills included
    launched: Launched | None = None


class Failure(NamedTuple):
    source: str
    architecture: int
    message: str


Result = list[Usage] | Failure


def compile_cuda(name: str, architecture: int) -> Result:
    """What ptxas says of every kernel of a CUDA source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        run = subprocess.run(
            [
                *["nvcc", *CUDA_OPTIONS, f'-DGFLV2_CUDA_ARCHITECTURES="{architecture}"', f"-arch=sm_{architecture}"],
                *["-Xptxas", "-v", "-cubin", "-o", str(cubin), str(CSRC / "cuda" / name)],
            ],
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            return Failure(name, architecture, run.stderr)
        found = read_ptxas(name, architecture, run.stderr)
        if not found and any(source == name for source, _ in cuda_kernels()):
            return Failure(name, architecture, f"ptxas reports no kernel: {run.stderr}")
        return [item._replace(launched=_launched_cuda(item, cubin)) for item in found]


def _launched_cuda(usage: Usage, cubin: Path) -> Launched | None:
    item = _hot_of(usage.architecture, usage.source, usage.symbol, usage.symbol)
    if item is None:
        return None
    text = disassemble(cubin, usage.symbol)
    facts, last = _facts(item, text), _facts(item, text, last=True) if item.last else None
    if facts is None or (item.last and last is None):
        return None
    return Launched(item, facts, item.blocks_of({}), item.warps, usage.shared + item.shared, last)


def _hot_of(architecture: int, source: str, kernel: str, instance: str) -> Hot | None:
    if architecture not in FORECAST:
        return None
    return next((item for item in hot() if item.is_launched_by(source, kernel, instance)), None)


def _facts(item: Hot, text: str, *, last: bool = False) -> Facts | None:
    """``last``: of the block that ends last. None, which the forecast's check refuses: what is declared does not fit
    the machine code.
    """
    loops, cold = item.loops, item.cold
    if last:
        loops = {**item.last, **loops}
    else:
        cold = "|".join(filter(None, [cold, *item.last]))
    try:
        if item.ways:
            return average([(way.share, facts_of(text, loops, way.trips, way.cold)) for way in item.ways])
        return facts_of(text, loops, item.trips, cold)
    except ValueError as error:
        print(f"{item.name}: {error}; see HOT in tests/kernels/launches", file=sys.stderr)
        return None


def read_ptxas(source: str, architecture: int, text: str) -> list[Usage]:
    """The report of ``ptxas -v``, one entry function after the other."""
    found = []
    for block in re.split(r"Compiling entry function ", text)[1:]:
        symbol = re.match(r"'(\w+)'", block)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        assert symbol and frame and registers, block
        kernel, instance = read_symbol(symbol[1])
        stack = max(map(int, frame.groups()))
        size = int(shared[1]) if shared else 0
        found.append(Usage(source, kernel, instance, symbol[1], architecture, int(registers[1]), size, stack))
    return found


@functools.cache
def read_symbol(symbol: str) -> tuple[str, str]:
    """Name and template arguments of a mangled kernel."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    text = subprocess.run([tool, symbol], capture_output=True, text=True).stdout.strip() if tool else symbol
    text = re.sub(r"\(anonymous namespace\)::|gflv2::|cuda::|^void ", "", text)
    name = re.match(r"(?:\w+::)*(\w+)", text)
    if not tool or not name:
        return symbol, ""
    return name[1], _template_arguments(text[name.end() :])


def _template_arguments(text: str) -> str:
    """``<…>`` at the head of a text, brackets within it included."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if depth == 0:
            return text[: place + 1] if place else ""
    return ""


def compile_triton(op: str, architecture: int) -> Result:
    """What each listed launch of an operation needs; equal ones are compiled once."""
    from triton.backends import nvidia

    cuobjdump = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    source, found, seen = f"kernels/{op}.py", [], set()
    for call, variants in variants_of(op).items():
        for variant in variants:
            if variant.key in seen:
                continue
            seen.add(variant.key)
            try:
                compiled = variant.compile(architecture)
                code = compiled.asm
            except Exception as error:  # whatever the compiler throws is the finding
                return Failure(source, architecture, f"{variant.kernel} ({call}): {type(error).__name__}: {error}")
            # ptxas is told so too: the option holds for both.
            if not variant.options["enable_fp_fusion"] and re.search(r"\bfma\.", code["ptx"]):
                return Failure(source, architecture, f"{variant.kernel} ({call}) fuses a product into a sum")
            kernel, launched = variant.kernel.rsplit(".", 1)[-1], None
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(code["cubin"])
                file.flush()
                text = subprocess.run(
                    [str(cuobjdump), "-res-usage", file.name], capture_output=True, text=True, check=True
                ).stdout
                item = _hot_of(architecture, source, kernel, call)
                facts = item and _facts(item, disassemble(Path(file.name)))
                if item is not None and facts is not None:
                    warps, shared = variant.options["num_warps"], compiled.metadata.shared
                    launched = Launched(item, facts, item.blocks_of(_constants(variant)), warps, shared)
            numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
            assert numbers, text
            registers, stack, shared, local = map(int, numbers.groups())
            # Neither function calls nor arrays: a stack can only be spilled registers.
            spilled = max(stack, local)
            found.append(Usage(source, kernel, call, kernel, architecture, registers, shared, spilled, launched))
    return found


def _constants(variant: Variant) -> dict[str, Any]:
    """Its ``tl.constexpr`` parameters by name."""
    names = variant.function.arg_names
    return {names[place[0]] if isinstance(place, tuple) else place: value for place, value in variant.constants.items()}


def reason_of(usage: Usage) -> str | None:
    """Why this kernel may have a stack; None: it may not."""
    for pattern, reason in ALLOWED.get(usage.source, []):
        if re.search(pattern, usage.symbol):
            return reason
    return None


def _task(task: tuple[str, str, int]) -> Result:
    room, name, architecture = task
    return (compile_cuda if room == "cuda" else compile_triton)(name, architecture)


def compile_all(architectures: Sequence[int], jobs: int, *, cuda: bool = True) -> list[Result]:
    """Every source for every architecture, the longest first."""
    sources = sorted(CUDA_SOURCES, key=lambda path: -path.stat().st_size) if cuda else []
    tasks = [("cuda", path.name, architecture) for path in sources for architecture in architectures]
    tasks += [("triton", op, architecture) for op in OPERATIONS for architecture in architectures]
    context = multiprocessing.get_context("spawn")
    results = []
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for task, result in zip(tasks, pool.map(_task, tasks), strict=True):
            print(f"{task[0]:<6} {task[1]:<16} sm_{task[2]}", f"{len(result)} kernels" if _fine(result) else "FAILED")
            sys.stdout.flush()
            results.append(result)
    return results


def _fine(result: Result) -> bool:
    return not isinstance(result, Failure)


def problems(results: Sequence[Result]) -> list[str]:
    """What must not be, one text each."""
    texts = []
    for result in results:
        if isinstance(result, Failure):
            texts.append(f"{result.source} on sm_{result.architecture}: {result.message}")
            continue
        for usage in result:
            if usage.stack and reason_of(usage) is None:
                texts.append(
                    f"{usage.source}: {usage.kernel} {usage.instance} on sm_{usage.architecture} has a stack of "
                    f"{usage.stack} bytes ({usage.registers} registers); tests/kernels/allowed.py does not say why"
                )
    symbols = {(usage.source, usage.symbol) for result in results if _fine(result) for usage in result}
    for source in {source for source, _ in symbols} & ALLOWED.keys():
        for pattern, _ in ALLOWED[source]:
            if not any(re.search(pattern, symbol) for name, symbol in symbols if name == source):
                texts.append(f"tests/kernels/allowed.py: {pattern} finds no kernel in {source}")
    return texts


def render(results: Iterable[Result]) -> str:
    """The table of docs/kernels.md."""
    rows: dict[tuple[str, str, str], dict[int, list[Usage]]] = {}
    for result in results:
        for usage in result if not isinstance(result, Failure) else ():
            reason = (reason_of(usage) or "**no reason given**") if usage.stack else ""
            rows.setdefault((usage.source, usage.kernel, reason), {}).setdefault(usage.architecture, []).append(usage)
    architectures = sorted({architecture for columns in rows.values() for architecture in columns})
    lines = [
        "| source | kernel | "
        + " | ".join(f"sm_{architecture}" for architecture in architectures)
        + " | why a stack |",
        "|---|---|" + "---|" * (len(architectures) + 1),
    ]
    for (source, kernel, reason), columns in sorted(rows.items()):
        cells = [_cell(columns.get(architecture, [])) for architecture in architectures]
        lines.append(f"| {source} | `{kernel}` | {' | '.join(cells)} | {reason} |")
    return "\n".join(lines) + "\n"


def _cell(usages: list[Usage]) -> str:
    if not usages:
        return "–"

    def span(values: list[int]) -> str:
        return str(values[0]) if min(values) == max(values) else f"{min(values)}–{max(values)}"

    text = f"{span([usage.registers for usage in usages])} reg"
    for name in ("shared", "stack"):
        values = [getattr(usage, name) for usage in usages]
        text += f", {span(values)} B {name}" if max(values) else ""
    return text


def cuda_kernels() -> set[tuple[str, str]]:
    """(source, kernel) of all that the CUDA sources define, in themselves or in a header of csrc/cuda."""
    found = set()
    for path in CUDA_SOURCES:
        text = path.read_text()
        text += "".join((CSRC / header).read_text() for header in re.findall(r'#include "(cuda/\w+\.cuh)"', text))
        nested = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
        for name in re.findall(rf"^[^/\n]*(?:GFLV2_KERNEL{nested}|__global__ void)\s+(\w+)\s*\(", text, re.MULTILINE):
            found.add((path.name, name))
    return found


def triton_kernels() -> set[tuple[str, str]]:
    """(source, kernel) of all that the listed calls launch."""
    return {
        (f"kernels/{op}.py", variant.kernel.rsplit(".", 1)[-1])
        for op in OPERATIONS
        for variants in variants_of(op).values()
        for variant in variants
    }


def listed_kernels() -> set[tuple[str, str]]:
    """(source, kernel) of all rows of the committed table."""
    return set(re.findall(r"^\| (\S+) \| `(\w+)` \|", TABLE.read_text(), re.MULTILINE))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with the expectation")
    parser.add_argument("--triton-only", action="store_true", help="leave out the CUDA sources")
    options = parser.parse_args(arguments)
    nvcc = shutil.which("nvcc") is not None and not options.triton_only
    results = compile_all(options.architectures, options.jobs, cuda=nvcc)
    from tests.kernels import forecast  # it compiles by this module

    found = problems(results)
    complete = nvcc and all(map(_fine, results)) and set(options.architectures) == set(ARCHITECTURES)
    if complete and not options.check:
        begin, _, rest = TABLE.read_text().partition("<!-- table: needs -->\n")
        end = rest[rest.index("<!-- end -->") :]
        TABLE.write_text(f"{begin}<!-- table: needs -->\n{render(results)}{end}")
        print(f"wrote {TABLE.relative_to(ROOT)}")
        forecast.write(results)
    else:
        found += forecast.problems(results)
    if not nvcc and not options.triton_only:
        print("nvcc is not on PATH: the CUDA sources were not compiled")
    for text in found:
        print(f"error: {text}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
