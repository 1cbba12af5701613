"""The code blocks of the guides, and how a test runs them.

A block of ``python`` or ``bash`` is run, unless a comment above it says why not, ``<!-- not run: REASON -->``, or which
test of another environment does so, ``<!-- run by PATH -->``. What a block shows as output stands in one of ``text`` or
``console``. Blocks of a page share their names, in their order.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from gflv2 import cli

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs"
PAGES = sorted(FOLDER.glob("*.md"))
RUN = ("python", "bash")
# Settings, output and Sphinx's own blocks.
NOT_CODE = ("text", "console", "yaml", "json", "{toctree}", "{eval-rst}", "{include}")
# Of a command that would take minutes or a GPU, a test runs the first steps on a CPU.
SHORT = {
    "train": "--train.epochs 1 --limit-train-batches 2 --limit-val-batches 2 --accelerator cpu --no-progress "
    "--train.batch_size 4 --data.workers 0 --data.long_side 128 --data.short_side [96,96] --data.test_short_side 96",
    "val": "--device cpu --no-progress",
    "predict": "--device cpu --no-progress",
    "bench": "--device cpu --seconds 0.1 --size 64 64",
}


@dataclass
class Block:
    """One block: where it begins, its language, its text; if it is not run, why; the test that runs it elsewhere."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    run_by: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = path.read_text()
    pattern = r"(?:^<!-- (?:not run: (.+?)|run by (\S+)) -->\n)?^```(\S*)\n(.*?)^```$"
    found = []
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        not_run, run_by, language, content = match.groups()
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(path.name, line, language, content, not_run, run_by))
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), f"{path.name}: a block that is not closed"
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each line of a shell block; comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def of_test(path: str) -> list[Block]:
    """The blocks of all pages that say that this test runs them."""
    own = Path(path).resolve().relative_to(ROOT)
    return [block for page in PAGES for block in blocks(page) if block.run_by == str(own)]


def check(block: Block) -> None:
    """What holds for a block that is not run: it is Python, or its commands of gflv2 exist with their options."""
    if block.language == "python":
        compile(block.text, str(block), "exec")
        return
    for words in commands(block):
        if words[0] == "gflv2" and words[1] not in ("demo", "env"):  # these two have parsers of their own
            cli._parser().parse_args(cli._split_overrides(words[1:])[0])


def run(block: Block, names: dict) -> None:
    """Run a block in the current folder, with the names that the page's earlier blocks have left."""
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), names)
        return
    for words in commands(block):
        assert words[0] == "gflv2", f"{block}: only commands of gflv2 are run, got {words[0]!r}"
        code = cli.main([*words[1:], *SHORT.get(words[1], "").split()])
        assert code == 0, f"{block}: {shlex.join(words)} ended with {code}"
