"""The Triton kernels, one file per operation; their name is ``gflv2.kernels``, in a checkout and in an install."""

from __future__ import annotations

if __name__ != "gflv2.kernels":
    # A checkout on sys.path makes this folder importable as a top-level package. A second copy of every kernel would
    # be compiled and cached apart from the first, so that name is refused.
    raise ImportError(f"this package was imported as {__name__!r}; write `import gflv2.kernels` instead")
