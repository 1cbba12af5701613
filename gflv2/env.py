"""What this installation can do: versions, what was built, which backend each operation uses and why not the others.

``python -m gflv2.env`` prints it, ``--json`` as JSON. It works on a broken installation too: a part that cannot be read
says why, and the others are shown.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent
# What a bug report needs to name; the core first, then the extras.
_PACKAGES = (
    "torch numpy triton torchvision timm lightning pycocotools jsonargparse matplotlib onnx onnxruntime"
).split()
_OPTIONS = ("GFLV2_", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


class _TypicalFacts(dict):
    """The facts of a typical call, for the backends' refusals; 0, within every limit, for what is not named."""

    def __missing__(self, _: str) -> int:
        return 0


def _try(read: Callable[[], Any]) -> Any:
    """What ``read`` returns, or {"error": why not}: any part of an installation may be broken in any way."""
    try:
        return read()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _versions() -> dict[str, str | None]:
    """Version of each package, None where it is not installed; nothing is imported."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _torch() -> dict[str, Any]:
    import torch

    answer: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    answer["devices"] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            name = f"{properties.name} (sm_{properties.major}{properties.minor})"
            answer["devices"].append({"index": index, "name": name, "memory": properties.total_memory})
    return answer


def _native() -> dict[str, Any]:
    """Of the library itself where torch can be imported, else what its record and its file say."""
    if importlib.util.find_spec("torch") is not None:
        return importlib.import_module("gflv2.ops.native").status()
    answer: dict[str, Any] = {"loaded": False, "reason": "torch is not installed", "build": {}}
    record = _FOLDER / "_build.json"
    if record.is_file():
        answer["build"] = json.loads(record.read_text())
    return answer


def _operations() -> dict[str, dict[str, dict[str, Any]]]:
    """For each operation and kind of device: the backend of a typical float32 call, and why each other one does not."""
    import torch

    importlib.import_module("gflv2.ops")
    backends = importlib.import_module("gflv2.ops.backends")
    answer: dict[str, dict[str, dict[str, Any]]] = {}
    for op in backends.operations():
        answer[op] = {}
        for kind in ("cpu", "cuda"):
            call = backends.Call(torch.device(kind), torch.float32, _TypicalFacts(bins=17, topk=4, k=4))
            answer[op][kind] = _try(lambda op=op, call=call: _explanation(backends.explain_call(op, call)))
    return answer


def _gpu_order() -> dict[str, dict[str, Any]]:
    """For each operation: the backends of a GPU in the order in which they are tried, and why."""
    importlib.import_module("gflv2.ops")
    backends = importlib.import_module("gflv2.ops.backends")
    table = importlib.import_module("gflv2.ops.preference").PREFERENCE
    return {
        op: {"order": list(backends.order(op, "cuda")), "reason": table[op][1] if op in table else "not forecast"}
        for op in backends.operations()
    }


def _explanation(choices: Sequence[Any]) -> dict[str, Any]:
    runs = next((choice.backend for choice in choices if choice.chosen), None)
    return {"backend": runs, "others": {choice.backend: choice.reason for choice in choices if not choice.chosen}}


def report() -> dict[str, Any]:
    """Everything, as plain data.

    Returns:
        ``gflv2`` (version, folder), ``python``, ``platform``, ``packages``, ``torch``, ``native``, ``operations``,
        ``gpu_order`` and ``options`` (the environment variables that are set). A part that cannot be read is
        {"error": why}.
    """
    return {
        "gflv2": {"version": _try(lambda: importlib.import_module("gflv2").__version__), "folder": str(_FOLDER)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _try(_versions),
        "torch": _try(_torch),
        "native": _try(_native),
        "operations": _try(_operations),
        "gpu_order": _try(_gpu_order),
        "options": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_OPTIONS)},
    }


def render(found: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"gflv2 {found['gflv2']['version']} in {found['gflv2']['folder']}"]
    lines.append(f"Python {found['python']}, {found['platform']}")
    if "error" in found["packages"]:
        lines.append(f"packages: {found['packages']['error']}")
    else:
        lines.append(
            "packages: " + ", ".join(f"{name} {version or '-'}" for name, version in found["packages"].items())
        )
    lines += ["", *_render_torch(found["torch"]), "", *_render_native(found["native"])]
    lines += ["", *_render_operations(found["operations"])]
    lines += ["", *_render_gpu_order(found["gpu_order"])]
    if found["options"]:
        lines += ["", "set in the environment:"]
        lines += [f"  {name}={value}" for name, value in found["options"].items()]
    return "\n".join(lines)


def _render_torch(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"torch: {found['error']}"]
    lines = [f"torch {found['version']}, CUDA {found['cuda'] or 'not built in'}, {found['threads']} threads"]
    devices = [f"  cuda:{d['index']} {d['name']}, {d['memory'] / 2**30:.0f} GiB" for d in found["devices"]]
    return lines + (devices or ["  no CUDA device"])


def _render_native(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"native library: {found['error']}"]
    build = found["build"]
    native, cuda = build.get("native", {}), build.get("cuda", {})
    lines = ["native library: " + ("loaded" if found["loaded"] else str(found["reason"]))]
    if native.get("built"):
        openmp = "OpenMP" if native.get("openmp") else "one thread (no OpenMP)"
        lines.append(
            f"  CPU kernels: {native.get('compiler')}, {', '.join(native.get('instruction_sets', []))}, {openmp}"
        )
    if found.get("instruction_set"):
        lines.append(
            f"  in use: {found['instruction_set']} (this processor has {', '.join(found['instruction_sets'])})"
        )
    if cuda.get("built"):
        lines.append(
            f"  CUDA kernels: {cuda.get('compiler')}, architectures {', '.join(cuda.get('architectures', []))}"
        )
    elif cuda:
        lines.append(f"  CUDA kernels: not built: {cuda.get('reason')}")
    return lines


def _render_operations(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"operations: {found['error']}"]
    lines: list[str] = []
    for kind in ("cpu", "cuda"):
        lines += [f"operations on {kind} tensors (a typical float32 call), and why the other backends do not run:"]
        for (answer, reasons), ops in _group_alike(found, kind).items():
            lines += [f"  {answer}: {', '.join(ops)}", *(f"    not {reason}" for reason in reasons)]
    return lines


def _render_gpu_order(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"order on a GPU: {found['error']}"]
    lines = ["on a GPU comes first:"]
    return lines + [f"  {op:<16} {of['order'][0]:<7} ({of['reason']})" for op, of in found.items()]


def _group_alike(found: dict[str, Any], kind: str) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Operations whose answers read the same: (backend, reasons) → names."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for op, kinds in found.items():
        answer = kinds[kind]
        others = answer.get("others", {})
        reasons = tuple(f"{name}: {reason.removeprefix(f'{op} has ')}" for name, reason in others.items())
        groups.setdefault((answer.get("error") or answer["backend"] or "no backend", reasons), []).append(op)
    return groups


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``python -m gflv2.env [--json]``."""
    parser = argparse.ArgumentParser(prog="gflv2 env", description="what this installation of gflv2 can do")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    found = report()
    print(json.dumps(found, indent=2) if options.json else render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
