"""Which backend of a GPU comes first, and why. `make forecast` writes this file; CI compares it.

The workload: B = 16, 800×1344, 80 classes, R = 17, bfloat16, NCHW;
forward and backward together. An operation that is not here: CUDA first.
"""

from __future__ import annotations

PREFERENCE: dict[str, tuple[tuple[str, ...], str]] = {
    "atss": (("cuda", "triton"), "predicted for an H200: cuda 4.8 µs, triton 53.2 µs"),
    "decode": (("cuda", "triton"), "predicted for an H200: cuda 37.3 µs, triton 95.2 µs"),
    "dgqp": (("cuda", "triton"), "predicted for an H200: cuda 25.9 µs, triton 195 µs"),
    "dynamic_soft_label": (("cuda", "triton"), "predicted for an H200: cuda 942 µs, triton 2958 µs"),
    "focal": (("cuda", "triton"), "predicted for an H200: cuda 73.9 µs, triton 141 µs"),
    "gfl_loss": (("cuda", "triton"), "predicted for an H200: cuda 158 µs, triton 1852 µs"),
    "gfl_targets": (("cuda", "triton"), "predicted for an H200: cuda 32.9 µs, triton 225 µs"),
    "integral": (("cuda", "triton"), "predicted for an H200: cuda 52.8 µs, triton 51.3 µs"),
    "qfl": (("cuda", "triton"), "predicted for an H200: cuda 75.8 µs, triton 195 µs"),
    "task_aligned": (("triton", "cuda"), "predicted for an H200: triton 203 µs, cuda 281 µs"),
}
