"""The native library (C++ on a CPU, CUDA C++ on a GPU), called with torch tensors.

The library knows nothing of torch: it gets pointers, shapes, strides, a device index and a stream. What its functions
take is described where they are declared, in `csrc/include/gflv2/api`, and where Triton has the same, in `kernels`.
"""

from gflv2.ops.native.loading import build_record, library, set_instruction_set, status, unavailable

__all__ = ["build_record", "library", "set_instruction_set", "status", "unavailable"]
