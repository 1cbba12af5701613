"""The Triton kernels, one file per operation; their name is ``gflv2.kernels``, in a checkout and in an install."""

from __future__ import annotations

if __name__ != "gflv2.kernels":
    # A checkout on sys.path makes this folder importable as a top-level package. A second copy of every kernel would
    # be compiled and cached apart from the first, so nothing can be imported from it under that name. The folder itself
    # can: transformers does so, looking for an optional package that is called kernels, and finds no version in it.

    class _Refusal(list):
        def __iter__(self):
            message = f"this folder was imported as {__name__!r}; write `import gflv2.kernels` instead"
            raise ModuleNotFoundError(message)

    __path__ = _Refusal()  # iterated in search of a submodule
