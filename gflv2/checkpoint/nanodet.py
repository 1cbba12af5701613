"""NanoDet-m's ONNX files (github.com/RangiLyu/nanodet, before NanoDet-Plus) as weights of ``gflv2_nanodet_m``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflv2.checkpoint.errors import CheckpointError, exported, shorten
from gflv2.config import load_config
from gflv2.extras import missing_package
from gflv2.models.detector import SingleStageDetector

CONFIG = "gflv2_nanodet_m"


def read_nanodet(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The ``state_dict`` of our detector, and its configuration, from the file of the network that NanoDet exported.

    The exporter folded the norms into the convolutions and gave most of them numbers for names. So they are told by
    their order, which is that in which they run, and every shape is compared. Two things differ: our detector has its
    input as RGB, and separate layers for classes and boxes.

    Raises:
        CheckpointError: not an ONNX file, or another network. ModuleNotFoundError: there is no package ``onnx``.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise missing_package(error, f"Reading {path}") from error
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise CheckpointError(f"weights: {path} is not a readable ONNX file ({error})") from error
    if any(entry.key == "gflv2_version" for entry in proto.metadata_props):
        raise exported(path)
    convolutions = _convolutions(proto.graph, path)
    config = load_config(CONFIG)
    head = config.model.head
    boxes, levels = 4 * (head.reg_max + 1), len(head.strides)
    outputs = [len(bias) for weight, bias in convolutions if weight.shape[1:] == (head.channels, 1, 1)]
    config.model.num_classes = max(outputs[-1] - boxes, 1) if outputs else 1
    with torch.device("meta"):
        wanted = SingleStageDetector(config).state_dict()
    names = [key.removesuffix(".weight") for key in wanted if key.endswith(".weight")]
    names = [name for name in names if ".gfl_" not in name]
    if len(convolutions) != len(names) + levels:
        raise _other(path, f"{len(convolutions)} convolutions, expected {len(names) + levels}")
    depth = (len(names) - _count(names, "backbone.", "neck.")) // levels
    places = names[: len(names) - levels * depth]
    for level in range(levels):
        start = len(names) + (level - levels) * depth
        places += [*names[start : start + depth], f"bbox_head.gfl_cls.{level}"]
    state: dict[str, Tensor] = {}
    for place, (weight, bias) in zip(places, convolutions, strict=True):
        state |= {f"{place}.weight": weight, f"{place}.bias": bias}
    state["backbone.conv1.weight"] = state["backbone.conv1.weight"].flip(1).contiguous()  # BGR → RGB
    for level in range(levels):
        for leaf in ("weight", "bias"):
            both = state[f"bbox_head.gfl_cls.{level}.{leaf}"]
            classes = max(len(both) - boxes, 0)
            state[f"bbox_head.gfl_cls.{level}.{leaf}"] = both[:classes].clone()
            state[f"bbox_head.gfl_reg.{level}.{leaf}"] = both[classes:].clone()
    wrong = [key for key, value in state.items() if value.shape != wanted[key].shape]
    if wrong:
        shown = (f"{key} {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}" for key in wrong)
        raise _other(path, f"{len(wrong)} tensors of another shape: {shorten(shown, 3)}")
    state["bbox_head.integral.project"] = torch.arange(head.reg_max + 1.0)
    return state, config.to_dict()


def _convolutions(graph: Any, path: Path) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every convolution, in the order of the graph."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        parts = [tensors.get(name) for name in node.input[1:]]
        if len(parts) != 2 or None in parts:
            raise _other(path, "a convolution without weights and bias in the file")
        if any(part.external_data for part in parts):
            raise _other(path, "tensors that lie in another file")
        try:
            weight, bias = (torch.from_numpy(numpy_helper.to_array(part).copy()) for part in parts)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"weights: {path} has a damaged tensor ({error})") from error
        found.append((weight, bias))
    if not found:
        raise _other(path, "no convolution")
    return found


def _count(names: list[str], *prefixes: str) -> int:
    return sum(name.startswith(prefixes) for name in names)


def _other(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"weights: {path} is an ONNX file, of which only NanoDet-m's can be read as weights; it has {what}"
    )
