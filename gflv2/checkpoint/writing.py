"""Our own file format, and files in the layouts of other programs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.checkpoint.errors import CheckpointError
from gflv2.checkpoint.infer import backbone_name, class_layers, side, split_class_channels
from gflv2.checkpoint.integrity import check_values
from gflv2.checkpoint.loading import add_background, class_names, model_config
from gflv2.checkpoint.official_keys import from_official, to_official
from gflv2.checkpoint.reading import DESCRIPTION, FORMAT, VERSION, Checkpoint, read
from gflv2.checkpoint.zoo import NamedWeights, find_weights
from gflv2.files import write_whole
from gflv2.ops.checks import check_choice
from gflv2.version import __version__

LAYOUTS = ("official", "mmengine", "gflv2", "state_dict")


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What travels with the weights, as plain types: format, version, configuration (with mean and std), class names,
    category ids.

    A program that saves checkpoints of its own puts it under the key ``"gflv2"``, and ``read`` finds it there.
    """
    return _description(model.config.to_dict(), model.class_names, model.category_ids)


def _description(config: dict[str, Any], names: Any, category_ids: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "gflv2_version": __version__,
        "config": config,
        "class_names": None if names is None else list(names),
        "category_ids": None if category_ids is None else list(category_ids),
    }


def save(model: nn.Module, path: str | Path) -> Path:
    """Write a ``GFLV2``: weights, configuration (mean and std in it) and class names, in plain types and tensors only.

    ``path`` ends in ``.pth`` (any ending but the next) or ``.safetensors``. The file appears whole or not at all.

    Raises:
        CheckpointError: weights are NaN or infinite. OSError: with path and cause.
    """
    state = dict(model.state_dict())
    check_values(state, f"{path} is not written")
    return _write_own(state, describe_model(model), Path(path))


def _write_own(state: dict[str, Tensor], description: dict[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        return _write_safetensors(state, description, path)
    return _write({**description, "state_dict": _on_cpu(state)}, path)


def convert(
    source: str | Path | NamedWeights | nn.Module,
    path: str | Path,
    layout: str = "official",
    *,
    background: bool | None = None,
    config: Any = None,
    ema: bool = True,
) -> Path:
    """Write the weights of a file or of a model in another layout.

    * ``"official"``: mmcv's, which the authors' code loads: {"meta": {"CLASSES", …}, "state_dict"}, their key names, in
      the file format that torch versions before 1.6 read too.
    * ``"mmengine"``: the same keys, class names in ``meta["dataset_meta"]``.
    * ``"gflv2"``: this project's; ``GFLV2(path)`` needs nothing else.
    * ``"state_dict"``: the bare tensors, under this project's names.

    The authors' GFLV2 has one more class channel than classes. It is written with weight 0 and bias −1000: its score is
    exactly 0, so the scores of the real classes, the point selection, the NMS and the 100 detections are unchanged. A
    file that has the authors' trained channel already keeps it.

    Args:
        source: a file or a name that ``read`` can read, or a ``GFLV2``.
        path: the file to write. ``.safetensors`` for the layouts "gflv2" and "state_dict".
        layout: see above.
        background: write the extra class channel. None: as the layout's programs expect, that is with "official" and
            "mmengine" for GFLV2, without for GFLV1; in our layouts as loading the source would have it, that is
            without, but for our own file of a legacy model.
        config: the configuration, where ``source`` is a file whose keys do not tell it.
        ema: see ``read``.

    Raises:
        CheckpointError: the source has no detector, or one that the authors' code does not know.
    """
    check_choice(layout, "layout", LAYOUTS)
    path = Path(path)
    named = find_weights(source, config)
    if named is not None:
        source, config = named, named.name if config is None else config
    checkpoint = _as_checkpoint(source, ema)
    settings = model_config(checkpoint, config)
    if path.suffix == ".safetensors" and layout not in ("gflv2", "state_dict"):
        raise CheckpointError(f"layout: {layout!r} is a .pth file, got {path.name}")
    theirs = layout in ("official", "mmengine")
    if theirs:
        _check_official(settings, checkpoint)
    backbone = settings.model.backbone.name
    state = {from_official(key, backbone): value for key, value in checkpoint.state.items()}
    classes, has_background = split_class_channels(checkpoint)
    # What loading the source gives: only our own files of a legacy model keep the channel without being asked.
    legacy = has_background and checkpoint.config is not None and settings.model.head.legacy_background
    if background is None:
        background = checkpoint.has_quality if theirs else legacy
    settings.model.num_classes = classes
    settings.model.head.legacy_background = legacy if theirs else background
    _set_background(state, classes, has_background, background)
    names = class_names(checkpoint)
    description = _description(settings.to_dict(), names, checkpoint.category_ids)
    if layout == "gflv2":
        return _write_own(_complete(state), description, path)
    if layout == "state_dict":
        return _write_safetensors(state, None, path) if path.suffix == ".safetensors" else _write(_on_cpu(state), path)
    state = {to_official(key, backbone): value for key, value in _complete(state).items()}
    meta: dict[str, Any] = {"epoch": 0, "iter": 0, DESCRIPTION: description}
    if names is not None:
        meta |= {"CLASSES": tuple(names)} if layout == "official" else {"dataset_meta": {"classes": tuple(names)}}
    return _write({"meta": meta, "state_dict": _on_cpu(state)}, path, old_format=layout == "official")


def _as_checkpoint(source: str | Path | NamedWeights | nn.Module, ema: bool) -> Checkpoint:
    if isinstance(source, nn.Module):
        description = describe_model(source)
        state = {key: value.detach() for key, value in source.state_dict().items()}
        names, ids = description["class_names"], description["category_ids"]
        return Checkpoint("<model>", "gflv2", state, names, description["config"], category_ids=ids)
    return read(source, ema=ema)


def _check_official(settings: Any, checkpoint: Checkpoint) -> None:
    """The authors' code knows ResNet, ResNeXt and Res2Net, plain convolutions, and quality from statistics or none."""
    head, neck, reason = settings.model.head, settings.model.neck, None
    if backbone_name(checkpoint.state) is None:
        reason = f"no backbone {settings.model.backbone.name!r}"
    elif neck.depthwise or head.depthwise:
        reason = "no depthwise neck or head"
    elif head.kind != "gfl":
        reason = f"no head {head.kind!r} under these names"
    elif head.composition != "product" or head.quality not in ("statistics", None):
        reason = f"no quality from {head.quality!r} in the form {head.composition!r}"
    elif head.quality and not (head.add_topk and not head.add_variance):
        reason = "no statistics but the top k and their mean"
    if reason:
        raise CheckpointError(f"layout: the authors' code has {reason}; use layout='gflv2' or 'state_dict'")


def _set_background(state: dict[str, Tensor], classes: int, has: bool, wanted: bool) -> None:
    for layer in class_layers(state):
        weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
        if has and not wanted:
            weight, bias = weight[:classes], bias[:classes]
        elif wanted and not has:
            weight, bias = add_background(weight, bias)
        state[f"{layer}.weight"], state[f"{layer}.bias"] = weight, bias


def _complete(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the entries that loading tolerates to be missing: the values of the bins, and BatchNorm's counters."""
    complete: dict[str, Tensor] = {}
    for key, value in state.items():
        complete[key] = value
        counter = key.removesuffix("running_var") + "num_batches_tracked"
        if key.endswith(".running_var") and counter not in state:
            complete[counter] = torch.zeros((), dtype=torch.int64)
    if "bbox_head.gfl_reg.weight" in state and "bbox_head.integral.project" not in state:
        bins = side(state, "bbox_head.gfl_reg.weight", 0) // 4
        complete["bbox_head.integral.project"] = torch.arange(bins, dtype=torch.float32)
    return complete


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # A clone where a tensor is a view: torch.save would write the whole storage behind a slice.
    return {key: _own_storage(value.detach().cpu()) for key, value in state.items()}


def _own_storage(value: Tensor) -> Tensor:
    small = value.untyped_storage().nbytes() > value.numel() * value.element_size()
    return value.clone(memory_format=torch.contiguous_format) if small else value.contiguous()


def _write(content: dict[str, Any], path: Path, *, old_format: bool = False) -> Path:
    # Through memory: on a full disk torch's own writer hides the cause behind an error of its file format.
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old_format)
    return write_whole(path, buffer.getbuffer())


def _write_safetensors(state: dict[str, Tensor], description: dict[str, Any] | None, path: Path) -> Path:
    try:
        from safetensors.torch import save as to_bytes
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{path}: writing it needs the package safetensors: pip install safetensors") from error
    header = {"format": "pt"}
    if description is not None:
        header[DESCRIPTION] = json.dumps(description)
    tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in _on_cpu(state).items()}
    return write_whole(path, to_bytes(tensors, metadata=header))
