"""Early stopping: when, what is said, and what a resume makes of it."""

from __future__ import annotations

import logging

import pytest
import torch

from gflv2.data import shapes
from gflv2.engine.train import train
from tests.engine.test_train import TINY

APS = {1: 0.3, 2: 0.3, 3: 0.2, 4: 0.4, 5: 0.1}  # AP after each epoch

pytestmark = pytest.mark.usefixtures("one_thread")


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


def run(data, output, early_stopping, **options):
    settings = {"train.epochs": 5, "train.batch_size": 2, "train.early_stopping": early_stopping}
    if "resume" not in options:
        options |= {"config": TINY, "train_data": data.train, "val_data": data.val}
    return train(output=output, pretrained=False, accelerator="cpu", overrides=settings, **options)


def iteration(folder) -> int:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_a_run_stops_says_why_and_goes_on_with_more_patience(data, tmp_path, scores, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="gflv2"):
        result = run(data, tmp_path / "run", 1)
        assert "stopped early after epoch 2 of 5: no better AP than 0.300 in 1 evaluations" in caplog.text
        assert iteration(result.output) == 2 and result.best_epoch == 1
        before = (result.output / "checkpoints" / "last.ckpt").read_bytes()
        caplog.clear()
        run(data, None, 1, resume=result.output)
        assert "has stopped early: iteration 2, 2 of 5 epochs, 1 evaluations without a better AP" in caplog.text
        assert (result.output / "checkpoints" / "last.ckpt").read_bytes() == before
        # It counts on: epoch 3 is the second one without a gain, epoch 4 has the best AP of all.
        run(data, None, 3, resume=result.output, max_steps=4)
        assert iteration(result.output) == 4


def test_the_count_survives_a_stop(data, tmp_path, scores, caplog) -> None:
    part = run(data, tmp_path / "part", 2, max_steps=2, progress=False).output
    assert iteration(part) == 2
    with caplog.at_level(logging.INFO, logger="gflv2"):
        run(data, None, 2, resume=part)
    assert iteration(part) == 3 and "no better AP than 0.300 in 2 evaluations" in caplog.text


def test_without_validation_data_it_is_refused(data, tmp_path) -> None:
    settings = {"train.early_stopping": 2}
    with pytest.raises(ValueError, match="train.early_stopping: 2 evaluations need validation data"):
        train(TINY, train_data=data.train, output=tmp_path / "run", overrides=settings, accelerator="cpu")
    assert not (tmp_path / "run").exists()
