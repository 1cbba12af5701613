"""The command line of `benchmarks.host`: what it cannot measure is one line."""

from __future__ import annotations

import re
import subprocess

import pytest

from benchmarks import host


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--against", "HEAD"], "--against: expected --library with it"),
        (["--library", host.__file__], "--library: expected --against with it"),
        (["--against", "HEAD", "--library", "nowhere.so"], "--library: no such file: nowhere.so"),
        (["--against", "no-commit", "--library", host.__file__], "--against: expected a commit .*, got 'no-commit'"),
    ],
    ids=lambda value: " ".join(value[::2]) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_line(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        host.main(arguments)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert re.search(words, line), line


def test_a_commit_is_known() -> None:
    known = subprocess.run(["git", "rev-parse", "HEAD"], cwd=host.ROOT, capture_output=True, text=True)
    if known.returncode:
        pytest.skip("this is no clone")
    assert host.is_commit(known.stdout.strip()) and not host.is_commit("--all")
