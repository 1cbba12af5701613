"""gflv2: Generalized Focal Loss V2 (arXiv 2011.12885) with fused kernels.

``import gflv2`` needs torch and numpy only. The detector (``gflv2.GFLV2``) is imported at its first use, because it
needs the extra ``train``: ``pip install "gflv2[train]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gflv2.version import __version__

_LAZY = {
    "GFLV2": ("gflv2.detector", "GFLV2"),
    "list_models": ("gflv2.config", "list_models"),
    "load_config": ("gflv2.config", "load_config"),
    "use_backend": ("gflv2.ops.backends", "use_backend"),
    "export": ("gflv2.engine.export", "export"),
    "explain": ("gflv2.ops.backends", "explain"),
    "nn": ("gflv2.nn", None),
    "ops": ("gflv2.ops", None),
}

if TYPE_CHECKING:
    from gflv2 import nn, ops
    from gflv2.config import list_models, load_config
    from gflv2.detector import GFLV2
    from gflv2.engine.export import export
    from gflv2.ops.backends import explain, use_backend

__all__ = ["GFLV2", "__version__", "explain", "export", "list_models", "load_config", "nn", "ops", "use_backend"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gflv2' has no attribute {name!r}")
    import importlib

    module_name, attribute = _LAZY[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        from gflv2.extras import missing_package

        raise missing_package(error, f"gflv2.{name}") from error
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
