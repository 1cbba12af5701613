"""``ATSSAssigner`` under mmdet's interface against the authors' assignments, and for a batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gflv2 import ops
from gflv2.nn import ATSSAssigner
from tests.shared import golden, golden_cases

CASES = golden_cases("atss_*")


def anchors(case) -> tuple[torch.Tensor, list[int]]:
    """The priors of a case, level-major, and how many each level has; those of the padding left out."""
    found, counts = [], []
    valid = case["valid"].bool() if "valid" in case else torch.ones(case.meta["num_anchors"], dtype=torch.bool)
    start = 0
    for (height, width), stride in zip(case.meta["feat_hw"], case.meta["strides"], strict=True):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centre = torch.stack([x, y], dim=-1).flatten(0, 1).float()
        level = torch.cat([centre - 4 * stride, centre + 4 * stride], dim=1)[valid[start : start + height * width]]
        start += height * width
        found.append(level)
        counts.append(len(level))
    return torch.cat(found), counts


@pytest.mark.parametrize("name", CASES)
def test_assign(name):
    case = golden(name)
    priors, counts = anchors(case)
    ignored = SimpleNamespace(bboxes=case["gt_bboxes_ignore"]) if "gt_bboxes_ignore" in case else None
    truth = SimpleNamespace(bboxes=case["gt_bboxes"], labels=case["gt_labels"])
    assigner = ATSSAssigner(case.meta["topk"], case.meta["ignore_iof_thr"])
    found = assigner.assign(SimpleNamespace(priors=priors), counts, truth, ignored)
    certain = case["ambiguous"] == 0
    assert found.num_gts == len(truth.bboxes)
    for value, key in ((found.gt_inds, "gt_inds"), (found.labels, "labels")):
        assert torch.equal(value[certain], case[key][certain])
    torch.testing.assert_close(found.max_overlaps[certain], case["max_overlaps"][certain], rtol=0, atol=1e-6)


def test_a_batch():
    boxes = [torch.tensor([[10.0, 12.0, 70.0, 61.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2]), torch.zeros(0, dtype=torch.int64)]
    shapes, strides = [(8, 12), (4, 6)], [8, 16]
    found = ATSSAssigner(5)(boxes, labels, shapes, strides)
    expected = ops.atss(boxes, labels, shapes, strides, topk=5)
    assert all(map(torch.equal, found, expected))
    assert (found.index[0] > 0).any()


def test_priors_that_are_no_squares():
    truth = SimpleNamespace(bboxes=torch.tensor([[0.0, 0.0, 8.0, 8.0]]), labels=torch.tensor([0]))
    square = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])
    for priors in (square * torch.tensor([1.0, 1.0, 1.0, 2.0]), square * torch.tensor([[1.0], [2.0]])):
        with pytest.raises(ValueError, match="pred_instances.priors: expected squares, of one size on each level"):
            ATSSAssigner().assign(SimpleNamespace(priors=priors), [2], truth)
    with pytest.raises(ValueError, match="num_level_priors: expected numbers whose sum is that of the priors, 2"):
        ATSSAssigner().assign(SimpleNamespace(priors=square), [3], truth)
    with pytest.raises(TypeError, match="num_level_priors: expected a list of the levels' numbers of priors, got 2"):
        ATSSAssigner().assign(SimpleNamespace(priors=square), 2, truth)
    with pytest.raises(TypeError, match="num_level_priors: expected a list of the levels' numbers of priors, got 'ab'"):
        ATSSAssigner().assign(SimpleNamespace(priors=square), "ab", truth)
    with pytest.raises(TypeError, match="ignore_iof_thr: expected a finite number, got None"):
        ATSSAssigner(ignore_iof_thr=None)
    # A level without priors, as where all anchors of a level leave the image.
    assert len(ATSSAssigner().assign(SimpleNamespace(priors=square), [2, 0], truth).labels) == 2
