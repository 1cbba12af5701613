"""Weights that have a name: who published them, where they lie, and what they were measured to do.

None of them belongs to this project. Addresses, average precision and licences are what their authors give; sizes are
told where they are known. A file whose name ends in eight hex digits carries the beginning of its SHA-256 there.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from gflv2.checkpoint.errors import CheckpointError
from gflv2.config import load_config

COCO = "coco"  # the set of weights that every entry belongs to: trained on COCO, 80 classes
DEFAULT = "gflv2_nanodet_m"  # of `gflv2 predict` without weights: 3.8 MB, and fast on a CPU


@dataclass(frozen=True)
class NamedWeights:
    """One published file.

    Attributes:
        name: the configuration that it belongs to, and its own name.
        file: its name in the cache.
        address: where it is downloaded from; None: by hand, from ``page``.
        page: for a browser.
        sha256: how the file's SHA-256 begins, or all of it; None: not published.
        ap: box AP in percent on COCO's minival (val2017), as published.
        ap_test_dev: the same on test-dev; None: not published.
        size: bytes; None: unknown.
        source, licence: who published it, and under which terms.
        dataset, task: what it was trained on and for.
    """

    name: str
    file: str
    address: str | None
    page: str | None
    sha256: str | None
    ap: float
    ap_test_dev: float | None
    size: int | None
    source: str
    licence: str = "Apache-2.0"
    dataset: str = "COCO"
    task: str = "detection"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "default": self.name == DEFAULT}


def _mmdet(name: str, ap: float, path: str) -> NamedWeights:
    """``path``: below mmdet's folder; the file's name ends in the beginning of its hash."""
    file = path.rsplit("/", 1)[-1]
    digits = re.search(r"-([0-9a-f]{8})\.pth$", file)
    address = f"https://download.openmmlab.com/mmdetection/v2.0/{path}"
    return NamedWeights(name, file, address, None, digits[1] if digits else None, ap, None, None, "mmdet")


def _gfocal(name: str, ap: float, ap_test_dev: float, number: str) -> NamedWeights:
    """``number``: of the file on Google Drive, which tells neither its size nor its hash."""
    page, file = f"https://drive.google.com/file/d/{number}/view", f"{name.replace('gflv2', 'gfocal')}.pth"
    return NamedWeights(name, file, None, page, None, ap, ap_test_dev, None, "GFocalV2 (the authors)")


_NANODET = NamedWeights(
    name="gflv2_nanodet_m",
    file="nanodet_m_320.onnx",
    address="https://raw.githubusercontent.com/Kazuhito00/NanoDet-ONNX-Sample/"
    "610a874a9163369f6432bf7360ae6c66fc605680/model/nanodet_m_320.onnx",
    page="https://github.com/Kazuhito00/NanoDet-ONNX-Sample",
    sha256="88e9fb97a54bb0030127ad323a10f88b4531b6aa82617e7ef79e35ffcc9bb3e1",
    ap=20.6,
    ap_test_dev=None,
    size=3_802_801,
    source="NanoDet (RangiLyu), exported by Kazuhito00",
)

_TABLE = {
    entry.name: entry
    for entry in (
        _NANODET,
        _mmdet("atss_r50_fpn_1x", 39.4, "atss/atss_r50_fpn_1x_coco/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth"),
        _mmdet("atss_r101_fpn_1x", 41.5, "atss/atss_r101_fpn_1x_coco/atss_r101_fpn_1x_20200825-dfcadd6f.pth"),
        _mmdet("gflv1_r50_fpn_1x", 40.2, "gfl/gfl_r50_fpn_1x_coco/gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth"),
        _mmdet(
            "gflv1_r50_fpn_ms2x",
            42.9,
            "gfl/gfl_r50_fpn_mstrain_2x_coco/gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth",
        ),
        _mmdet(
            "gflv1_r101_fpn_ms2x",
            44.7,
            "gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth",
        ),
        _mmdet(
            "gflv1_r101_dcn_fpn_ms2x",
            47.1,
            "gfl/gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco/"
            "gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco_20200630_102002-134b07df.pth",
        ),
        _mmdet(
            "gflv1_x101_fpn_ms2x",
            45.9,
            "gfl/gfl_x101_32x4d_fpn_mstrain_2x_coco/gfl_x101_32x4d_fpn_mstrain_2x_coco_20200630_102002-50c1ffdb.pth",
        ),
        _mmdet(
            "gflv1_x101_dcn_fpn_ms2x",
            48.1,
            "gfl/gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco/"
            "gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco_20200630_102002-14a2bf25.pth",
        ),
        _gfocal("gflv2_r50_fpn_1x", 41.0, 41.1, "1wSE9-c7tcQwIDPC6Vm_yfOokdPfmYmy7"),
        _gfocal("gflv2_r50_fpn_ms2x", 43.9, 44.4, "17-1cKRdR5J3SfZ9NBCwe6QE554uTS30F"),
        _gfocal("gflv2_r101_fpn_ms2x", 45.8, 46.0, "1qomgA7mzKW0bwybtG4Avqahv67FUxmNx"),
        _gfocal("gflv2_r101_dcn_fpn_ms2x", 48.0, 48.2, "1xsBjxmqsJoYZYPMr0k06X5K9nnPrexcx"),
        _gfocal("gflv2_x101_dcn_fpn_ms2x", 48.8, 49.0, "1AHDVQoclYPSP0Ync2a5FCsr_rhq2QdMH"),
        _gfocal("gflv2_r2n101_dcn_fpn_ms2x", 49.9, 50.5, "1sAXfYLXIxZgMrC44LBqDgfYImThZ_kud"),
    )
}


def list_weights() -> list[NamedWeights]:
    """All named weights: the default first, then by source and AP."""
    return list(_TABLE.values())


def find_weights(weights: Any, config: Any = None) -> NamedWeights | None:
    """The entry that a name means; None where ``weights`` is no name (then it is the path of a file).

    Args:
        weights: ``"coco"``, the published weights of ``config``; or the name of a configuration, those of that one. A
            file of such a name is reached as a ``Path`` or as ``"./coco"``.
        config: whatever ``load_config`` takes; what counts is the ``name`` in it.

    Raises:
        CheckpointError: ``"coco"`` for a configuration that has none. And what ``load_config`` raises.
    """
    if isinstance(weights, NamedWeights):
        return weights
    if not isinstance(weights, str):
        return None
    if weights != COCO:
        return _TABLE.get(weights)
    name = None if config is None else load_config(config).name
    if (found := _TABLE.get(str(name))) is not None:
        return found
    what = "no configuration is named" if name is None else f"none are published for the configuration {str(name)!r}"
    raise CheckpointError(
        f"weights: {COCO!r} means a configuration's published weights, and {what}; give a file, or one of the names "
        f"that `gflv2 models` lists: {', '.join(_TABLE)}"
    )
