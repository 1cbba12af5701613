"""The ``assign`` of one image that NanoDet-Plus and DAMO-YOLO both took over from mmdet, by our operation.

Each is a method of the package's own class, reads its settings and gives the package's own ``AssignResult``. Background
has −1e8 as its overlap, and 0 where nothing in the image is positive, as in the packages. What differs: nothing waits
for the device, and what is not finite takes no part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gflv2.integrations.methods import Method
from gflv2.ops.dynamic_soft_label import dynamic_soft_label

BACKGROUND = -1e8
PARAMETERS = ("pred_scores", "priors", "decoded_bboxes", "gt_bboxes", "gt_labels", "gt_bboxes_ignore")


def assigner(settings: Callable[..., dict[str, Any] | None]) -> Method:
    """``assign`` of a class.

    Args:
        settings: (the assigner, the arguments after ``gt_bboxes_ignore``) → the operation's settings; None: the
            package's own method goes on.
    """

    def build(original: Callable) -> Callable:
        result = inspect.unwrap(original).__globals__.get("AssignResult")
        if result is None:
            where = f"{original.__module__}.{original.__qualname__}"
            raise RuntimeError(
                f"{where}: expected an AssignResult beside it, found none: gflv2 does not know this version"
            )

        def assign(
            self: Any,
            pred_scores: Tensor,
            priors: Tensor,
            decoded_bboxes: Tensor,
            gt_bboxes: Tensor,
            gt_labels: Tensor,
            gt_bboxes_ignore: Tensor | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            """(A, C) scores, (A, 4) priors (x, y, stride, stride) and boxes, (G, 4) and (G,) of the image."""
            chosen = settings(self, *args, **kwargs)
            if chosen is None:
                return original(
                    self, pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, gt_bboxes_ignore, *args, **kwargs
                )
            found = dynamic_soft_label(
                pred_scores[None],
                decoded_bboxes[None],
                priors[:, :2],
                priors[:, 2],
                [gt_bboxes.reshape(-1, 4)],
                [gt_labels.long()],
                **chosen,
            )
            index, positive = found.index[0], found.index[0] > 0
            background = torch.where(positive.any(), BACKGROUND, 0.0)
            return result(
                len(gt_bboxes), index, torch.where(positive, found.iou[0], background), labels=found.labels[0]
            )

        return assign

    return Method("assign", PARAMETERS, build)
