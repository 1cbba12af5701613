"""The lines of docs/integrations.md for mmdet: they run, and do what the page says."""

from __future__ import annotations

import importlib

from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from gflv2.integrations.mmdet import GFLV2Head
from tests.docs.blocks import of_test, run
from tests.integrations.mmdet.detectors import TEST, TRAIN, build, step


def test_the_blocks_of_the_page():
    stand_in, accelerated, in_python, head = of_test(__file__)

    names: dict = {}
    run(stand_in, names)
    listed = stand_in.text.partition("# ")[2].strip().split(", ")
    assert set(listed) == {*names["standin"](), "batched_nms"}  # which mmcv makes of nms

    names = {}
    run(accelerated, names)
    (module,) = names["custom_imports"]["imports"]
    importlib.import_module(module)

    names = {"model": build("GFL")}
    run(in_python, names)
    step(names["model"])

    names = {}
    run(head, names)
    (module,) = names["custom_imports"]["imports"]
    importlib.import_module(module)
    settings = ConfigDict(names["model"]["bbox_head"], train_cfg=TRAIN, test_cfg=TEST)
    assert isinstance(MODELS.build(settings), GFLV2Head)
