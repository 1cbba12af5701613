"""What a detector knows about its own boxes, and where it goes wrong: ``analyze`` and its report."""

from gflv2.engine.analysis.analyze import analyze
from gflv2.engine.analysis.result import Analysis
from gflv2.engine.analysis.writing import write

__all__ = ["Analysis", "analyze", "write"]
