"""``task_aligned`` against what the assigners of Ultralytics and mmdet gave (tests/golden/task_aligned.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gflv2.ops import TaskAlignment, task_aligned
from tests.ops.task_aligned_cases import MMDET, ULTRALYTICS
from tests.ops.under_test import backends_of, running
from tests.shared import SMALL, Golden

CASES = {
    "ten": ("ultralytics", ULTRALYTICS),
    "one": ("ultralytics", {**ULTRALYTICS, "topk": 7, "final_topk": 1}),
    "thirteen": ("mmdet", MMDET),
}


@pytest.mark.parametrize("backend", backends_of("task_aligned", every_set=True))
@pytest.mark.parametrize("name", CASES)
def test_assignment(name: str, backend: str) -> None:
    package, options = CASES[name]
    arrays = Golden(f"task_aligned_{package}", SMALL)
    with running(backend) as device:
        inputs: dict[str, Any] = {
            key: arrays[key].to(device) for key in ("scores", "boxes", "points", "gt_boxes", "gt_labels", "counts")
        }
        found = TaskAlignment(*(tensor.cpu() for tensor in task_aligned(**inputs, **options)))
    # Which of the points of metric 0 are positive hangs on the order in which torch has equal numbers.
    certain = (found.scores > 0) | (arrays[f"{name}_scores"] > 0)
    assert int(certain.sum()) > 10 and (arrays[f"{name}_scores"][~certain] == 0).all()
    assert torch.equal(found.index[certain], arrays[f"{name}_index"][certain])
    assert torch.equal(found.labels[certain], arrays[f"{name}_labels"][certain])
    torch.testing.assert_close(found.scores, arrays[f"{name}_scores"], rtol=2e-6, atol=1e-6)
    if f"{name}_iou" in arrays:
        assert torch.equal(found.iou, arrays[f"{name}_iou"])
        assert torch.equal(found.index, arrays[f"{name}_index"])  # a metric of 0 is never positive there
