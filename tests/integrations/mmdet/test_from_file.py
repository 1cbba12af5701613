"""mmdet's own ways in, beside the stand-in: a configuration that derives from another, training, ``init_detector``."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from gflv2.integrations.mmdet import fused, restore
from tests.docs.blocks import of_test
from tests.integrations.mmdet.detectors import SIZE, config
from tests.integrations.mmdet.test_head import Pictures

PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": SIZE[::-1], "keep_ratio": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
]


def written(kind: str, folder: Path) -> Path:
    """A configuration file with a model and what ``inference_detector`` reads of it."""
    file = folder / f"{kind.lower()}.py"
    loader = {"dataset": {"type": "CocoDataset", "pipeline": PIPELINE}}
    file.write_text(f"model = {config(kind).to_dict()}\ntest_dataloader = {loader}\n")
    return file


def trained(model: dict, folder: Path) -> Path:
    """The file that mmengine's loop leaves after two steps."""
    loader = {"dataset": Pictures(), "batch_size": 2, "num_workers": 0, "collate_fn": pseudo_collate}
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        train_cfg={"by_epoch": False, "max_iters": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.001}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 2}},
        default_scope="mmdet",
        log_level="ERROR",
    )
    runner.train()
    return folder / "iter_2.pth"


@pytest.mark.parametrize("kind", ["ATSS", "GFLV2"])
def test_ones_own_checkpoint(kind, tmp_path, monkeypatch):
    """mmengine's files hold more than tensors: torch reads them once its own setting says that they are trusted."""
    file = written(kind, tmp_path)
    weights = trained(Config.fromfile(file).model, tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        init_detector(file, str(weights), palette="random", device="cpu")
    (line,) = [block for block in of_test(__file__) if block.language == "bash"]
    name, _, value = line.text.removeprefix("export ").strip().partition("=")
    monkeypatch.setenv(name, value)
    model = init_detector(file, str(weights), palette="random", device="cpu")
    found = inference_detector(model, np.zeros((*SIZE, 3), np.uint8)).pred_instances
    assert found.bboxes.shape == (len(found), 4)


def test_a_derived_configuration(tmp_path):
    """A list replaces that of the base; the line of the page appends to it."""
    base = tmp_path / "base.py"
    base.write_text(written("GFL", tmp_path).read_text() + "custom_imports = dict(imports=['math'])\n")
    (block,) = [block for block in of_test(__file__) if block.language == "python"]
    derived = tmp_path / "derived.py"
    derived.write_text(block.text.replace('"gfl_r50_fpn_1x_coco.py"', '"base.py"'))
    loaded = Config.fromfile(derived)
    assert loaded.custom_imports.imports == ["math", "gflv2.integrations.mmdet.accelerated"]
    derived.write_text("_base_ = 'base.py'\ncustom_imports = dict(imports=['gflv2.integrations.mmdet'])\n")
    assert Config.fromfile(derived).custom_imports.imports == ["gflv2.integrations.mmdet"]
    restore()
    assert type(MODELS.build(loaded.model).bbox_head) is fused.MmdetGFLHead
