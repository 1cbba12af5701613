"""``train --teacher``: what it learns, what it refuses, and that a run goes on with the teacher that it had."""

from __future__ import annotations

import logging

import pytest
import torch

from gflv2 import GFLV2, checkpoint
from gflv2.cli import main
from gflv2.config import load_config
from gflv2.data import CocoDetection, make_loader, shapes
from gflv2.engine.lightning_module import DetectorModule
from gflv2.engine.teacher import Teacher
from gflv2.engine.train import train
from tests.engine.test_train import TINY
from tests.faults.kill import differences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=5, val=2, size=64)


def weights(folder, seed: int = 1, **overrides):
    """A file of a random detector, whose distributions are far from uniform."""
    torch.manual_seed(seed)
    model = GFLV2(load_config(TINY, {"model.num_classes": 3, **overrides}))
    boxes = getattr(model.bbox_head, "gfl_reg", None)
    if boxes is not None:
        torch.nn.init.normal_(boxes.bias, std=3.0)
    path = folder / f"teacher{seed}.pt"
    checkpoint.save(model, path)
    return path


def run(data, output, **options):
    options.setdefault("overrides", {"train.epochs": 2, "train.batch_size": 2})
    if "resume" not in options:
        options |= {"config": TINY, "train_data": data.train, "val_data": data.val, "pretrained": False}
    return train(output=output, accelerator="cpu", **options)


def losses(data, teacher, parts: int = 1, **overrides):
    torch.manual_seed(0)
    settings = {"train.distill.teacher": str(teacher), "train.accumulate": parts, "model.num_classes": 5, **overrides}
    config = load_config(TINY, settings)
    model = GFLV2(config)
    module = DetectorModule(model, None, Teacher(config, model)).train()
    dataset = CocoDetection(data.train, config=config.data, train=True)
    found, _ = module._losses(next(iter(make_loader(dataset, 5, train=True, config=config.data, workers=0))))
    sum(found.values()).backward()
    grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return {name: float(value.detach()) for name, value in found.items()}, grads, module


def test_the_teacher_is_no_part_of_the_model(data, tmp_path) -> None:
    found, _, module = losses(data, weights(tmp_path))
    assert found["loss_ld"] > 0 and found["loss_ld_region"] > 0
    own = GFLV2(load_config(TINY, {"model.num_classes": 5}))
    assert {key.removeprefix("model.") for key in module.state_dict()} == set(own.state_dict())
    assert not module.teacher.model.training and not any(p.requires_grad for p in module.teacher.model.parameters())


def test_a_batch_in_parts_learns_the_same(data, tmp_path) -> None:
    (whole, one, _), (parts, other, _) = (losses(data, weights(tmp_path), number) for number in (1, 3))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert (one - other).norm() < 1e-5 * one.norm()


def test_a_teacher_sees_the_pixels_that_it_was_trained_on(data, tmp_path) -> None:
    path = weights(tmp_path, **{"data.mean": [100.0, 110.0, 120.0], "data.std": [50.0, 60.0, 70.0]})
    config = load_config(TINY, {"train.distill.teacher": str(path), "model.num_classes": 5})
    teacher = Teacher(config, GFLV2(config))
    pixels = 255 * torch.rand(2, 3, 64, 64)
    sizes = [(64, 64), (48, 56)]

    def normalised(data):
        images = (pixels - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
        for image, (height, width) in zip(images, sizes, strict=True):
            image[:, height:], image[:, :, width:] = 0, 0
        return images

    with torch.no_grad():
        expected = teacher.model(normalised(teacher.model.config.data)).box_logits
    found = teacher(normalised(config.data), sizes).box_logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_says_its_teacher_and_goes_on_with_it(data, tmp_path, caplog) -> None:
    teacher = weights(tmp_path)
    with caplog.at_level(logging.INFO, logger="gflv2"):
        whole = run(data, tmp_path / "whole", teacher=teacher)
    assert f"distilling from {teacher}" in caplog.text and " ld " in caplog.text and " ld_region " in caplog.text
    part = run(data, tmp_path / "part", teacher=teacher, max_steps=2)
    resumed = run(data, None, resume=part.output)
    assert not differences(whole.output, resumed.output)
    assert differences(whole.output, run(data, tmp_path / "plain").output)


def test_a_run_keeps_its_teacher(data, tmp_path) -> None:
    part = run(data, tmp_path / "run", teacher=weights(tmp_path), max_steps=2)
    weights(tmp_path)  # the same again: the same weights
    with pytest.raises(ValueError, match="train.distill.teacher: the run has learnt from weights .*, it would go on"):
        run(data, None, resume=part.output, teacher=weights(tmp_path, 2))
    run(data, None, resume=part.output, max_steps=3)


def test_a_run_finds_its_teacher_from_another_folder(data, tmp_path, monkeypatch) -> None:
    """Whichever way it was named; and one that is missing leaves no folder behind."""
    path = weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = {"train.epochs": 2, "train.batch_size": 2, "train.distill.teacher": path.name}
    part = run(data, tmp_path / "run", overrides=settings, max_steps=1)
    monkeypatch.chdir(data.train.parent)
    run(data, None, resume=part.output, max_steps=2)
    with pytest.raises(FileNotFoundError, match=path.name):
        run(data, tmp_path / "other", overrides=settings)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.head.reg_max": 9},
            r"teacher: expected a teacher with the student's head.reg_max = \d+, got 9",
        ),
        ({"model.head.kind": "atss"}, "expected a teacher whose boxes are distributions .* got '?ATSSHead"),
    ],
)
def test_another_kind_of_teacher_is_refused(data, tmp_path, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "run", teacher=weights(tmp_path, **overrides))


def test_the_command_line(data, tmp_path, capsys) -> None:
    command = ["train", "gflv2_lite0", "--train", str(data.train), "--no-pretrained", "--teacher", "nowhere.pt"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "nowhere.pt" in capsys.readouterr().err
