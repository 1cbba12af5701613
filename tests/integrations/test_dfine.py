"""D-FINE and DEIM: ours in the place of classes and a function with their documented interface."""

from __future__ import annotations

import copy
import importlib.util
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from gflv2.integrations import dfine
from tests.integrations.dfine_criterion import criterion_module
from tests.integrations.stand_ins import dfine_module


@pytest.fixture
def module():
    torch.manual_seed(0)
    yield dfine_module()
    dfine.restore()


def results(call, *leaves: Tensor) -> tuple[Tensor, ...]:
    found = call()
    total = (found * torch.linspace(1, 2, found.numel()).view(found.shape)).sum()
    return found.detach(), *torch.autograd.grad(total, leaves)


@pytest.mark.parametrize(
    "k, layers, act, ours",
    [(4, 2, nn.ReLU(), "dgqp"), (1, 2, nn.ReLU(), "dgqp"), (4, 3, nn.ReLU(), "dgqp_statistics")]
    + [(4, 2, nn.SiLU(), "dgqp_statistics")],
)
def test_location_quality(module, k, layers, act, ours, monkeypatch):
    lqe = module.LQE(k, 16, layers, 32, act)
    scores, corners = torch.randn(2, 5, 7, requires_grad=True), torch.randn(2, 5, 132, requires_grad=True)
    leaves = (scores, corners, *lqe.parameters())
    wanted = results(lambda: lqe(scores, corners), *leaves)
    calls = []
    operation = getattr(dfine, ours)
    monkeypatch.setattr(dfine, ours, lambda *args, **kwargs: calls.append(ours) or operation(*args, **kwargs))
    dfine.accelerate(module)
    torch.testing.assert_close(results(lambda: lqe(scores, corners), *leaves), wanted, rtol=1e-4, atol=1e-5)
    assert calls == [ours]


def test_integral(module):
    """Rows of 33 bins whose values are not uniform; the values may need a gradient."""
    integral, up, reg_scale = module.Integral(32), torch.tensor([0.5]), torch.tensor([4.0])
    values = module.weighting_function(32, up, reg_scale).requires_grad_()
    assert values.shape == (33,) and values[[0, 16, 32]].tolist() == [-4, 0, 4] and values.diff().min() > 0
    corners = torch.randn(2, 5, 132, requires_grad=True)
    wanted = results(lambda: integral(corners, values), corners, values)
    dfine.accelerate(module)
    torch.testing.assert_close(results(lambda: integral(corners, values), corners, values), wanted)
    assert integral(corners.bfloat16(), values.bfloat16()).dtype == torch.bfloat16


def test_the_values_of_the_bins_are_computed_once(module):
    up, reg_scale = nn.Parameter(torch.tensor([0.5]), requires_grad=False), torch.tensor([4.0])
    wanted = module.weighting_function(32, up, reg_scale)
    dfine.accelerate(module)
    module.count = 0
    with torch.inference_mode():
        first = module.weighting_function(32, up, reg_scale)
    assert not first.is_inference() and torch.equal(first, wanted)
    assert module.weighting_function(32, up, reg_scale) is first and module.count == 1
    for change in (lambda: up.fill_(0.75), lambda: reg_scale.mul_(2), lambda: setattr(up, "data", torch.tensor([0.6]))):
        before = module.weighting_function(32, up, reg_scale)
        change()
        after = module.weighting_function(32, up, reg_scale)
        assert after is not before and after[-1] == 2 * up * reg_scale
    assert module.count == 4
    assert len(module.weighting_function(16, up, reg_scale)) == 17
    module.weighting_function(32, copy.deepcopy(up), reg_scale)  # another model's own
    assert module.count == 6
    # Nothing is kept of what needs a gradient, nor for a call that says more.
    up.requires_grad_()
    assert module.weighting_function(32, up, reg_scale).requires_grad and module.count == 7
    up.requires_grad_(False)
    for _ in range(2):
        module.weighting_function(32, up, reg_scale, deploy=True)
    assert module.count == 9


def test_what_is_replaced_comes_back(module):
    losses = ModuleType("dfine_utils")  # holds the function alone
    losses.weighting_function = module.weighting_function
    before = (module.Integral.forward, module.LQE.forward, module.weighting_function)
    for _ in range(2):
        dfine.accelerate(module, losses)
    assert losses.weighting_function is not before[2] and module.LQE.forward is not before[1]
    dfine.restore()
    assert (module.Integral.forward, module.LQE.forward, module.weighting_function) == before
    assert losses.weighting_function is before[2]


def test_what_was_replaced(module):
    before = module.LQE.forward, module.weighting_function
    first, second = dfine.accelerate(module), dfine.accelerate(module)
    names = [one.what.rpartition("dfine_module.<locals>.")[2] for one in first.replaced]
    assert names == ["Integral.forward", "LQE.forward", "dfine_decoder.weighting_function"]
    assert second.before == first.replaced and not second.replaced and not first.before
    assert str(first).startswith("D-FINE: gflv2 replaced\n") and "HungarianMatcher" in str(first)
    assert str(second).startswith("D-FINE: nothing is left to replace")
    assert (module.LQE.forward.__module__, module.LQE.forward.__qualname__) == (dfine.__name__, "_lqe")
    assert (module.LQE.forward.__wrapped__, module.weighting_function.__wrapped__) == before
    dfine.restore()
    assert dfine.accelerate(module).replaced == first.replaced


def test_a_second_module_adds_to_the_first(module):
    criterion = criterion_module()
    first = dfine.accelerate(module)
    ours = module.LQE.forward, module.weighting_function
    second = dfine.accelerate(criterion)
    assert second.before == first.replaced
    assert "loss_local" in [one.what.rpartition(".")[2] for one in second.replaced]
    assert (module.LQE.forward, module.weighting_function) == ours
    what = [{one.what.partition(" ")[0] for one in report.stayed} for report in (first, second)]
    assert "LQE" in what[0] & what[1] and what[0] - what[1] == {"the"}  # the criterion
    with pytest.raises(ValueError, match="modules: expected"):
        dfine.accelerate(dfine_module(), ModuleType("empty"))
    assert (module.LQE.forward, module.weighting_function) == ours
    assert dfine.accelerate(module).before == (*first.replaced, *second.replaced)
    dfine.restore()
    stayed = [one.what for one in dfine.accelerate(criterion).stayed]
    assert not any("LQE" in what for what in stayed)


def test_errors(module):
    with pytest.raises(TypeError, match="modules: expected Python modules"):
        dfine.accelerate(module.LQE)
    with pytest.raises(ValueError, match="modules: expected modules with an Integral, an LQE"):
        dfine.accelerate(ModuleType("empty"))
    module.LQE.forward = lambda self, logits, corners: logits
    before = module.Integral.forward
    with pytest.raises(RuntimeError, match=r"LQE.forward\(scores, pred_corners\), found \(logits, corners\)"):
        dfine.accelerate(module)
    assert module.Integral.forward is before
    if importlib.util.find_spec("transformers") is None:
        with pytest.raises(ModuleNotFoundError, match="pip install transformers; or give it the decoder's module"):
            dfine.accelerate()
