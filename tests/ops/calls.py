"""One small call of every operation, by the names of its arguments: for what must hold of all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gflv2 import ops
from gflv2.ops import backends
from gflv2.ops.reference.boxes import distances_to_boxes, points_of_levels, strides_of_points
from tests.ops.random_head import SHAPES, STRIDES, RandomHead

Arguments = dict[str, Any]
# The arguments that get a gradient.
DIFFERENTIABLE = {
    "integral": ("box_logits", "projection", "scales"),
    "dgqp": ("box_logits", "scales", "weight1", "bias1", "weight2", "bias2"),
    "dgqp_statistics": ("box_logits", "scales"),
    "qfl": ("logits",),
    "focal": ("logits",),
    "dfl": ("logits",),
    "distribution_kl": ("logits",),
    "fgl": ("logits",),
    "ddf": ("logits",),
    "giou": ("pred", "target"),
    "iou": ("pred", "target"),
    "ciou": ("pred", "target"),
    "gfl_loss": ("class_logits", "box_logits", "scales", "predictor"),
}


def _head() -> Arguments:
    head = RandomHead()
    return {
        "class_logits": head.class_logits,
        "box_logits": head.box_logits,
        "strides": STRIDES,
        "scales": head.scales,
        "projection": head.projection,
        "predictor": head.predictor,
    }


def _integral() -> Arguments:
    head = _head()
    return {name: head[name] for name in ("box_logits", "projection", "scales", "strides")}


def _statistics() -> Arguments:
    head = _head()
    return {"box_logits": head["box_logits"], "scales": head["scales"], "topk": head["predictor"].topk}


def _dgqp() -> Arguments:
    return _statistics() | dict(zip(("weight1", "bias1", "weight2", "bias2"), RandomHead().layers, strict=True))


def _atss() -> Arguments:
    head = RandomHead()
    return {
        "boxes": head.boxes,
        "labels": head.labels,
        "level_shapes": SHAPES,
        "strides": STRIDES,
        "anchor_scale": 3.0,
    }


def _dynamic_soft_label() -> Arguments:
    head, draw = RandomHead(), torch.Generator().manual_seed(0)
    points = points_of_levels(SHAPES, STRIDES)
    strides = strides_of_points(SHAPES, STRIDES)
    distances = strides[:, None] * (0.5 + 2 * torch.rand(len(head.boxes), len(points), 4, generator=draw))
    return {
        "logits": torch.randn(len(head.boxes), len(points), head.classes, generator=draw),
        "boxes": distances_to_boxes(points, distances),
        "points": points,
        "strides": strides,
        "gt_boxes": head.boxes,
        "gt_labels": head.labels,
        "topk": 5,
    }


def _task_aligned() -> Arguments:
    head, draw = RandomHead(), torch.Generator().manual_seed(0)
    points = torch.cat([torch.rand(40, 2, generator=draw) * torch.tensor([48.0, 32.0]), torch.zeros(2, 2)])
    return {
        "scores": torch.rand(len(head.boxes), len(points), 3, generator=draw),
        "boxes": torch.cat([points - 9, points + 9], dim=1)
        + torch.rand(len(head.boxes), len(points), 4, generator=draw),
        "points": points,
        "gt_boxes": head.boxes,
        "gt_labels": head.labels,
    }


def _qfl() -> Arguments:
    draw = torch.Generator().manual_seed(0)
    labels, scores = torch.randint(0, 4, (7,), generator=draw), torch.rand(7, generator=draw)
    return {"target": (labels, scores), "logits": torch.randn(7, 3, generator=draw), "weight": torch.ones(7)}


def _focal() -> Arguments:
    draw = torch.Generator().manual_seed(0)
    labels, scores = torch.randint(0, 4, (7,), generator=draw), torch.rand(7, generator=draw)
    logits, weight = torch.randn(7, 3, generator=draw), torch.ones(7)
    return {"logits": logits, "target": (labels, scores), "weight": weight, "kind": "varifocal"}


def _dfl() -> Arguments:
    draw = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(7, 9, generator=draw),
        "target": 7.9 * torch.rand(7, generator=draw),
        "weight": torch.rand(7, generator=draw),
    }


def _distribution_kl() -> Arguments:
    draw = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(7, 9, generator=draw),
        "teacher_logits": torch.randn(7, 9, generator=draw),
        "temperature": 2.0,
        "weight": torch.rand(7, generator=draw),
    }


def _fgl() -> Arguments:
    bins = torch.tensor([-4.0, -2, -1, -0.5, 0, 0.5, 1, 2, 4])
    return _dfl() | {"target": 10 * torch.rand(7, generator=torch.Generator().manual_seed(1)) - 5, "bins": bins}


def _ddf() -> Arguments:
    return _distribution_kl() | {"matched": torch.arange(7) % 3 == 0}


def _boxes() -> Arguments:
    draw = torch.Generator().manual_seed(0)
    pair = []
    for _ in range(2):
        corner, size = 20 * torch.rand(7, 2, generator=draw), 1 + 30 * torch.rand(7, 2, generator=draw)
        pair.append(torch.cat([corner, corner + size], dim=1))
    return {"pred": pair[0], "target": pair[1]}


def _giou() -> Arguments:
    return _boxes() | {"weight": torch.rand(7, generator=torch.Generator().manual_seed(1))}


def _gfl_targets() -> Arguments:
    head = RandomHead()
    with torch.no_grad():
        return _head() | {"assignment": head.assign(), "boxes": head.boxes}


def _gfl_loss() -> Arguments:
    with torch.no_grad():
        targets = ops.gfl_targets(**_gfl_targets())
    return _head() | {"targets": targets, "normalisers": targets.sums}


def _decode() -> Arguments:
    return _head() | {"pre_topk": 5, "score_thr": 0.01, "image_sizes": torch.tensor([[30.0, 45.0], [32.0, 48.0]])}


_MAKERS: dict[str, Callable[[], Arguments]] = {
    "integral": _integral,
    "dgqp": _dgqp,
    "dgqp_statistics": _statistics,
    "atss": _atss,
    "dynamic_soft_label": _dynamic_soft_label,
    "task_aligned": _task_aligned,
    "qfl": _qfl,
    "focal": _focal,
    "dfl": _dfl,
    "distribution_kl": _distribution_kl,
    "fgl": _fgl,
    "ddf": _ddf,
    "giou": _giou,
    "iou": _boxes,
    "ciou": _giou,
    "gfl_targets": _gfl_targets,
    "gfl_loss": _gfl_loss,
    "decode": _decode,
}


def function(op: str) -> Callable[..., Any]:
    return getattr(ops, op)


def arguments(op: str, device: torch.device | str = "cpu") -> Arguments:
    """The arguments of the call; those that are differentiable are leaves that want a gradient."""
    made = _MAKERS[op]()
    for name, value in made.items():
        wanted = name in DIFFERENTIABLE.get(op, ())

        def leaf(tensor: Tensor, wanted: bool = wanted) -> Tensor:
            return tensor.detach().to(device).requires_grad_(wanted)

        made[name] = pytree.tree_map_only(Tensor, leaf, value)
    return made


def operations() -> list[str]:
    """Every operation that is registered: one without a call here is an error."""
    missing = set(backends.operations()) - set(_MAKERS)
    assert not missing, f"tests/ops/calls.py has no call of {sorted(missing)}"
    return backends.operations()


def tensors(value: Any) -> list[Tensor]:
    """All tensors of arguments or results, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def leaves(made: Arguments) -> list[Tensor]:
    return [tensor for tensor in tensors(made) if tensor.requires_grad]


def differentiable(result: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(result) if tensor.requires_grad]


def gradients(result: Any, made: Arguments, **options: Any) -> list[Tensor]:
    """Of a weighted sum of all results, for all leaves."""
    outputs = differentiable(result)
    upstream = [torch.linspace(-1, 1.5, out.numel(), device=out.device).reshape(out.shape).to(out) for out in outputs]
    return list(torch.autograd.grad(outputs, leaves(made), upstream, allow_unused=True, **options))


def variations(made: Arguments, change: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Arguments]]:
    """The same arguments with one tensor changed, for each tensor in turn, and the name of its argument."""
    for name, value in made.items():
        flat, structure = pytree.tree_flatten(value)
        for place, item in enumerate(flat):
            if isinstance(item, Tensor):
                yield (
                    name,
                    {**made, name: pytree.tree_unflatten([*flat[:place], change(item), *flat[place + 1 :]], structure)},
                )
