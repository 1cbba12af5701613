"""The files around the code agree: versions, the parts of CI, the tools of lint, the commands that the guides name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import gflv2

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def load(name: str):
    return pytest.importorskip("yaml").safe_load((ROOT / name).read_text())


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    block = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert block is not None, f"the Makefile has no target {target}"
    return [line.strip().removeprefix("@") for line in block[1].splitlines()]


def parts() -> list[str]:
    """The targets that .ci/run makes, but for the install that each of them makes by itself."""
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)) - {"install"}
    commands = re.findall(r"\bmake (.*)", (ROOT / ".ci" / "run").read_text())
    return [word for command in commands for word in command.split() if word in targets]


def test_one_version():
    # None where the package's own is read.
    assert re.findall(r'^version = "(.*)"$', PROJECT, re.MULTILINE) in ([], [gflv2.__version__])
    assert load("CITATION.cff")["version"] == gflv2.__version__
    assert f"\n## {gflv2.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_names_both_papers():
    papers = load("CITATION.cff")["references"]
    names = {paper["identifiers"][0]["value"]: paper["title"] for paper in papers}
    assert set(names) == {"arXiv:2011.12885", "arXiv:2006.04388"}
    text = " ".join((ROOT / "README.md").read_text().split())
    for name, title in names.items():
        assert title in text and name.removeprefix("arXiv:") in text, title


def test_the_workflow_runs_every_part_of_ci():
    jobs = load(".github/workflows/ci.yml")["jobs"]
    ran = set(jobs["part"]["strategy"]["matrix"]["part"])
    ran |= {
        name
        for job in jobs.values()
        for step in job["steps"]
        for name in re.findall(r"^make ([a-z-]+)", step.get("run", ""))
    }
    assert ran == set(parts())
    for target in parts():
        assert target == "test-integrations" or recipe(target)


def test_the_hooks_are_what_lint_runs():
    hooks = [hook["entry"] for hook in load(".pre-commit-config.yaml")["repos"][0]["hooks"]]
    # Hooks are handed the files that changed.
    linted = [line.replace("$(BIN)", ".venv/bin") for line in recipe("lint")]
    linted = [line.removesuffix(" $(CPP)").removesuffix(" .") for line in linted]
    assert [hook.removesuffix(" --force-exclude") for hook in hooks] == linted


def test_the_tools_are_pinned():
    tools = re.search(r"^dev = \[(.*)\]$", PROJECT, re.MULTILINE)[1].split(", ")
    assert {tool.strip('"').split("==")[0] for tool in tools} == {"ruff", "clang-format", "mypy"}
    assert all(re.fullmatch(r'"[\w-]+==[\d.]+"', tool) for tool in tools), tools


def test_the_oldest_pair_is_that_of_the_install():
    oldest = (ROOT / ".ci" / "oldest.txt").read_text()
    for name in ("torch", "triton"):
        version = re.search(rf"^{name}==(\d+\.\d+)\.0$", oldest, re.MULTILINE)
        assert version and f'"{name}>={version[1]}' in PROJECT, name


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_make_command_exists(path: Path):
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"(?:`|^|&& )(?:\w+=\S+ )?make ([\w-]+)", path.read_text(), re.MULTILINE))
    patterns = ("test-integration-", "bench-integration-")
    assert {name for name in named if not name.startswith(patterns)} <= targets


def test_every_script_is_sound():
    for path in (ROOT / ".ci").iterdir():
        if path.suffix == "":
            subprocess.run(["bash", "-n", str(path)], check=True)
