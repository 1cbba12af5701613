"""The box losses of transformers' D-FINE, with and without ours: one step, ten steps, and half precision.

"Equal" means within the package's own noise: what it gives for images that differ by 1e-7.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.loss import loss_d_fine
from transformers.loss.loss_deimv2 import Deimv2Loss

from gflv2.integrations import dfine, dfine_losses
from tests.integrations.dfine.test_dfine import build, inputs

NOISE = 1e-7


@pytest.fixture(autouse=True)
def as_before():
    torch.manual_seed(0)
    yield
    dfine.restore()


def losses_and_gradients(model: torch.nn.Module, noise: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of a training step."""
    given = inputs()
    images = given["pixel_values"]
    given["pixel_values"] = images * (1 + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(3)))
    model.train().zero_grad()
    torch.manual_seed(2)  # of the denoising queries
    result = model(**given)
    result.loss.backward()
    return (
        {"loss": result.loss.detach(), **{name: value.detach() for name, value in result.loss_dict.items()}},
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, in parts of the largest value of its tensor."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)) for name, value in wanted.items()
    )


def test_one_step(monkeypatch):
    calls = []
    for name in ("ddf", "dfl", "giou", "iou"):
        operation = getattr(dfine_losses, name)
        monkeypatch.setattr(
            dfine_losses, name, lambda *args, _of=operation, _name=name, **kw: calls.append(_name) or _of(*args, **kw)
        )
    model = build()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def run(noise: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.load_state_dict(state)
        return losses_and_gradients(model, noise)

    stock, noisy = run(), run(NOISE)
    assert not calls
    dfine.accelerate()
    ours = run()
    assert set(calls) == {"ddf", "dfl", "giou", "iou"}
    assert any("loss_fgl_dn" in name for name in stock[0]) and any("loss_ddf_aux" in name for name in stock[0])
    for place, floor in ((0, 1e-6), (1, 1e-5)):
        assert furthest(ours[place], stock[place]) <= 3 * furthest(noisy[place], stock[place]) + floor


def test_ten_steps():
    model = build()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def run(noise: float = 0.0) -> Tensor:
        model.load_state_dict(state)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        found = []
        for _ in range(10):
            found.append(losses_and_gradients(model, noise)[0]["loss"])
            optimiser.step()
        return torch.stack(found)

    stock, noisy = run(), run(NOISE)
    dfine.accelerate()
    ours = run()
    assert stock[-1] < stock[0]
    assert float((ours - stock).abs().max()) <= 3 * float((noisy - stock).abs().max()) + 1e-5 * float(stock.max())


def criterion_inputs(dtype: torch.dtype) -> tuple:
    """Of `loss_local`: 40 matched queries of 600."""
    draw = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 300, 4, generator=draw) * 0.4 + 0.3
    corners, teacher = ((3 * torch.randn(2, 300, 132, generator=draw)).to(dtype) for _ in range(2))
    outputs = {"pred_boxes": boxes, "ref_points": boxes.flip(1), "pred_corners": corners, "teacher_corners": teacher}
    outputs["teacher_logits"] = torch.randn(2, 300, 3, generator=draw).to(dtype)
    targets = [{"boxes": torch.rand(20, 4, generator=draw) * 0.4 + 0.3} for _ in range(2)]
    return outputs, targets, [(torch.randperm(300, generator=draw)[:20], torch.arange(20)) for _ in range(2)], 40.0


def test_half_precision():
    """Ours has the values of float32 arithmetic on the rounded logits; the package's has float16's own error on top."""
    criterion = loss_d_fine.DFineLoss(build().config)
    outputs, *rest = criterion_inputs(torch.float16)
    theirs = criterion.loss_local(outputs, *rest)
    wide = {name: value.double() if value.dtype == torch.float16 else value for name, value in outputs.items()}
    exact = criterion.loss_local(wide, *rest)
    dfine.accelerate()
    ours = criterion.loss_local(outputs, *rest)
    for name, value in exact.items():
        assert ours[name].dtype == torch.float32
        error, of_theirs = (abs(float(found[name]) / float(value) - 1) for found in (ours, theirs))
        assert error < 1e-5 and error < of_theirs


def test_deimv2_has_them_too():
    before = loss_d_fine.DFineLoss.loss_boxes
    own = vars(loss_d_fine.DFineLoss).get("loss_boxes")  # inherited, unless the benchmark has put it there
    report = dfine.accelerate()
    assert Deimv2Loss.loss_local is loss_d_fine.DFineLoss.loss_local
    assert Deimv2Loss.loss_local.__module__ == dfine_losses.__name__
    names = [one.what.rpartition(".")[2] for one in report.replaced]
    assert names.count("loss_local") == names.count("loss_boxes") == 1
    dfine.restore()
    assert loss_d_fine.DFineLoss.loss_boxes is before and vars(loss_d_fine.DFineLoss).get("loss_boxes") is own
