"""Stand-ins for what other programs pickle beside the weights: without behaviour, so reading a file runs no code.

PyTorch's ``weights_only`` reader builds tensors and plain containers only. Training files of mmengine, mmcv and
Lightning also hold log buffers, numpy scalars and configuration objects. Each of their global names is bound here to
``Inert`` (or to a plain dictionary) while a file is read; neither those packages nor numpy's constructors are called.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any


class Inert:
    """Accepts any arguments and any state, and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return "<not read>"


class InertDict:
    """Stands for a subclass of dict; makes an ``OrderedDict``, for which alone the reader sets both items and state."""

    def __new__(cls, *args: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict(args[-1]) if args and isinstance(args[-1], Mapping) else OrderedDict()


_DTYPES = "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64 LongDouble Object Str Bytes"

# numpy 1 and 2 name the same functions differently. `getattr` is how a HistoryBuffer's state refers to its own methods.
_OBJECTS = [
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.Config",
    "mmengine.config.lazy.LazyObject",
    "mmengine.config.lazy.LazyAttr",
    "mmcv.utils.config.Config",
    *[f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")],
    *[f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")],
    "numpy.dtype",
    "numpy.ndarray",
    *[f"numpy.dtypes.{name}DType" for name in _DTYPES.split()],
    *[f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")],
    *[f"pathlib._local.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")],
    "argparse.Namespace",
    "datetime.datetime",
    "datetime.timedelta",
    # factories of defaultdict
    *[f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "bool", "str")],
]
_DICTS = [
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
]


def stand_ins() -> list[tuple[type, str]]:
    """(stand-in, full name) pairs for ``torch.serialization.safe_globals``."""
    return [(Inert, name) for name in _OBJECTS] + [(InertDict, name) for name in _DICTS]
