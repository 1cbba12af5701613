"""The public operations. Each is one name in every room: here its interface, in `reference/` its definition."""

from gflv2.ops.integral import integral

__all__ = ["integral"]
