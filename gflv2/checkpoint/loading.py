"""Putting the weights of a file into a model, and what a model that starts from a file is built with."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gflv2.checkpoint.errors import CheckpointError, shorten
from gflv2.checkpoint.infer import (
    backbone_name,
    class_layer,
    class_layers,
    differences,
    fitting_configs,
    infer,
    infer_config,
    side,
    split_class_channels,
    structure,
)
from gflv2.checkpoint.official_keys import from_official
from gflv2.checkpoint.reading import Checkpoint, interpret, read
from gflv2.checkpoint.zoo import NamedWeights, find_weights
from gflv2.config import Config, ModelConfig, load_config
from gflv2.models.coco_names import COCO_NAMES

_log = logging.getLogger("gflv2")

# σ(−1000) is exactly 0 in every precision, so the channel changes no maximum over classes, no weight and no NMS slot.
BACKGROUND_BIAS = -1000.0


@dataclass
class LoadReport:
    """What became of the entries of a file and of a model.

    Attributes:
        path, layout: the file and the program that wrote it ("gflv2", "mmcv", "mmengine", "lightning", "weights").
        loaded: keys of the model whose values came from the file.
        fresh: keys of the model that the file does not give, and that keep or got initial values.
        dropped: keys of the file that the model does not use.
        class_names: names in the file, or COCO's for a detector of 80 classes without names; None: unknown.
        notes: sentences on what was sliced, started fresh, averaged, ….
        warnings: those of them that say what changes results.
    """

    path: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    class_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def warn(self, note: str) -> None:
        self.notes.append(note)
        self.warnings.append(note)

    def __str__(self) -> str:
        text = f"{self.path} ({self.layout}): {len(self.loaded)} entries loaded"
        if self.fresh:
            text += f", {len(self.fresh)} fresh ({shorten(self.fresh, 4)})"
        if self.dropped:
            text += f", {len(self.dropped)} not used ({shorten(self.dropped, 4)})"
        return "; ".join([text, *self.notes])


def resolve(
    checkpoint: Checkpoint, config: Any = None, num_classes: int | None = None
) -> tuple[Config, list[str] | None, dict[str, Any]]:
    """What a detector that starts from a file is built with: configuration, class names, settings from the file.

    The settings (dotted keys) go over the configuration, below the user's own: the pixel normalisation of our files,
    and the number of classes of a detector's file. The number in the configuration stands, and the class convolution
    then starts fresh, where the user gave it: by ``num_classes``, as a ``Config``, or as a number other than the
    default.
    """
    settings: dict[str, Any] = {}
    if config is None:
        chosen = model_config(checkpoint)
        if checkpoint.config is None:
            chosen.model.head.legacy_background = False  # sliced off on loading, unless `legacy` is asked for
    else:
        chosen = load_config(config)
        data = (checkpoint.config or {}).get("data", {})
        settings = {f"data.{name}": data[name] for name in ("mean", "std") if name in data}
    names = class_names(checkpoint)
    if class_layer(checkpoint.state) is None:
        return chosen, None, settings
    theirs, _ = split_class_channels(checkpoint)
    given = isinstance(config, Config) or chosen.model.num_classes != ModelConfig().num_classes
    wanted = num_classes if num_classes is not None else chosen.model.num_classes if given else theirs
    if wanted == theirs:
        settings["model.num_classes"] = theirs
        return chosen, names, settings
    return chosen, None, settings


def model_config(checkpoint: Checkpoint, config: Any = None) -> Config:
    """The configuration to build a checkpoint's detector with: ``config``, the file's, or what its keys tell."""
    if config is not None:
        return load_config(config)
    if not checkpoint.is_detector:
        raise CheckpointError(
            f"weights: {checkpoint.path} holds a backbone alone; name the detector that it starts: "
            f"GFLV2(CONFIG, weights=...)"
        )
    if checkpoint.config is not None:
        return load_config(checkpoint.config)
    return infer_config(checkpoint)


def class_names(checkpoint: Checkpoint) -> list[str] | None:
    """Names in the file; COCO's for a detector of 80 classes without names; None: unknown."""
    if checkpoint.class_names is not None or class_layer(checkpoint.state) is None:
        return checkpoint.class_names
    classes, _ = split_class_channels(checkpoint)
    return list(COCO_NAMES) if classes == len(COCO_NAMES) else None


def load_weights(
    model: nn.Module, source: str | Path | NamedWeights | Checkpoint | Mapping[str, Tensor], *, ema: bool = True
) -> LoadReport:
    """Put the weights of a file into a ``GFLV2``.

    * A detector's file must have every entry of the model and no other, in the model's shapes. Exceptions, each told in
      the report: the authors' (C+1)-th class channel is dropped, or kept by a model with ``legacy_background``; another
      number of classes starts the class convolution anew (bias −log 99) and nothing else; a GFLV1 file has no quality
      predictor, which starts fresh; counters of BatchNorm and ``integral.project`` may be missing.
    * A backbone's file fills the backbone; its classifier is not used; neck, head and offset convolutions stay as they
      are.

    Args:
        model: the detector; on the meta device it takes the file's tensors themselves.
        source: a path or a name, what ``read`` returned, or a ``state_dict``.
        ema: see ``read``.

    Raises:
        CheckpointError: keys or shapes do not fit; the message lists them and the settings that differ.
    """
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, Mapping):
        checkpoint = interpret(source, ema=ema)
    else:
        checkpoint = read(find_weights(source, model.config) or source, ema=ema)
    config: Config = model.config
    backbone = config.model.backbone.name
    state = {from_official(key, backbone): value for key, value in checkpoint.state.items()}
    target = model.state_dict()
    report = LoadReport(checkpoint.path, checkpoint.layout, notes=list(checkpoint.notes))
    if checkpoint.is_detector:
        report.class_names = class_names(checkpoint)
        _fit_classes(checkpoint, state, target, config, report)
        fresh = _allowed_to_miss(checkpoint, state, target, report)
    else:
        state = _fit_backbone(state, target, report)
        fresh = {key for key in target if not key.startswith("backbone.") or ".conv_offset." in key}
    fresh |= {key for key in target if key.endswith("num_batches_tracked")}
    restart = {key for key in report.fresh if key in target}  # the class convolution
    fresh |= restart
    _check(checkpoint, state, target, fresh, config)
    _copy(model, state, target)
    _restart_classes(model, restart)
    report.loaded = [key for key in target if key in state]
    report.fresh = [key for key in target if key not in state]
    _note_projection(model, report)
    _note_input(checkpoint, config, report)
    _tell(report)
    return report


# ---- classes -------------------------------------------------------------------------------------------------------


def _fit_classes(
    checkpoint: Checkpoint, state: dict[str, Tensor], target: Mapping[str, Tensor], config: Config, report: LoadReport
) -> None:
    """Slice or append the background channel, or take the class convolution out of ``state`` to start it anew."""
    layers = class_layers(state)
    if any(f"{layer}.weight" not in target or f"{layer}.bias" not in state for layer in layers) or not layers:
        return
    layer = layers[0]
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    wanted, have = target[f"{layer}.weight"].shape[0], side(state, f"{layer}.weight", 0)
    if weight.dim() != 4 or weight.shape[1:] != target[f"{layer}.weight"].shape[1:] or bias.shape != (have,):
        return  # not a matter of classes; the general comparison reports it
    classes, background = split_class_channels(checkpoint)
    legacy = config.model.head.legacy_background
    named = checkpoint.class_names is not None or checkpoint.config is not None
    if not named and have == wanted:
        return
    if not named and not background and not legacy and have == wanted + 1 and checkpoint.has_quality:
        # A bare state_dict with one channel more than the model: the authors' form for the model's classes.
        classes, background = wanted, True
        report.warn(f"the last of the {have} channels of {layer} is taken to be the authors' background")
    if classes != config.model.num_classes:
        for key in [f"{each}.{leaf}" for each in layers for leaf in ("weight", "bias")]:
            del state[key]
            report.fresh.append(key)
        report.warn(
            f"the file has {classes} classes, the model {config.model.num_classes}: {', '.join(layers)} "
            f"start{'s' * (len(layers) == 1)} fresh "
            f"(bias −log 99), everything else is loaded"
        )
    elif background and not legacy:
        state[f"{layer}.weight"], state[f"{layer}.bias"] = weight[:classes], bias[:classes]
        report.notes.append(f"dropped the unused background channel of {layer} ({have} → {classes} channels)")
    elif legacy and not background:
        state[f"{layer}.weight"], state[f"{layer}.bias"] = add_background(weight, bias)
        report.notes.append(f"added a background channel of score 0 to {layer} ({have} → {have + 1} channels)")


def add_background(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One more class channel whose score is exactly 0 everywhere: weights 0, bias −1000."""
    return torch.cat([weight, torch.zeros_like(weight[:1])]), torch.cat([bias, bias.new_full((1,), BACKGROUND_BIAS)])


def _restart_classes(model: nn.Module, keys: set[str]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key in sorted(keys):
            if key.endswith("bias"):
                nn.init.constant_(parameters[key], -math.log(99))
            else:
                nn.init.normal_(parameters[key], std=0.01)


# ---- which keys must meet ------------------------------------------------------------------------------------------


def _allowed_to_miss(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: LoadReport
) -> set[str]:
    allowed = {"bbox_head.integral.project"}
    predictor = {key for key in target if key.startswith("bbox_head.reg_conf.")}
    if predictor and not checkpoint.has_quality and "bbox_head.gfl_cls.weight" in checkpoint.state:
        allowed |= predictor
        report.warn("a GFLV1 file: the quality predictor bbox_head.reg_conf starts fresh")
    return allowed


def _fit_backbone(state: dict[str, Tensor], target: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """Keep what belongs under ``backbone.``; leave out classifiers and other parts that the feature extractor lacks."""
    parts = {key.split(".")[1] for key in target if key.startswith("backbone.")}
    kept = {}
    for key, value in state.items():
        place, _, rest = key.partition(".")
        if place != "backbone":
            report.dropped.append(key)
            continue
        top, _, leaf = rest.partition(".")
        if top not in parts:
            # timm's feature extractors flatten "stages.0.blocks" to "stages_0.blocks".
            flat = f"backbone.{top}_{leaf}"
            if flat.split(".")[1] not in parts:
                report.dropped.append(key)
                continue
            key = flat
        kept[key] = value
    report.notes.append("backbone weights alone: neck and head are not from this file")
    return kept


def _check(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], target: Mapping[str, Tensor], fresh: set[str], config: Config
) -> None:
    missing = [key for key in target if key not in state and key not in fresh]
    unexpected = [key for key in state if key not in target]
    wrong = [key for key in state if key in target and state[key].shape != target[key].shape]
    if not (missing or unexpected or wrong):
        return
    what = "model" if checkpoint.is_detector else "backbone"
    text = [f"weights: {checkpoint.path} does not fit the {what} of configuration {config.name!r}."]
    if missing:
        shapes = shorten(f"{key} {tuple(target[key].shape)}" for key in missing)
        text.append(f"  {len(missing)} missing in the file: {shapes}")
    if unexpected:
        shapes = shorten(f"{key} {tuple(state[key].shape)}" for key in unexpected)
        text.append(f"  {len(unexpected)} not in the model: {shapes}")
    if wrong:
        shapes = shorten(f"{key} file {tuple(state[key].shape)}, model {tuple(target[key].shape)}" for key in wrong)
        text.append(f"  {len(wrong)} of another shape: {shapes}")
    text += [f"  {line}" for line in _hints(checkpoint, config)]
    raise CheckpointError("\n".join(text))


def _hints(checkpoint: Checkpoint, config: Config) -> list[str]:
    """What the file says about itself, where that differs from the model."""
    if not checkpoint.is_detector:
        name = backbone_name(checkpoint.state)
        other = name is not None and name != config.model.backbone.name
        return [f"The file has the backbone {name!r}, the model {config.model.backbone.name!r}."] if other else []
    try:
        inferred = infer(checkpoint, config)
    except CheckpointError as error:
        return [str(error)]
    differing = differences(config, structure(inferred))
    lines = [f"The file has {key} = {theirs!r}, the model {ours!r}." for key, (theirs, ours) in differing.items()]
    if differing and (names := fitting_configs(inferred)):
        lines.append(f"Configurations with the file's structure: {shorten(names)}.")
    elif differing:
        lines.append("GFLV2(PATH) builds the model that the file describes.")
    return lines


# ---- copying and telling -------------------------------------------------------------------------------------------


def _copy(model: nn.Module, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    assign = any(value.is_meta for value in target.values())
    result = model.load_state_dict(dict(state), strict=False, assign=assign)
    if result.unexpected_keys:
        raise AssertionError(f"keys that were checked before: {result.unexpected_keys}")


def _note_projection(model: nn.Module, report: LoadReport) -> None:
    project = model.state_dict().get("bbox_head.integral.project")
    if project is None or project.is_meta or "bbox_head.integral.project" not in report.loaded:
        return
    bins = torch.arange(len(project), dtype=project.dtype, device=project.device)
    if not torch.allclose(project, bins, atol=1e-4):
        first = [round(value, 3) for value in project[:4].tolist()]
        report.warn(f"bbox_head.integral.project is not 0 … {len(project) - 1} but {first} …: kept as it is")


def _note_input(checkpoint: Checkpoint, config: Config, report: LoadReport) -> None:
    """Note where the weights were trained with another normalisation of their input; our files record it."""
    data = (checkpoint.config or {}).get("data", {})
    for name in ("mean", "std"):
        theirs, ours = data.get(name), getattr(config.data, name)
        if theirs is None:
            continue
        same = (math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-3) for a, b in zip(theirs, ours, strict=True))
        if not all(same):
            report.warn(f"the file was trained with data.{name} = {theirs}, the configuration has {ours}")


def _tell(report: LoadReport) -> None:
    """What changes results is a warning; all of it goes to the log."""
    for note in report.warnings:
        warnings.warn(f"{report.path}: {note}", stacklevel=3)
    _log.info("%s", report)
