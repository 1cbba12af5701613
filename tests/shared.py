"""Golden arrays and data sets for the tests.

The full set lies in a folder ``shared`` beside the checkout, or where the environment variable GFLV2_SHARED says. A
small selection of the golden arrays travels with the tests (``tests/golden``) and is used where the full set is
absent; a test whose case is in neither skips and says so.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

SMALL = Path(__file__).parent / "golden"
ROW_SENTINEL = -1e8  # max_overlaps of points that are not positive


def shared_folder() -> Path:
    """The folder with the full golden set and the data sets (it may be absent)."""
    named = os.environ.get("GFLV2_SHARED")
    return Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared"


def golden_folder() -> Path:
    full = shared_folder() / "golden"
    return full if full.is_dir() else SMALL


def golden_cases(*patterns: str) -> list[str]:
    """Names of the cases that match any of the glob patterns, from the full set, else from the small one; sorted."""
    folder = golden_folder()
    return sorted({path.stem for pattern in patterns for path in folder.glob(f"{pattern}.json")})


def data(name: str) -> Path:
    """Folder of a data set; skips the test where it is absent."""
    folder = shared_folder() / "data" / name
    if not folder.is_dir():
        pytest.skip(f"data set {name!r} is absent: {folder} (set GFLV2_SHARED to the folder that holds data/)")
    return folder


class Golden:
    """One golden case.

    Attributes:
        name: the case.
        meta: its JSON, settings and, under "arrays", shape, dtype, meaning and tolerance of each array.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.meta: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        arrays = folder / f"{name}.npz"
        self._arrays: dict[str, np.ndarray] = {}
        if arrays.exists():
            with np.load(arrays) as stored:
                self._arrays = dict(stored)

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __iter__(self):
        return iter(self._arrays)

    def array(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __getitem__(self, key: str) -> Tensor:
        """An array as a tensor; integers as int64."""
        tensor = torch.from_numpy(np.array(self._arrays[key]))
        return tensor if tensor.is_floating_point() else tensor.long()

    def levels(self, key: str) -> list[Tensor]:
        """[key.0, key.1, …]"""
        found = []
        while f"{key}.{len(found)}" in self._arrays:
            found.append(self[f"{key}.{len(found)}"])
        return found

    def tolerance(self, key: str) -> dict[str, float | None]:
        return self.meta["arrays"][key]["f32_vs_f64"]

    def compare(self, key: str, value: Tensor, *, extra: float = 0.0, label: str = "") -> None:
        """Check a tensor against an array of this case, by the rules that came with the arrays.

        |value − golden| ≤ atol, the warranted float32 round-off; for the ``*_edge`` cases, whose values span 1e-30…1e9,
        relative as well; IoUs with a sentinel (``max_overlaps``) exactly at the sentinel and to 1e-6 elsewhere;
        integers exactly. Where the authors' number is NaN (``atol`` null) only finite values are asked for.

        Args:
            extra: added to the tolerance; 0 unless the comment at the call says why.
            label: stands in the message instead of ``key``.
        """
        text = f"{self.name}: {label or key}"
        golden = self[key]
        value = value.detach().cpu()
        assert tuple(value.shape) == tuple(golden.shape), (
            f"{text}: shape {tuple(value.shape)}, golden {tuple(golden.shape)}"
        )
        if not golden.is_floating_point():
            wrong = int((value.long() != golden).sum())
            assert wrong == 0, f"{text}: {wrong} of {golden.numel()} differ"
            return
        golden, value = golden.double(), value.double()
        if key.startswith("max_overlaps"):
            special = (golden == ROW_SENTINEL) | (golden == 0)
            assert torch.equal(value[special], golden[special]), f"{text}: sentinels differ"
            error = (value - golden)[~special].abs()
            assert error.numel() == 0 or error.max() <= 1e-6, f"{text}: IoU off by {error.max():.3g}"
            return
        assert torch.isfinite(value).all(), f"{text}: values are not finite"
        warranted = self.meta["arrays"][key].get("f32_vs_f64", {})
        if self.name.endswith("_edge") and "max_rel" in warranted:
            self._compare_relative(text, value, golden, warranted)
        atol = warranted.get("atol", 4e-7 * float(golden.abs().max()) if golden.numel() else 0.0)
        if atol is None:
            return
        error = (value - golden).abs().max() if golden.numel() else torch.zeros(())
        assert error <= atol + extra, f"{text}: off by {error:.3g}, allowed {atol + extra:.3g}"

    @staticmethod
    def _compare_relative(text: str, value: Tensor, golden: Tensor, warranted: dict[str, Any]) -> None:
        # 8 × the authors' own relative round-off, as atol is 8 × the absolute one. Below 1e-30 float32 loses digits.
        allowed = max(8 * warranted["max_rel"], 4e-7)
        error = (value - golden).abs()
        relative = error / golden.abs().clamp(min=1e-30)
        assert relative.max() <= allowed, f"{text}: off by {relative.max():.3g} relatively, allowed {allowed:.3g}"


def golden(case: str) -> Golden:
    """A golden case, from the full set, else from the small selection; skips the test where it is in neither."""
    for folder in (shared_folder() / "golden", SMALL):
        if (folder / f"{case}.json").exists():
            return Golden(case, folder)
    pytest.skip(f"golden case {case!r} is absent: neither in {shared_folder() / 'golden'} nor in {SMALL}")


def fill_weight(seed: int, key: str, shape: tuple[int, ...], value: Tensor | None = None) -> Tensor:
    """The value that the weight rule of the golden manifests gives to one tensor, float32.

    Args:
        seed: ``weight_seed`` of the manifest.
        key: the state_dict key, as the manifest has it.
        value: kept for keys that end in ``project``.
    """
    generator = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()))
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if last == "project":
        return torch.arange(shape[0], dtype=torch.float32) if value is None else value
    if last == "running_var":
        array = 0.5 + generator.uniform(size=shape)
    elif last in ("running_mean", "bias"):
        array = 0.1 * generator.standard_normal(shape)
    elif len(shape) == 0:
        array = 1.0 + 0.1 * generator.standard_normal(shape)
    elif len(shape) == 1:
        array = 0.5 + 0.5 * generator.uniform(size=shape)
    else:
        array = generator.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(array, dtype=np.float64)).float()


def head_weights(case: Golden) -> dict[str, Tensor]:
    """state_dict of a ``head_*`` case: the stored arrays, or those that the rule and its overrides give."""
    if case.meta["weights_stored"]:
        return {key: case[f"param.{key}"] for key in case.meta["keys"]}
    seed = case.meta["weight_seed"]
    weights = {key: fill_weight(seed, key, tuple(shape)) for key, shape in case.meta["keys"].items()}
    for key, factor, shift in case.meta["overrides"]:
        weights[key] = weights[key] * factor + shift
    return weights


def rounding_of_scale(level: Tensor, scale: Tensor) -> float:
    """The gradient of a scale is Σ z·∂L/∂(scale·z), whose terms cancel to as little as 1/10 of their size in the
    golden cases. Rounding each of them twice to float32, as the product that it is, moves the sum by more than a case
    warrants: three standard deviations of that rounding, to be allowed in addition.

    Args:
        level: raw box logits, which retained their gradient.
    """
    return 2 * 3 * 2.0**-24 * float((level * level.grad / scale).detach().norm())
