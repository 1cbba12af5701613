"""Lets this Python's torch, built for CUDA, be imported without CUDA's libraries, which a CPU never runs.

For every library that the loader misses, one of the same name is written into torch/lib. Its functions exist, and end
the program when they are called. For tests on a CPU alone. Needs ldd, nm and a C compiler.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

OF_CUDA = r"cu(?:blas|dnn|fft|rand|sparse|File)|nccl|nvshmem"


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def missing(folder: Path) -> list[str]:
    """Names of the libraries that are not found when torch's part for Python is loaded."""
    return sorted(set(re.findall(r"(\S+) => not found", said("ldd", str(folder / "libtorch_python.so")))))


def undefined(folder: Path) -> dict[str, set[str]]:
    """The functions of CUDA's libraries that torch calls, by the version that they must have ("" for none)."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for path in folder.glob("*.so"):
        text = said("nm", "-D", "--undefined-only", str(path))
        for name, version in re.findall(rf" [Uw] ((?:{OF_CUDA})\w+)(?:@(\S+))?$", text, re.MULTILINE):
            found[version].add(name)
    return found


def write(path: Path, functions: dict[str, set[str]]) -> None:
    """A library of these functions. Versions named after other libraries are left to those."""
    nodes = {version: names for version, names in functions.items() if version == path.name or ".so" not in version}
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stand_in.c"), Path(folder, "versions")
        calls = sorted(set().union(*nodes.values()))
        source.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in calls))
        options = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{path.name}"]
        named = {version: "; ".join(sorted(names)) for version, names in nodes.items() if version}
        if named:
            script.write_text("".join(f"{version} {{ {names}; }};\n" for version, names in named.items()))
            options.append(f"-Wl,--version-script={script}")
        said(os.environ.get("CC", "cc"), *options, str(source), "-o", str(path))


def main() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None, "torch is not installed"
    folder = Path(spec.origin).parent / "lib"
    functions = undefined(folder)
    for name in missing(folder):
        write(folder / name, functions)


if __name__ == "__main__":
    main()
