"""Small models, and files as other programs write them, for the checkpoint tests."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gflv2 import GFLV2

TINY = {
    "model__backbone__name": "test_resnet",
    "model__backbone__pretrained": None,
    "model__neck__channels": 8,
    "model__head__channels": 8,
    "model__head__gn_groups": 4,
    "model__head__stacked_convs": 1,
}
NARROW = {key: value for key, value in TINY.items() if "backbone" not in key}  # with a backbone that the authors know


def tiny(config: Any = "gflv2_r50_fpn_1x", *, seed: int = 0, **options: Any) -> GFLV2:
    """A detector of about 400,000 parameters, every one of them random (so that a wrong copy shows)."""
    torch.manual_seed(seed)
    return randomise(GFLV2(config, **{"num_classes": 5, **TINY, **options}), seed)


def randomise(model: GFLV2, seed: int = 0) -> GFLV2:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.endswith("integral.project"):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.01)
    return model


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def official(state: Mapping[str, Tensor], *, background: bool = True) -> dict[str, Tensor]:
    """Weights of one of our models as the authors' code would hold them: one more class channel, random."""
    state = dict(state)
    if background:
        generator = torch.Generator().manual_seed(99)
        for name in ("bbox_head.gfl_cls.weight", "bbox_head.gfl_cls.bias"):
            extra = torch.rand(state[name][:1].shape, generator=generator)
            state[name] = torch.cat([state[name], extra])
    return state


def mmcv_file(state: Mapping[str, Tensor], names: Any = None) -> dict[str, Any]:
    """{'meta', 'state_dict', 'optimizer'} as mmcv 1 saves it."""
    meta = {
        "epoch": 12,
        "iter": 87948,
        "mmdet_version": "2.0.0+bfcc2b9",
        "config": "model = dict(type='GFL')",
        "time": "x",
    }
    if names is not None:
        meta["CLASSES"] = tuple(names)
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    return {"meta": meta, "state_dict": dict(state), "optimizer": optimizer}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


# ---- classes under the names that other packages give them ---------------------------------------------------------

RAN: list[str] = []  # names of foreign methods that ran; must stay empty while a file is read


class HistoryBuffer:
    """As mmengine's: numpy arrays, and a state that refers to the methods of the class."""

    _statistics_methods: dict[str, Callable] = {}

    def __init__(self) -> None:
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])
        self._statistics_methods["mean"] = HistoryBuffer.mean
        self.max_length = 1_000_000

    def mean(self, window: int | None = None) -> float:
        RAN.append("HistoryBuffer.mean")
        return float(self._log_history.mean())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "statistics_methods": self._statistics_methods}

    def __setstate__(self, state: Any) -> None:
        RAN.append("HistoryBuffer.__setstate__")


class ConfigDict(dict):
    """As addict's and mmcv's: a dict with a state, which is itself."""

    def __getstate__(self) -> Any:
        return self

    def __setstate__(self, state: Any) -> None:
        RAN.append("ConfigDict.__setstate__")


def save_with_foreign_classes(build: Callable[[], Any], path: Path, **options: Any) -> None:
    """torch.save what ``build`` returns while the classes above live under their packages' names."""
    places = {
        "mmengine.logging.history_buffer": HistoryBuffer,
        "mmcv.utils.config": ConfigDict,
    }
    added = []
    original = {cls: cls.__module__ for cls in places.values()}
    try:
        for name, cls in places.items():
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                package = ".".join(parts[:depth])
                if package not in sys.modules:
                    sys.modules[package] = types.ModuleType(package)
                    added.append(package)
            setattr(sys.modules[name], cls.__name__, cls)
            cls.__module__ = name
        torch.save(build(), path, **options)
    finally:
        for cls, module in original.items():
            cls.__module__ = module
        for package in added:
            del sys.modules[package]


def mmengine_file(state: Mapping[str, Tensor], names: Any) -> dict[str, Any]:
    """What mmengine's runner saves in the middle of a training, with EMA."""
    trained = {f"module.{key}": value + 1 for key, value in state.items()}
    return {
        "meta": {
            "epoch": 1,
            "seed": 1,
            "mmengine_version": "0.10.7",
            "dataset_meta": {"classes": tuple(names), "palette": [(1, 2, 3)]},
            "hook_msgs": {"best_score": np.float64(0.25)},
        },
        "state_dict": dict(state),
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer()},
            "runtime_info": {"epoch": 1, "best_score": np.float32(0.25), "sizes": np.arange(3), "name": np.str_("x")},
            "resumed_keys": {},
        },
        "optimizer": {"state": {}, "param_groups": []},
        "ema_state_dict": {"steps": torch.tensor(7), **trained},
    }
