"""One small detector and its file for all sizes, which most tests here read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gflv2 import GFLV2
from gflv2.data import shapes

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

# The first stages of a backbone with TensorFlow's "same" paddings: tracing more takes longer.
SMALL = {
    "model": {
        "backbone": {"name": "tf_efficientnet_lite0", "pretrained": None, "out_indices": [0, 1], "frozen_stages": 0},
        "neck": {"channels": 8, "levels": 2},
        "head": {"channels": 8, "stacked_convs": 1, "gn_groups": 4, "strides": [2, 4]},
    },
    "data": {"long_side": 160, "short_side": [96, 96], "test_short_side": 96, "workers": 0},
    "test": {"score_thr": 0.1, "pre_topk": 300},
}


def small_model(**head: Any) -> GFLV2:
    torch.manual_seed(0)
    config = {**SMALL, "model": {**SMALL["model"], "head": {**SMALL["model"]["head"], **head}}}
    model = GFLV2(config, class_names=list(shapes.CLASS_NAMES))
    # An untrained head answers the same everywhere; larger weights make its answers depend on the image.
    for parameter in (p for name, p in model.bbox_head.named_parameters() if name.endswith("weight") and p.dim() == 4):
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def model() -> GFLV2:
    return small_model()


@pytest.fixture(scope="session")
def weights(model: GFLV2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save(tmp_path_factory.mktemp("weights") / "model.pt")


@pytest.fixture(scope="session")
def traced(weights: Path) -> tuple[Path, Any]:
    """The ONNX file for any batch and size, with decoded boxes and scores, by the command line; and its trace."""
    from gflv2.cli import main
    from gflv2.engine.export import writing

    programs, trace = [], writing.trace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "trace", lambda *arguments: programs.append(trace(*arguments)) or programs[0])
        assert main(["export", str(weights), "--dynamic-batch", "--dynamic-size"]) == 0
    return weights.with_suffix(".onnx"), programs[0]


@pytest.fixture(scope="session")
def open_file(traced: tuple[Path, Any]) -> Path:
    return traced[0]


@pytest.fixture(scope="session")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=5, train=2, val=4, size=96)
