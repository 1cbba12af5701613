"""Detectors as files that run without this package, ONNX and torch.export, and such an ONNX file as a detector."""

from gflv2.engine.export.onnx_detector import OnnxDetector
from gflv2.engine.export.writing import ExportError, ExportReport, export

__all__ = ["ExportError", "ExportReport", "OnnxDetector", "export"]
