"""``torch.compile`` of a whole detector: one graph for training and one for inference, the same numbers as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.captured import batch, padded, tiny_model

# Three levels: what is traced grows with them, what is tested does not.
LEVELS = {"model__neck__levels": 3, "model__head__strides": [8, 16, 32]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_training() -> None:
    """Two sizes with other numbers of boxes, ragged and padded, none in one image: losses and all gradients."""
    model = tiny_model(**LEVELS).train()

    def loss(images: torch.Tensor, given: dict[str, Any], sizes: Any) -> torch.Tensor:
        return torch.stack(list(model.loss(images, **given, padded_sizes=sizes).values()))

    # The second without AOTAutograd: it is half of the time.
    for seed, width, backend in ((2, 96, "aot_eager"), (4, 64, "eager")):
        compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=False)
        images, boxes, labels = batch(seed)
        given = padded(boxes, labels) if backend == "eager" else {"boxes": boxes, "labels": labels}
        results = []
        for function in (compiled, loss):
            model.zero_grad()
            value = function(images[..., :width], given, [(64, width), (32, width)])
            value.sum().backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            results.append({"losses": value.detach(), **gradients})
        assert len(results[0]) > 20 and results[0].keys() == results[1].keys()
        for name, found in results[0].items():
            size = float(results[1][name].abs().max())
            torch.testing.assert_close(found, results[1][name], rtol=1e-5, atol=1e-6 * size, msg=name)


def test_inference() -> None:
    model = tiny_model(**LEVELS).eval()
    options = {"score_thr": 0.005, "return_distributions": True}

    @torch.no_grad()
    def decode(images: torch.Tensor, sizes: torch.Tensor) -> Any:
        return tuple(model.bbox_head.decode(model(images), sizes, **options)[:5])

    for width, backend in ((96, "aot_eager"), (64, "eager")):
        compiled = torch.compile(decode, fullgraph=True, backend=backend, dynamic=False)
        arguments = batch(0)[0][..., :width], torch.tensor([[60, 50], [64, width]])
        for found, wanted in zip(compiled(*arguments), decode(*arguments), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
