"""D-FINE and DEIMv2 of transformers, with and without ours: random weights, small models, nothing is downloaded."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from transformers import DFineConfig, DFineForObjectDetection
from transformers.models.d_fine import modeling_d_fine
from transformers.models.deimv2 import modeling_deimv2
from transformers.utils import is_kernels_available

from gflv2.integrations import dfine

BACKBONE = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 16, 16],
    "hidden_sizes": [16, 16, 16, 16],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
SMALL = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "head_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "decoder_layers": 3,
    "num_queries": 20,
    "num_denoising": 8,
    "num_labels": 3,
}


@pytest.fixture(autouse=True)
def as_before():
    torch.manual_seed(0)
    yield
    dfine.restore()


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """How often our operations were called."""
    counts: dict[str, int] = {}

    def counted(name: str, function):
        def call(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        return call

    for name in ("expected_distances", "dgqp", "dgqp_statistics"):
        monkeypatch.setattr(dfine, name, counted(name, getattr(dfine, name)))
    return counts


def build(**changes) -> DFineForObjectDetection:
    """A model in which nothing is zero or tied, as in a trained one.

    As the package starts it, all bins of a side are equal: which of them have the gradient of the largest is open
    there, and here the lowest have it.
    """
    model = DFineForObjectDetection(DFineConfig(backbone_config=BACKBONE, **{**SMALL, **changes}))
    for name, parameter in model.named_parameters():
        if "reg_conf" in name or ("bbox_embed" in name and "layers.2" in name):
            torch.nn.init.normal_(parameter, std=0.5)
        elif parameter.dim() == 4:  # else batch normalisation has next to nothing to divide by
            torch.nn.init.kaiming_normal_(parameter)
    return model


def inputs() -> dict:
    boxes = [torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.3, 0.2, 0.2]]), torch.tensor([[0.6, 0.4, 0.5, 0.3]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    targets = [{"class_labels": names, "boxes": sides} for names, sides in zip(labels, boxes, strict=True)]
    return {"pixel_values": torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)), "labels": targets}


def step(model: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses and all gradients of a training step."""
    model.train().zero_grad()
    torch.manual_seed(2)  # of the denoising queries
    result = model(**inputs())
    result.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": result.loss.detach(), **{k: v.detach() for k, v in result.loss_dict.items()}}, gradients


def detect(model: torch.nn.Module, **options) -> tuple[Tensor, Tensor]:
    model.eval()
    with torch.no_grad():
        result = model(inputs()["pixel_values"], **options)
    return result.logits, result.pred_boxes


@pytest.mark.parametrize(
    "changes, predictor", [({}, "dgqp"), ({"lqe_layers": 3}, "dgqp_statistics"), ({"top_prob_values": 2}, "dgqp")]
)
def test_training_and_detections(changes, predictor, calls):
    model = build(**changes)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    losses, gradients = step(model)
    model.load_state_dict(state)
    logits, boxes = detect(model)
    assert not calls

    dfine.accelerate()
    model.load_state_dict(state)
    our_losses, our_gradients = step(model)
    assert calls == {"expected_distances": 3, predictor: 3}
    model.load_state_dict(state)
    our_logits, our_boxes = detect(model)
    assert calls == {"expected_distances": 6, predictor: 4}  # at inference the last layer alone has scores

    assert losses.keys() == our_losses.keys() and gradients.keys() == our_gradients.keys()
    for name, value in losses.items():
        torch.testing.assert_close(our_losses[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in gradients.items():
        torch.testing.assert_close(our_gradients[name], value, rtol=1e-3, atol=1e-5 * float(1 + value.abs().max()))
    torch.testing.assert_close(our_logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_boxes, boxes, rtol=1e-5, atol=1e-6)

    dfine.restore()
    assert all(torch.equal(*pair) for pair in zip(detect(model), (logits, boxes), strict=True))


def test_restore_leaves_no_trace():
    classes = [
        getattr(module, prefix + name)
        for module, prefix in ((modeling_d_fine, "DFine"), (modeling_deimv2, "Deimv2"))
        for name in ("Integral", "LQE")
    ]

    def places():
        functions = [modeling_d_fine.weighting_function, modeling_deimv2.weighting_function]
        return [*functions, *(vars(owner)["forward"] for owner in classes)]

    before = places()
    for _ in range(2):  # twice is once
        dfine.accelerate()
        assert all(ours is not theirs for ours, theirs in zip(places(), before, strict=True))
    dfine.restore()
    assert places() == before


def test_deimv2_modules():
    """Its model wants a backbone that is not needed to see its integral and its quality estimator."""
    config = type("Config", (), {"max_num_bins": 32, "top_prob_values": 4, "lqe_hidden_dim": 16, "lqe_layers": 2})()
    integral, lqe = modeling_deimv2.Deimv2Integral(config), modeling_deimv2.Deimv2LQE(config)
    corners, scores, values = torch.randn(2, 5, 4 * 33), torch.randn(2, 5, 7), torch.randn(33)
    wanted = integral(corners, values), lqe(scores, corners)
    dfine.accelerate()
    torch.testing.assert_close((integral(corners, values), lqe(scores, corners)), wanted)


def test_the_values_of_the_bins_are_computed_once():
    model = build()
    decoder = model.model.decoder
    before = modeling_d_fine.weighting_function(32, decoder.up, decoder.reg_scale)
    function, computed = modeling_d_fine.weighting_function, []

    def counting(*args):
        computed.append(args)
        return function(*args)

    modeling_d_fine.weighting_function = counting
    try:
        dfine.accelerate()
        with torch.inference_mode():
            model.eval()(inputs()["pixel_values"])
        step(model)  # what inference has kept can be saved for a backward pass
        detect(model)
        assert len(computed) == 1
        assert torch.equal(modeling_d_fine.weighting_function(32, decoder.up, decoder.reg_scale), before)
        other = {**model.state_dict(), "model.decoder.up": torch.tensor([0.75])}
        model.load_state_dict(other)
        detect(model)
        assert len(computed) == 2
    finally:
        dfine.restore()
        modeling_d_fine.weighting_function = function


def test_conventions():
    """33 values, not uniform: ±2·up·reg_scale at the ends, 0 in the middle. Quality is added to the class logits."""
    model = build()
    decoder = model.model.decoder
    values = modeling_d_fine.weighting_function(32, decoder.up, decoder.reg_scale)
    assert values.shape == (33,) and values[0] == -values[-1] == -4 and values[16] == 0
    assert values.diff().min() > 0 and values.diff().max() > 10 * values.diff().min()
    dfine.accelerate()
    bins = torch.tensor([0, 10, 16, 32])  # left, top, right, bottom
    corners = torch.full((1, 1, 4, 33), -1e4)
    corners[0, 0, torch.arange(4), bins] = 0
    torch.testing.assert_close(decoder.integral(corners.flatten(2), values)[0, 0], values[bins])
    lqe, scores = decoder.lqe_layers[0], torch.randn(1, 1, 3)
    quality = lqe.reg_conf(torch.tensor([1.0, 0, 0, 0, 0.25]).repeat(4))
    torch.testing.assert_close(lqe(scores, corners.flatten(2)), scores + quality)


def test_dtypes():
    model = build()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model.eval()(inputs()["pixel_values"])
        dfine.accelerate()
        found = model(inputs()["pixel_values"])
    for name in ("logits", "pred_boxes"):
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
    model.to(torch.bfloat16)
    corners, values = torch.randn(1, 4, 132, dtype=torch.bfloat16), torch.linspace(-4, 4, 33, dtype=torch.bfloat16)
    assert model.model.decoder.integral(corners, values).dtype == torch.bfloat16
    scores = torch.randn(1, 4, 3, dtype=torch.bfloat16)
    assert model.model.decoder.lqe_layers[0](scores, corners).dtype == torch.bfloat16


def test_compile_and_export():
    model = build()
    decoder = model.model.decoder.eval()
    corners, scores = torch.randn(2, 5, 132), torch.randn(2, 5, 3)

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.integral, self.lqe = decoder.integral, decoder.lqe_layers[0]
            self.up, self.reg_scale = decoder.up, decoder.reg_scale

        def forward(self, scores: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
            values = modeling_d_fine.weighting_function(32, self.up, self.reg_scale)
            return self.integral(corners, values), self.lqe(scores, corners)

    part = Part()
    wanted = part(scores, corners)
    dfine.accelerate()
    compiled = torch.compile(part, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, corners), wanted)
    # What leaves the process holds nothing of ours.
    exported = torch.export.export(part, (scores, corners))
    traced = torch.jit.trace(part, (scores, corners))
    assert "gflv2" not in str(exported.graph) and "gflv2::" not in str(traced.inlined_graph)  # that one names files too
    torch.testing.assert_close(exported.module()(scores, corners), wanted)
    torch.jit.save(traced, io.BytesIO())


def test_our_folder_of_kernels_is_not_taken_for_another_package():
    """These tests run in the checkout, whose folder ``kernels`` has the name of one that transformers can use."""
    assert not is_kernels_available()
