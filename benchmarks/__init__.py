"""Benchmarks of the operations, the training head, a training step and inference; see docs/benchmarks.md.

``make bench`` measures into ``results/``, ``python -m benchmarks.report`` turns that into ``REPORT.md``.
"""
