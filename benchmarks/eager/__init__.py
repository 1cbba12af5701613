"""Plain PyTorch forms of the operations, written for speed: the fastest one is what the kernels are compared with.

One file an operation, ``FORMS`` in each. They take what the benchmarks give (no options that these do not use), and
tests hold them to the reference.
"""
