"""`atss` against the authors' ATSSAssigner: exactly, but where their answer hangs on an undefined tie."""

from __future__ import annotations

import pytest
import torch

from gflv2.ops import Assignment, atss
from tests.ops.under_test import backends_of, running
from tests.shared import Golden, golden, golden_cases


def assign(arrays: Golden, device: torch.device, **changes) -> Assignment:
    meta = arrays.meta
    arguments = {"topk": meta["topk"]}
    if "gt_bboxes_ignore" in arrays:
        arguments["ignore_boxes"] = [arrays["gt_bboxes_ignore"].to(device)]
        arguments["ignore_iof_thr"] = max(meta["ignore_iof_thr"], 0)
    if meta["valid_hw"]:
        arguments["padded_sizes"] = [meta["valid_hw"]]
    arguments.update(changes)
    boxes, labels = [arrays["gt_bboxes"].to(device)], [arrays["gt_labels"].to(device)]
    return atss(boxes, labels, meta["feat_hw"], meta["strides"], **arguments)


@pytest.mark.parametrize("backend", backends_of("atss", every_set=True))
@pytest.mark.parametrize("case", golden_cases("atss_*"))
def test_assignment(case: str, backend: str) -> None:
    arrays = golden(case)
    with running(backend) as device:
        found = Assignment(*(tensor[0].cpu() for tensor in assign(arrays, device)))
    valid = arrays["valid"].bool() if "valid" in arrays else torch.ones_like(found.index, dtype=torch.bool)
    certain = arrays["ambiguous"] == 0
    assert certain.any()
    for key, values in (("gt_inds", found.index), ("labels", found.labels)):
        differ = (values[valid] != arrays[key]) & certain
        assert not differ.any(), f"{case}: {key} differs at points {differ.nonzero().flatten().tolist()[:10]}"

    # IoU: the sentinels exactly, the rest to 1e-6.
    iou, expected = found.iou[valid][certain], arrays["max_overlaps"][certain]
    special = (expected == -1e8) | (expected == 0)
    assert torch.equal(iou[special], expected[special])
    torch.testing.assert_close(iou[~special], expected[~special], rtol=0, atol=1e-6)

    # Cells of the padding get nothing.
    assert not found.index[~valid].any()
    assert (found.labels[~valid] == -1).all()


@pytest.mark.parametrize("backend", backends_of("atss", every_set=True))
def test_nothing_is_negative_where_all_is_ignored(backend: str) -> None:
    """Which ignored cells fill up the candidates is a tie of equal distances: here the lower flat index, row by row."""
    arrays = golden("atss_all_ignored")
    with running(backend) as device:
        found = assign(arrays, device)
    assert (found.index == -1).all()  # the first nine cells of a level lie outside the boxes
    assert (found.iou == -1e8).all()


@pytest.mark.parametrize("backend", backends_of("atss", every_set=True))
@pytest.mark.parametrize("case", golden_cases("atss_full_10gt", "atss_ignore_iof0.5", "atss_small_weird40"))
def test_padded_boxes_and_explicit_points(case: str, backend: str) -> None:
    """Boxes padded to a rectangle, and the grid given as points, change nothing."""
    arrays = golden(case)
    with running(backend) as device:
        expected = assign(arrays, device)
        meta, boxes, labels = arrays.meta, arrays["gt_bboxes"].to(device), arrays["gt_labels"].to(device)
        more = {"topk": meta["topk"]}
        if "gt_bboxes_ignore" in arrays:
            more["ignore_boxes"] = arrays["gt_bboxes_ignore"][None].to(device)
            more["ignore_iof_thr"] = max(meta["ignore_iof_thr"], 0)
        junk = torch.tensor([[0.0, 0.0, 500.0, 500.0]] * 3, device=device)
        padded = torch.cat([boxes, junk])[None], torch.cat([labels, labels.new_full((3,), 99)])[None]
        counts = torch.tensor([len(boxes)], device=device)
        by_counts = atss(*padded, meta["feat_hw"], meta["strides"], counts=counts, **more)
        points = []
        for (height, width), stride in zip(meta["feat_hw"], meta["strides"], strict=True):
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            points.append(torch.stack([x, y], -1).reshape(-1, 2).float().to(device) * stride)
        by_points = atss([boxes], [labels], None, meta["strides"], points=points, **more)
    for other in (by_counts, by_points):
        for a, b in zip(expected, other, strict=True):
            assert torch.equal(a, b)
