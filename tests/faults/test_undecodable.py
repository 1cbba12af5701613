"""Training on images that cannot be decoded, which only their pixels show."""

from __future__ import annotations

import pytest

from gflv2 import cli
from tests.data.test_dataset import damage
from tests.faults.command_rows import data, train


@pytest.mark.filterwarnings("ignore")  # Lightning's, of a run of one step
@pytest.mark.parametrize("workers", ["0", "1"])
def test_skip_bad_trains_on_and_says_at_the_end_how_many_there_were(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.chdir(tmp_path)
    data(tmp_path)
    damage(tmp_path / "images" / "im2.png")
    arguments = [*train("--output", "run", "--data.workers", workers), "--train.epochs", "2"]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("im2.png") == 1 and "cannot be read" in said.splitlines()[-1] and "Traceback" not in said
    assert cli.main([*arguments, "--skip-bad", "--overwrite"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "im2.png" in line]
    assert len(lines) == 2 and "the next image takes its place (said once)" in lines[0]
    assert lines[1].startswith("data: 1 training images could not be decoded, others took their places")
