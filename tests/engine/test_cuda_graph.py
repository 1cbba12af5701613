"""The captured training step and inference, on a CPU: the same code and buffers, called instead of replayed.

What only the recording itself can show is in tests/gpu/test_capture.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gflv2.engine.cuda_graph.training import CapturedTrainingStep
from gflv2.models.atss_head import ATSSHead
from tests.engine.captured import MAX_BOXES, SHAPE, batch, learning, padded, plain_loop, tiny_model
from tests.engine.waits import recordable

LR = 2.0**-7  # the same number in float32, which the captured step keeps it in, as in Python

pytestmark = pytest.mark.usefixtures("one_thread")


def sgd(model: Any, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(learning(model), lr=LR, momentum=0.5, weight_decay=2.0**-10, **{"fused": True, **options})


def adamw(model: Any, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(learning(model), lr=LR / 4, **{"fused": True, "capturable": True, **options})


def halving(optimizer: torch.optim.Optimizer, every: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // every))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def captured_loop(
    step: CapturedTrainingStep, batches: list[Any], after: Callable[[], Any] = lambda: None
) -> list[dict[str, float]]:
    """Ragged and padded boxes by turns."""
    history = []
    for number, (images, boxes, labels) in enumerate(batches):
        losses = step(images, **padded(boxes, labels)) if number % 2 else step(images, boxes, labels)
        after()
        history.append({name: float(value) for name, value in losses.items()})
    return history


def test_fifty_steps_are_those_of_a_plain_loop() -> None:
    """Other boxes at each step, images without any, and a schedule; every bit, since no sum depends on the padding."""
    batches = [batch(seed) for seed in range(50)]
    plain = tiny_model().train()
    captured = copy.deepcopy(plain)
    optimizers = sgd(plain), sgd(captured)
    before = halving(optimizers[1], every=20)  # made before the capture, which makes the rate a tensor
    step = captured.capture_training_step(optimizers[1], SHAPE, max_boxes=MAX_BOXES)
    wanted = plain_loop(plain, optimizers[0], batches, after=halving(optimizers[0], every=20).step)
    assert captured_loop(step, batches, after=before.step) == wanted
    assert_equal(weights(captured), weights(plain))
    assert float(optimizers[1].param_groups[0]["lr"]) == LR / 4


@pytest.mark.parametrize("options", [{}, {"autocast": torch.bfloat16}, {"scaler": True, "clip_grad_norm": 0.5}])
def test_adamw_with_autocast_scaler_and_clipping(options: dict[str, Any]) -> None:
    batches = [batch(seed) for seed in range(4)]
    # The scaler finds that this step has no gradients, leaves it out and halves its scale.
    batches[2] = (batches[2][0] * float("inf"), *batches[2][1:]) if "scaler" in options else batches[2]
    plain = tiny_model().train()
    captured = copy.deepcopy(plain)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**8) if "scaler" in options else None for _ in range(2)]
    optimizers = adamw(plain), adamw(captured)
    step = captured.capture_training_step(
        optimizers[1], SHAPE, max_boxes=MAX_BOXES, **{**options, "scaler": scalers[1]}
    )
    after = halving(optimizers[1], every=2)  # made after the capture, from rates that are tensors
    wanted = plain_loop(
        plain,
        optimizers[0],
        batches,
        scaler=scalers[0],
        autocast=options.get("autocast"),
        clip=options.get("clip_grad_norm"),
        after=halving(optimizers[0], every=2).step,
    )
    found = captured_loop(step, batches, after=after.step)
    assert repr(found) == repr(wanted)  # as text: a NaN is equal to itself
    assert_equal(weights(captured), weights(plain))
    if "scaler" in options:
        assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**7


def test_the_warm_up_leaves_no_trace() -> None:
    model = tiny_model(model__backbone__norm_eval=False).train()
    optimizer, scaler = adamw(model), torch.amp.GradScaler("cpu", growth_interval=1)
    plain_loop(model, optimizer, [batch(1)], scaler=scaler)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    scale, random = scaler.state_dict(), torch.get_rng_state()
    model.capture_training_step(optimizer, SHAPE, max_boxes=MAX_BOXES, scaler=scaler)
    assert_equal(weights(model), before)
    for index, moments in optimizer.state_dict()["state"].items():
        assert_equal(moments, state[index])
    assert scaler.state_dict() == scale and torch.equal(torch.get_rng_state(), random)


def test_a_capture_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(model__backbone__norm_eval=False).train()
    optimizer = sgd(model)
    before, steps = weights(model), []

    def step(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        steps.append(0)
        if len(steps) == 2:
            raise torch.OutOfMemoryError("no memory left")

    plain = optimizer.step
    monkeypatch.setattr(optimizer, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        model.capture_training_step(optimizer, SHAPE, max_boxes=MAX_BOXES)
    assert_equal(weights(model), before)
    assert optimizer.param_groups[0]["lr"] == LR and isinstance(optimizer.param_groups[0]["lr"], float)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not moment.any() for state in optimizer.state.values() for moment in state.values())


@pytest.mark.parametrize(
    ("make", "options"),
    [(sgd, {}), (adamw, {"scaler": True, "clip_grad_norm": 1.0}), (sgd, {"autocast": torch.bfloat16})],
    ids=["SGD", "AdamW and scaler", "bf16"],
)
def test_a_step_can_be_recorded(make: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait, no copy from the host, and the same operators at the same addresses whatever the boxes are."""
    model = tiny_model().train()
    if "scaler" in options:
        options = {**options, "scaler": torch.amp.GradScaler("cpu")}
    step = model.capture_training_step(make(model), SHAPE, max_boxes=MAX_BOXES, **options)
    calls = []
    for images, boxes, labels in (batch(1), (batch(2)[0], [torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2)):
        step.copy_in(images, boxes, labels)
        with recordable(monkeypatch) as seen:
            losses = step.run()
        assert bool(torch.isfinite(torch.stack(list(losses.values()))).all())
        calls.append(seen.calls)
    assert len(calls[0]) > 300
    assert len(calls[0]) == len(calls[1])
    assert [(a, b) for a, b in zip(*calls, strict=True) if a != b] == []


def test_inference_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    detect = tiny_model().eval().capture_inference(SHAPE, score_thr=0.0, return_distributions=True)
    calls = []
    for seed in range(2):
        detect.copy_in(batch(seed)[0], [(60, 90 + seed), (64, 96)], torch.full((2, 2), 0.5 + seed))
        with recordable(monkeypatch) as seen:
            detect.run()
        calls.append(seen.calls)
    assert len(calls[0]) > 50 and calls[0] == calls[1]


def test_the_test_of_recording_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, an address and a branch that change between two runs are seen; so is a copy from the host."""
    fixed = torch.ones(3)

    def seen(function: Callable[[], Any]) -> list[Any]:
        with recordable(monkeypatch) as found:
            function()
        return found.calls

    kept = [torch.ones(3) for _ in range(2)]
    assert seen(lambda: (fixed * 2).sum()) == seen(lambda: (fixed * 2).sum())
    assert seen(lambda: fixed * 2) != seen(lambda: fixed * 3)
    assert seen(lambda: kept[0] + fixed) != seen(lambda: kept[1] + fixed)
    assert seen(lambda: fixed.sum()) != seen(lambda: fixed.sum().neg())
    for copied in (lambda: torch.tensor([1.0]), lambda: fixed.new_tensor([1.0]), lambda: fixed.sum().item()):
        with pytest.raises(AssertionError, match="step waits"):
            seen(copied)


@pytest.mark.parametrize("ignore_iof_thr", [0.0, 0.3])
def test_ignore_boxes(ignore_iof_thr: float) -> None:
    model = tiny_model(model__head__ignore_iof_thr=ignore_iof_thr).train()
    images, boxes, labels = batch(1)
    ignored = [torch.tensor([[0.0, 0.0, 90.0, 60.0]]), torch.zeros(0, 4)]
    step = model.capture_training_step(sgd(model), SHAPE, max_boxes=MAX_BOXES, max_ignore_boxes=2)
    for given in (ignored, None):
        wanted = model.loss(images, boxes, labels, ignore_boxes=given)
        found = step(images, boxes, labels, ignore_boxes=given)
        assert_equal(found, {name: value.detach() for name, value in wanted.items()})


@pytest.mark.parametrize("kind", ["gfl", "atss"])
def test_padded_boxes_through_the_loss(kind: str) -> None:
    """Of the detector's own method too, and of the other head."""
    model = tiny_model(model__head__kind=kind).train()
    assert isinstance(model.bbox_head, ATSSHead) == (kind == "atss")
    images, boxes, labels = batch(4)
    gradients = []
    for given in ({"boxes": boxes, "labels": labels}, padded(boxes, labels)):
        model.zero_grad()
        losses = model.loss(images, **given, padded_sizes=[(64, 64), (32, 96)])
        sum(losses.values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None} | losses)
    assert len(gradients[0]) > 20
    assert_equal(*gradients)


def test_inference_is_that_of_detect() -> None:
    model = tiny_model().eval()
    detect = model.capture_inference(SHAPE, score_thr=0.005, max_detections=20, return_distributions=True)
    sizes, factors = [(60, 90), (64, 70)], torch.tensor([[0.5, 0.5], [1.0, 2.0]])
    first = None
    for images, given in (
        (batch(0)[0], (sizes, factors)),
        (batch(1)[0], (torch.tensor(sizes), factors.tolist())),
        (batch(2)[0], ()),
    ):
        found = detect(images, *given)
        plain = given or ([SHAPE[2:]] * 2,)
        wanted = model.detect(images, *plain, score_thr=0.005, max_detections=20, return_distributions=True)
        assert all(len(image.boxes) > 2 for image in found)
        for a, b in zip(found, wanted, strict=True):
            assert_equal(a._asdict(), b._asdict())
        # A result belongs to its receiver: the next call leaves it alone.
        if first is None:
            first = found, copy.deepcopy(found)
    assert_equal(first[0][0]._asdict(), first[1][0]._asdict())


def test_inference_sees_new_weights_and_autocast() -> None:
    model, other = tiny_model().eval(), tiny_model(1)
    detect = model.capture_inference(SHAPE, autocast=torch.bfloat16)
    images = batch(0)[0]
    before = detect.decode(images).boxes.clone()
    model.load_state_dict(other.state_dict())
    after = detect.decode(images).boxes
    assert not torch.equal(before, after)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        wanted = model.bbox_head.decode(model(images), [SHAPE[2:]] * 2)
    assert torch.equal(after, wanted.boxes)


def test_inference_captured_inside_and_called_outside_of_inference_mode() -> None:
    model = tiny_model().eval()
    with torch.inference_mode():
        detect = model.capture_inference(SHAPE, score_thr=0.005)
    images = batch(0)[0].requires_grad_()
    found = detect(images)
    assert sum(len(image.boxes) for image in found) > 0
    assert not detect._images.requires_grad


def make_step(**options: Any) -> CapturedTrainingStep:
    model = tiny_model().train()
    optimizer = options.pop("optimizer", sgd)(model)
    shape = options.pop("shape", SHAPE)
    return model.capture_training_step(optimizer, shape, **{"max_boxes": MAX_BOXES, "warmup": 1, **options})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"graph": True}, ValueError, "graph: expected False or None for a model on cpu"),
        (
            {"shape": (2, 64, 96)},
            ValueError,
            r"shape: expected four positive integers \(B, 3, H, W\), got \(2, 64, 96\)",
        ),
        ({"shape": 64}, TypeError, "shape: expected four integers"),
        ({"padded_sizes": [(64, 96)]}, ValueError, r"padded_sizes: expected a list of 2 \(height, width\)"),
        ({"clip_grad_norm": "x"}, TypeError, "clip_grad_norm: expected a finite number > 0, got 'x'"),
        ({"max_boxes": 0}, ValueError, "max_boxes: expected at least 1, got 0"),
        ({"max_boxes": 1.5}, TypeError, "max_boxes: expected an integer"),
        ({"autocast": torch.float32}, ValueError, "autocast: expected None, torch.bfloat16 or torch.float16"),
        ({"scaler": "yes"}, TypeError, "scaler: expected a torch.amp.GradScaler"),
        ({"optimizer": lambda m: torch.optim.RMSprop(learning(m))}, TypeError, "optimizer: expected a torch.optim.SGD"),
        ({"optimizer": lambda m: sgd(m, fused=False)}, ValueError, r"param_groups\[0\]: expected SGD with fused=True"),
        ({"optimizer": lambda m: sgd(m, dampening=0.1)}, ValueError, r"param_groups\[0\]: expected dampening=0"),
        (
            {"optimizer": lambda m: torch.optim.AdamW(learning(m))},
            ValueError,
            "expected AdamW with capturable=True, which counts its steps on the device, got {.*'capturable': False",
        ),
        (
            {
                "optimizer": lambda m: torch.optim.Adam(learning(m), capturable=True),
                "scaler": torch.amp.GradScaler("cpu"),
            },
            ValueError,
            "expected Adam with fused=True, since there is a scaler",
        ),
    ],
)
def test_what_cannot_be_captured(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_step(**options)


def test_modes_processes_and_contexts_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"model: expected a model in eval mode: call model.eval\(\)"):
        model.train().capture_inference(SHAPE)
    with pytest.raises(ValueError, match="model: expected a model in training mode"):
        model.eval().capture_training_step(sgd(model), SHAPE, max_boxes=1)
    with torch.autocast("cpu"), pytest.raises(ValueError, match="autocast: expected no torch.autocast around"):
        make_step()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(RuntimeError, match="expected one process, got 4: gradients are not exchanged"):
        make_step()


def test_arguments_of_a_step_that_do_not_fit() -> None:
    step = make_step(max_boxes=2)
    images, box, label = torch.zeros(SHAPE), torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([1])
    good = {"images": images, "boxes": [box, box], "labels": [label, label]}
    three = {"boxes": box.expand(2, 3, 4), "labels": torch.zeros(2, 3).long()}
    wrong = [
        ({"images": images[:1]}, ValueError, r"images: expected a tensor of shape \(2, 3, 64, 96\), got .*\(1, 3, 64"),
        ({"images": images.half()}, TypeError, "images: expected a tensor of float32, got a float16"),
        ({"images": images.to("meta")}, ValueError, "images: expected a tensor on cpu.*on meta"),
        ({"boxes": [box]}, ValueError, "boxes: expected 2 tensors, one an image"),
        ({"boxes": 3}, TypeError, "boxes: expected a list of 2 tensors, or one padded tensor, got 3"),
        ({"boxes": [box.double(), box]}, TypeError, r"boxes\[0\]: expected a tensor of float32"),
        (
            {"boxes": [box, box.expand(3, 4)]},
            ValueError,
            r"boxes\[1\]: expected at most max_boxes = 2 boxes, got .*\(3, 4",
        ),
        ({"labels": [label, label[:0]]}, ValueError, r"labels\[1\]: expected 1 labels, one a box"),
        ({"labels": [label.float(), label]}, TypeError, r"labels\[0\]: expected a tensor of int64"),
        ({"counts": torch.tensor([1, 1])}, ValueError, "counts: expected None with boxes given as a list"),
        (three, ValueError, r"boxes: expected at most max_boxes = 2 boxes an image, got .*\(2, 3, 4\)"),
        ({"boxes": box.expand(2, 1, 4)}, TypeError, "labels: expected a tensor, got list"),
    ]
    before = [step._images.clone(), step._boxes.clone(), step._counts.clone()]
    for changed, error, text in wrong:
        with pytest.raises(error, match=text):
            step(**{**good, **changed})
    after = [step._images, step._boxes, step._counts]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a refused step changes nothing"
    # More boxes than there are: what the rest of the row holds from an earlier step does not come back.
    padded_boxes, padded_labels = box.expand(2, 1, 4), label.expand(2, 1)
    step.copy_in(images, padded_boxes, padded_labels, counts=torch.tensor([-1, 9]))
    assert step._counts.tolist() == [0, 1]


def test_what_was_replaced_after_the_capture() -> None:
    """A graph would go on with what it knows."""
    model = tiny_model().train()
    optimizer = sgd(model)
    step = model.capture_training_step(optimizer, SHAPE, max_boxes=MAX_BOXES, warmup=1)
    optimizer.param_groups[0]["lr"].fill_(0.0)
    before = weights(model)
    step(*batch(1))
    assert_equal(weights(model), before)
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['lr'\]: expected the tensor of the capture.*got 0.1"):
        step(*batch(1))
    detect = model.eval().capture_inference(SHAPE, warmup=1)
    model.load_state_dict({name: value.clone() for name, value in before.items()}, assign=True)
    with pytest.raises(ValueError, match="model: expected weights where they lay at the capture"):
        detect(batch(1)[0])


def test_arguments_of_inference_that_do_not_fit() -> None:
    detect = tiny_model().eval().capture_inference(SHAPE, warmup=1)
    images = torch.zeros(SHAPE)
    wrong = [
        ((images[:, :, :32],), ValueError, r"images: expected a tensor of shape \(2, 3, 64, 96\)"),
        ((images, [(64, 96)]), ValueError, r"image_sizes: expected 2 pairs of numbers, or a tensor of shape \(2, 2\)"),
        ((images, [3, 4]), ValueError, "image_sizes: expected 2 pairs of numbers"),
        ((images, None, torch.ones(2)), ValueError, r"scale_factors: expected a tensor of shape \(2, 2\)"),
        ((images, None, torch.ones(2, 2).half()), TypeError, "scale_factors: expected a tensor of float32"),
    ]
    for given, error, text in wrong:
        with pytest.raises(error, match=text):
            detect(*given)
