"""Detection and training with static shapes, on a GPU as one CUDA graph each (docs/cuda_graphs.md)."""

from gflv2.engine.cuda_graph.inference import CapturedInference
from gflv2.engine.cuda_graph.training import CapturedTrainingStep

__all__ = ["CapturedInference", "CapturedTrainingStep"]
