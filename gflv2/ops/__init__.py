"""The public operations. Each is one name in every room: here its interface, in `reference/` its definition."""

from gflv2.ops.atss import Assignment, atss
from gflv2.ops.ciou import ciou
from gflv2.ops.ddf import ddf
from gflv2.ops.decode import Decoded, Detections, batched_nms, decode
from gflv2.ops.dfl import dfl
from gflv2.ops.dgqp import Predictor, dgqp, dgqp_statistics
from gflv2.ops.distribution_kl import distribution_kl
from gflv2.ops.fgl import bin_positions, fgl
from gflv2.ops.gfl_loss import GFLLosses, gfl_loss
from gflv2.ops.gfl_targets import GFLTargets, gfl_targets, normalisers
from gflv2.ops.giou import giou, iou
from gflv2.ops.integral import integral
from gflv2.ops.qfl import qfl

__all__ = [
    "Assignment",
    "Decoded",
    "Detections",
    "GFLLosses",
    "GFLTargets",
    "Predictor",
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
    "fgl",
    "gfl_loss",
    "gfl_targets",
    "giou",
    "integral",
    "iou",
    "normalisers",
    "qfl",
]
