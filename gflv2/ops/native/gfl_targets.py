"""The native ``gfl_targets``, called with torch tensors."""

from gflv2.ops.native.gfl_loss import gfl_targets  # noqa: F401
