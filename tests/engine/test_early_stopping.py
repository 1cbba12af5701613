"""Early stopping: when, what is said, and what a resume makes of it."""

from __future__ import annotations

import logging

import pytest
import torch

from gflv2.data import shapes
from gflv2.engine.train import train
from tests.engine.test_train import TINY
from tests.faults.kill import differences

APS = {1: 0.2, 2: 0.3, 3: 0.3, 4: 0.25, 5: 0.4, 6: 0.1, 7: 0.1, 8: 0.1}  # AP after each epoch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=2, val=1, size=64)


@pytest.fixture
def scores(monkeypatch):
    from gflv2.engine.lightning_module import DetectorModule

    def evaluated(module) -> None:
        ap = APS[module.trainer.current_epoch + 1]
        module.metrics = {"AP": ap}
        module.log("AP", ap, batch_size=1)

    monkeypatch.setattr(DetectorModule, "on_validation_epoch_end", evaluated)


def run(data, output, *, early_stopping=2, epochs=8, **options):
    settings = {"train.epochs": epochs, "train.batch_size": 2, "train.early_stopping": early_stopping}
    if "resume" not in options:
        options |= {"config": TINY, "train_data": data.train, "val_data": data.val}
    return train(output=output, pretrained=False, accelerator="cpu", overrides=settings, **options)


def iteration(folder) -> int:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_a_run_stops_and_says_why_and_its_resume_changes_nothing(data, tmp_path, scores, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="gflv2"):
        result = run(data, tmp_path / "run")
        assert "stopped early after epoch 4 of 8: no better AP than 0.300 in 2 evaluations" in caplog.text
        assert iteration(result.output) == 4 and result.best_epoch == 2
        before = (result.output / "checkpoints" / "last.ckpt").read_bytes()
        caplog.clear()
        run(data, None, resume=result.output)
        assert "has stopped early: iteration 4, 4 of 8 epochs, 2 evaluations without a better AP" in caplog.text
        assert (result.output / "checkpoints" / "last.ckpt").read_bytes() == before
        # With more patience it goes on from there: 0.4 in epoch 5 is better, 6, 7 and 8 are not.
        caplog.clear()
        run(data, None, resume=result.output, early_stopping=3)
        assert iteration(result.output) == 8 and "stopped early" not in caplog.text


def test_the_count_survives_a_stop(data, tmp_path, scores) -> None:
    whole = run(data, tmp_path / "whole", progress=False).output
    part = run(data, tmp_path / "part", max_steps=3, progress=False).output
    assert iteration(part) == 3
    run(data, None, resume=part, progress=False)
    assert iteration(part) == 4 and differences(whole, part) == []


def test_without_validation_data_it_is_refused(data, tmp_path) -> None:
    settings = {"train.early_stopping": 2}
    with pytest.raises(ValueError, match="train.early_stopping: 2 evaluations need validation data"):
        train(TINY, train_data=data.train, output=tmp_path / "run", overrides=settings, accelerator="cpu")
    assert not (tmp_path / "run").exists()
