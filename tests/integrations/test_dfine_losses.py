"""The box losses of D-FINE's criterion: ours in the place of methods with the authors' interface."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gflv2.integrations import dfine, dfine_losses
from tests.integrations.dfine_criterion import bin_values, criterion_module, layers
from tests.integrations.stand_ins import dfine_module

# Image 0 has two boxes, image 1 one; queries of the layers are matched to them.
TARGETS = [
    {"boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.3, 0.2, 0.2]])},
    {"boxes": torch.tensor([[0.6, 0.4, 0.5, 0.3]])},
]
INDICES = [(torch.tensor([7, 3]), torch.tensor([0, 1])), (torch.tensor([5]), torch.tensor([0]))]
NOBODY = [(torch.tensor([], dtype=torch.int64),) * 2] * 2


@pytest.fixture
def criterion():
    torch.manual_seed(0)
    module = criterion_module()
    yield module.DFINECriterion(), lambda: dfine.accelerate(module)
    dfine.restore()


def losses(criterion, made: list[dict], dn: list[dict], indices: list = INDICES) -> tuple[dict[str, Tensor], list]:
    """All box losses of the layers, and the gradients of what the layers give."""
    criterion.start()
    found = {}
    for kind, parts in (("", made), ("_dn", dn)):
        for place, layer in enumerate(parts):
            one = criterion.loss_local(layer, TARGETS, indices, 3.0) | criterion.loss_boxes(
                layer, TARGETS, indices, 3.0
            )
            found |= {f"{name}{kind}_{place}": value for name, value in one.items()}
    leaves = [layer[name] for layer in (*made, *dn) for name in ("pred_boxes", "pred_corners")]
    return found, list(torch.autograd.grad(sum(found.values()), leaves, allow_unused=True))


@pytest.mark.parametrize("indices", [INDICES, NOBODY], ids=["some", "nobody"])
def test_losses_and_gradients(criterion, indices):
    module, accelerate = criterion
    made, dn = layers(), layers(30, is_dn=True)
    wanted, wanted_gradients = losses(module, made, dn, indices)
    accelerate()
    found, gradients = losses(module, made, dn, indices)
    assert list(found) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=2e-6, atol=1e-6, msg=name)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        one, other = (torch.zeros(1) if grad is None else grad for grad in (one, other))
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-4, atol=2e-6)


def test_the_targets_are_formed_once(criterion, monkeypatch):
    module, accelerate = criterion
    accelerate()
    calls = []
    monkeypatch.setattr(dfine_losses, "bin_values", lambda *args: calls.append(1) or bin_values(*args))
    losses(module, layers(), layers(30, is_dn=True))
    assert len(calls) == 2


def test_the_denoising_layers_have_the_balance_of_the_others(criterion):
    """Without it the loss of the denoising layers would be another."""
    module, accelerate = criterion
    accelerate()
    made, dn = layers(), layers(30, is_dn=True)
    found, _ = losses(module, made, dn)
    module.start()
    alone = module.loss_local(dn[0], TARGETS, INDICES, 3.0)["loss_ddf"]
    assert abs(float(alone - found["loss_ddf_dn_0"])) > 1e-3


def test_weights_of_boxes(criterion):
    module, accelerate = criterion
    (layer, *_), weight = layers(), torch.rand(3)
    wanted = module.loss_boxes(layer, TARGETS, INDICES, 3.0, boxes_weight=weight)
    accelerate()
    torch.testing.assert_close(module.loss_boxes(layer, TARGETS, INDICES, 3.0, boxes_weight=weight), wanted)


@pytest.mark.parametrize("boxes", [torch.tensor([3.0]), torch.tensor(3), 0])
def test_numbers_of_boxes(criterion, boxes):
    """A tensor of one element; and 0, by which the package divides."""
    module, accelerate = criterion
    (layer, *_) = layers()
    accelerate()
    number = float(boxes) if isinstance(boxes, torch.Tensor) else boxes
    module.start()
    exact = module.loss_boxes(layer, TARGETS, INDICES, 3.0) | module.loss_local(layer, TARGETS, INDICES, 3.0)
    module.start()
    found = module.loss_boxes(layer, TARGETS, INDICES, boxes) | module.loss_local(layer, TARGETS, INDICES, boxes)
    for name in ("loss_bbox", "loss_giou", "loss_fgl"):
        assert found[name].shape == ()
        assert found[name] == (exact[name] if number else torch.inf), name


def test_outputs_without_distributions(criterion):
    module, accelerate = criterion
    accelerate()
    assert module.loss_local({"pred_boxes": torch.zeros(2, 3, 4)}, TARGETS, INDICES, 3.0) == {}


def test_half_precision_is_float32_inside(criterion):
    """The same within the rounding of the logits, and float32; the authors' arithmetic is float16 there."""
    module, accelerate = criterion
    accelerate()
    exact, _ = losses(module, layers(), layers(30, is_dn=True))
    made, dn = layers(dtype=torch.float16), layers(30, dtype=torch.float16, is_dn=True)
    found, gradients = losses(module, made, dn)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert {grad.dtype for grad in gradients if grad is not None} == {torch.float32, torch.float16}
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-3, atol=1e-4, msg=name)


def test_boxes_without_an_area_are_no_nan(criterion):
    module, accelerate = criterion
    accelerate()
    (layer, *_), empty = layers(), [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(1, 4)}]
    with torch.no_grad():
        layer["pred_boxes"].zero_()
    found = module.loss_boxes(layer, empty, INDICES, 3.0) | module.loss_local(layer, empty, INDICES, 3.0)
    assert all(bool(value.isfinite()) for value in found.values())


def test_report_and_restore(criterion):
    module, accelerate = criterion
    owner = type(module)
    before = dict(vars(owner))
    report = accelerate()
    assert [one.what.rpartition(".")[2] for one in report.replaced] == ["loss_local", "loss_boxes"]
    stayed = " ".join(one.what for one in report.stayed)
    assert "fine-grained" not in stayed and "the criterion" not in stayed and "HungarianMatcher" in stayed
    dfine.restore()
    assert dict(vars(owner)) == before
    # Without its module the report says that the criterion stayed.
    assert "the criterion" in [one.what for one in dfine.accelerate(dfine_module()).stayed]
