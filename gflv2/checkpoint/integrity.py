"""Is a file whole, does it unpack to what its size allows, are its values weights? Asked before anything is built."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflv2.checkpoint.errors import CheckpointError, shorten

# torch stores its records as they are. Someone may have packed a checkpoint anew; weights hardly shrink by that.
_UNPACKED = 4
_CHUNK = 1 << 20


def check_container(path: Path) -> None:
    """Sizes and checksums of a zip file's records. Older formats of torch have none.

    Raises:
        CheckpointError: more than the file can hold, or a record that is not what was written.
    """
    if not zipfile.is_zipfile(path):
        if _is_tar(path):
            raise CheckpointError(
                f"weights: {path} is a tar archive, as torch wrote before version 0.1.10; such files are not read. "
                "Save it again with a newer torch"
            )
        return
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            unpacked = sum(record.file_size for record in records)
            if unpacked > _UNPACKED * size:
                raise CheckpointError(
                    f"weights: {path} is refused: it has {size:,} bytes and would unpack to {unpacked:,}; "
                    "no checkpoint is packed like that"
                )
            if any(record.CRC for record in records):  # torch can be told to write none: then all are 0
                for record in records:
                    _read_through(archive, record)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"weights: {path} cannot be read as a PyTorch checkpoint ({error}). A damaged or truncated copy? "
            f"The file has {size} bytes."
        ) from error


def _read_through(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    with archive.open(record) as file:  # compares the checksum at the end
        while file.read(_CHUNK):
            pass


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, ValueError):
        return False


def check_size(state: Mapping[str, Tensor], path: Path) -> None:
    """A small storage can be declared to be a huge tensor, by strides of 0; copying it would fill the memory."""
    size = path.stat().st_size
    declared = sum(value.numel() * value.element_size() for value in state.values())
    if declared > 8 * size:
        largest = max(state, key=lambda key: state[key].numel())
        raise CheckpointError(
            f"weights: {path} is refused: it has {size:,} bytes and its tensors claim {declared:,}, "
            f"the largest {largest} {tuple(state[largest].shape)}"
        )


def check_values(state: Mapping[str, Any], path: str) -> None:
    """Weights are real and finite.

    Raises:
        CheckpointError: names how many tensors are not, and the first.
    """
    other = [key for key, value in state.items() if not _is_plain(value)]
    if other:
        kind = str(state[other[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"weights: {path}: {len(other)} of {len(state)} tensors are not plain real ones but complex, quantised, "
            f"packed or sparse: {shorten(other)} ({kind})"
        )
    wrong = non_finite(state)
    if wrong:
        raise CheckpointError(
            f"weights: {path}: {len(wrong)} of {len(state)} tensors hold NaN or infinite values, first {wrong[0]}. "
            "The training that wrote them had failed"
        )


def _is_plain(value: Tensor) -> bool:
    """Real numbers, one an element: not those of torch.float4_e2m1fn_x2, a pair in a byte."""
    packed = str(value.dtype).endswith("_x2")
    return not (value.is_complex() or value.is_quantized or value.is_sparse or packed)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that change with any bit of the weights, and not with their order."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Keys of the tensors that hold NaN or an infinity."""
    keys = [key for key, value in state.items() if value.is_floating_point() and not value.is_meta]
    if not keys:
        return []
    # One transfer from the device for all of them.
    finite = torch.stack([_is_finite(state[key]).all() for key in keys]).tolist()
    return [key for key, fine in zip(keys, finite, strict=True) if not fine]


def _is_finite(value: Tensor) -> Tensor:
    # Not every format of 8 bits has an isfinite of its own; all convert.
    return torch.isfinite(value.float() if value.element_size() == 1 else value)
