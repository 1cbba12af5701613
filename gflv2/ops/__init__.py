"""The public operations. Each is one name in every room: here its interface, in `reference/` its definition."""

from gflv2.ops.atss import Assignment, atss
from gflv2.ops.ciou import ciou
from gflv2.ops.ddf import ddf
from gflv2.ops.decode import Decoded, Detections, batched_nms, decode
from gflv2.ops.dfl import dfl
from gflv2.ops.dgqp import Predictor, dgqp, dgqp_statistics
from gflv2.ops.distribution_kl import distribution_kl
from gflv2.ops.dynamic_soft_label import DynamicAssignment, dynamic_soft_label
from gflv2.ops.fgl import bin_positions, fgl
from gflv2.ops.focal import focal, iou_aware_bce, matchability_aware, sigmoid_focal, varifocal
from gflv2.ops.gfl_loss import GFLLosses, gfl_loss
from gflv2.ops.gfl_targets import GFLTargets, gfl_targets, normalisers
from gflv2.ops.giou import giou, iou
from gflv2.ops.integral import integral
from gflv2.ops.qfl import qfl
from gflv2.ops.task_aligned import TaskAlignment, task_aligned

__all__ = [
    "Assignment",
    "Decoded",
    "Detections",
    "DynamicAssignment",
    "GFLLosses",
    "GFLTargets",
    "Predictor",
    "TaskAlignment",
    "atss",
    "batched_nms",
    "bin_positions",
    "ciou",
    "ddf",
    "decode",
    "dfl",
    "dgqp",
    "dgqp_statistics",
    "distribution_kl",
    "dynamic_soft_label",
    "fgl",
    "focal",
    "gfl_loss",
    "gfl_targets",
    "giou",
    "integral",
    "iou",
    "iou_aware_bce",
    "matchability_aware",
    "normalisers",
    "qfl",
    "sigmoid_focal",
    "task_aligned",
    "varifocal",
]
