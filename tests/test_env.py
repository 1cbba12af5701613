"""The report on an installation: complete where all is well, and never a traceback where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gflv2 import env
from gflv2.ops import backends

ROOT = Path(__file__).resolve().parents[1]


def run_env(*arguments: str, code: str = "", **variables: str) -> str:
    """The standard output of the report in a process of its own; ``code`` runs before it."""
    script = f"{code}\nimport sys\nfrom gflv2.env import main\nsys.exit(main({list(arguments)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd="/", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_a_backend_for_every_operation_and_device() -> None:
    found = env.report()
    assert set(found["operations"]) == set(backends.operations()) >= {"integral"}
    for kinds in found["operations"].values():
        for answer in kinds.values():
            assert answer["backend"] in backends.BACKENDS
            assert set(answer["others"]) == set(backends.BACKENDS) - {answer["backend"]}
            assert all(answer["others"].values()), "each backend that does not run says why"


def test_reads_the_request_for_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFLV2_BACKEND", "reference")
    found = env.report()
    assert found["operations"]["integral"]["cpu"]["backend"] == "reference"
    assert found["options"]["GFLV2_BACKEND"] == "reference"


def test_text_and_json_tell_the_same() -> None:
    found = json.loads(run_env("--json"))
    text = run_env()
    assert f"gflv2 {found['gflv2']['version']}" in text
    assert found["torch"]["version"] in text
    for op in found["operations"]:
        assert op in text


def test_every_variable_of_the_code_is_documented() -> None:
    documented = (ROOT / "docs" / "environment.md").read_text()
    for folder, pattern in (("gflv2", "**/*.py"), ("kernels", "*.py"), (".", "setup.py"), ("csrc/cpu", "dispatch.cpp")):
        for path in (ROOT / folder).glob(pattern):
            for line in path.read_text().splitlines():
                if "environ" not in line and "getenv" not in line and "flag(" not in line:
                    continue
                for word in line.replace("'", '"').split('"'):
                    if word.startswith("GFLV2_") and word != "GFLV2_":
                        assert f"`{word}`" in documented, f"{path.name} reads {word}"


def test_survives_a_broken_library(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    found = json.loads(run_env("--json", GFLV2_NATIVE_LIBRARY=str(broken)))
    assert not found["native"]["loaded"]
    assert "could not be loaded" in found["native"]["reason"]
    integral = found["operations"]["integral"]["cpu"]
    assert integral["backend"] == "reference"
    assert "could not be loaded" in integral["others"]["cpu"]


def test_says_what_is_missing_without_torch() -> None:
    # None in sys.modules makes the import fail as if the package were not there.
    blocked = "import sys\nfor name in ('torch', 'triton'): sys.modules[name] = None"
    found = json.loads(run_env("--json", code=blocked))
    assert "error" in found["torch"] and "torch" in found["torch"]["error"]
    assert "error" in found["operations"]
    assert found["gflv2"]["version"]
    assert "torch: " in run_env(code=blocked)


def test_survives_an_operation_that_cannot_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: backends.Call) -> str | None:
        raise RuntimeError("a bug in this refusal")

    monkeypatch.setitem(backends._refusals, "integral", {"cpu": refuse, "reference": None})
    found = env.report()
    assert "a bug in this refusal" in found["operations"]["integral"]["cpu"]["error"]
    assert "a bug in this refusal" in env.render(found)


def test_the_order_on_a_gpu_is_told() -> None:
    found = env.report()
    for op in backends.operations():
        assert found["gpu_order"][op]["order"] == list(backends.order(op, "cuda"))
        assert f"  {op:<16} {backends.order(op, 'cuda')[0]:<7} (" in env.render(found)
