"""``standin()``: mmcv's operators on torchvision's give what torchvision gives, by mmcv's arguments."""

from __future__ import annotations

import logging
import subprocess
import sys

import mmcv.ops
import pytest
import torch
import torchvision.ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from gflv2.integrations import report
from gflv2.integrations.mmdet import operators, standin
from gflv2.integrations.mmdet.__main__ import main

DRAW = torch.Generator().manual_seed(0)


def boxes(count: int) -> tuple[Tensor, Tensor]:
    corner, size = torch.rand(count, 2, generator=DRAW) * 60, torch.rand(count, 2, generator=DRAW) * 40
    return torch.cat([corner, corner + size], dim=1), torch.rand(count, generator=DRAW)


def pairs(call, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of a sum that weighs each element differently."""
    found = call(*leaves)
    total = (found * torch.linspace(-1, 2, found.numel()).view(found.shape)).sum()
    return found.detach(), *torch.autograd.grad(total, leaves)


def test_nms():
    candidates, scores = boxes(200)
    for threshold in (0.1, 0.5):
        found, kept = mmcv.ops.nms(candidates, scores, threshold)
        wanted = torchvision.ops.nms(candidates, scores, threshold)
        assert torch.equal(kept, wanted) and 10 < len(kept) < 190
        assert torch.equal(found, torch.cat([candidates, scores[:, None]], dim=1)[wanted])
    best = mmcv.ops.nms(candidates, scores, 0.5, score_threshold=0.3, max_num=7)[1]
    assert torch.equal(best, torchvision.ops.nms(candidates, scores, 0.5)[:7])
    assert mmcv.ops.nms(candidates[:0], scores[:0], 0.5)[0].shape == (0, 5)


@pytest.mark.parametrize("split_thr", [10000, 100])
def test_batched_nms(split_thr):
    candidates, scores = boxes(200)
    labels = torch.randint(0, 5, (200,), generator=DRAW)
    settings = {"type": "nms", "iou_threshold": 0.5, "split_thr": split_thr}
    kept = mmcv.ops.batched_nms(candidates, scores, labels, settings)[1]
    assert torch.equal(kept, torchvision.ops.batched_nms(candidates, scores, labels, 0.5))


def test_nms_by_hand():
    """An overlap equal to the threshold stays; with offset 1 a side is x2 − x1 + 1."""
    two, scores = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 4, 2]]), torch.tensor([0.5, 0.9])
    assert mmcv.ops.nms(two, scores, 0.5)[1].tolist() == [1, 0]
    assert mmcv.ops.nms(two, scores, 0.49)[1].tolist() == [1]
    # (4 + 1) · (2 + 1) of (4 + 1) · (4 + 1).
    assert mmcv.ops.nms(two, scores, 0.59, offset=1)[1].tolist() == [1]
    assert mmcv.ops.nms(two, scores, 0.61, offset=1)[1].tolist() == [1, 0]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(aligned, ratio):
    features = torch.randn(2, 3, 16, 20, generator=DRAW, requires_grad=True)
    rois = torch.cat([torch.tensor([[0.0], [1], [1], [0]]), boxes(4)[0]], dim=1)
    ours = mmcv.ops.RoIAlign((5, 7), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    found = pairs(lambda x: ours(x, rois), features)
    wanted = pairs(lambda x: torchvision.ops.roi_align(x, rois, (5, 7), 0.25, ratio, aligned), features)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_roi_align_by_hand():
    """Of features x + 100·y, each cell of a box has the value at its centre; aligned: pixel i lies at i + 0.5."""
    features = (torch.arange(12.0) + 100 * torch.arange(10.0)[:, None])[None, None]
    found = mmcv.ops.roi_align(features, torch.tensor([[0.0, 2, 4, 6, 8]]), 2, 1.0, 2)
    centre = torch.tensor([3.0, 5.0]) - 0.5, torch.tensor([5.0, 7.0]) - 0.5
    torch.testing.assert_close(found[0, 0], centre[0] + 100 * centre[1][:, None])


GEOMETRY = [(1, 1, 1, 1, 1), (2, 0, 1, 1, 2), (1, 2, 2, 2, 2)]  # stride, padding, dilation, groups, groups of offsets


@pytest.mark.parametrize("stride, padding, dilation, groups, offsets", GEOMETRY)
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution(stride, padding, dilation, groups, offsets, modulated):
    features, weight = torch.randn(2, 4, 9, 11, generator=DRAW), torch.randn(6, 4 // groups, 3, 3, generator=DRAW)
    plain = F.conv2d(features, weight, None, stride, padding, dilation, groups)
    size = plain.shape[2:]
    offset = torch.randn(2, offsets * 2 * 9, *size, generator=DRAW)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    leaves = [features, offset, weight]
    if modulated:
        leaves += [torch.rand(2, offsets * 9, *size, generator=DRAW), torch.randn(6, generator=DRAW)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def ours(x, offset, weight, mask=None, bias=None):
        settings = (stride, padding, dilation, groups, offsets)
        if modulated:
            return mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *settings)
        return mmcv.ops.deform_conv2d(x, offset, weight, *settings)

    def theirs(x, offset, weight, mask=None, bias=None):
        return torchvision.ops.deform_conv2d(x, offset, weight, bias, mask=mask, **options)

    torch.testing.assert_close(pairs(ours, *leaves), pairs(theirs, *leaves), rtol=0, atol=0)
    still = [torch.zeros_like(offset), *([torch.ones_like(leaves[3]), None] if modulated else [])]
    torch.testing.assert_close(ours(features, still[0], weight, *still[1:]), plain, rtol=1e-4, atol=1e-4)


def test_sigmoid_focal_loss():
    """mmcv's, which mmdet calls on a GPU alone, against what mmdet itself has for the CPU; label C is background."""
    logits, labels = torch.randn(30, 5, generator=DRAW, requires_grad=True), torch.arange(30) % 6
    found = pairs(lambda x: mmcv.ops.sigmoid_focal_loss(x, labels, 2.0, 0.25, None, "none"), logits)
    hot = F.one_hot(labels, 6)[:, :5].float()
    wanted = pairs(lambda x: py_sigmoid_focal_loss(x, hot, gamma=2.0, alpha=0.25, reduction="none"), logits)
    torch.testing.assert_close(found, wanted)


LACKS = {
    "softnms needs mmcv's compiled operators": lambda: mmcv.ops.soft_nms(*boxes(4)),
    "nms_rotated needs": lambda: mmcv.ops.nms_rotated(torch.rand(3, 5), torch.rand(3), 0.5),
    "roi_pool_forward needs": lambda: mmcv.ops.roi_pool(torch.rand(1, 1, 4, 4), torch.rand(2, 5), 2),
    "pool_mode: expected 'avg', .*got 'max'": lambda: mmcv.ops.roi_align(
        torch.rand(1, 1, 4, 4), torch.zeros(2, 5), 2, 1.0, 0, "max"
    ),
    "weight: expected None": lambda: mmcv.ops.sigmoid_focal_loss(
        torch.rand(2, 3), torch.tensor([0, 1]), 2.0, 0.25, torch.ones(3)
    ),
}


@pytest.mark.parametrize("text", LACKS)
def test_what_torchvision_lacks_is_refused_by_name(text):
    with pytest.raises(NotImplementedError, match=text) as error:
        LACKS[text]()
    assert "\n" not in str(error.value) and str(error.value).startswith("mmcv.ops")


def test_offsets_of_other_groups():
    arguments = torch.rand(1, 4, 5, 5), torch.rand(1, 36, 3, 3), torch.rand(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"offset: expected 18 channels \(deform_groups 1\), got 36"):
        mmcv.ops.deform_conv2d(*arguments)


def test_a_second_call():
    assert standin() == standin() == operators._NAMES


def test_operators_of_others_stay(monkeypatch, caplog):
    """mmcv.ops is there, and not by us: compiled, or by somebody else's stand-in."""
    monkeypatch.setattr(operators, "_stood_in", [])
    monkeypatch.setattr(report, "_said", set())
    before = sys.modules["mmcv.ops.nms"].ext_module.nms
    with caplog.at_level(logging.INFO, "gflv2"):
        assert standin() == standin() == ()
    assert caplog.messages == ["mmcv has its operators already: gflv2 stands in for none"]
    assert sys.modules["mmcv.ops.nms"].ext_module.nms is before


def test_a_process_of_its_own(tmp_path):
    """Without the stand-in, importing says what to call; the command runs a script as ``python SCRIPT …`` would."""
    (tmp_path / "beside.py").write_text("value = 7")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside\n"
        "from mmdet.registry import MODELS\n"
        "from gflv2.integrations.mmdet import GFLV2Head\n"
        "print(__name__, sys.argv[1:], beside.value, GFLV2Head is MODELS.get('GFLV2Head'))\n"
    )
    code = (
        "import sys, gflv2.integrations.mmdet as ours\n"
        "from gflv2.integrations.mmdet.__main__ import main\n"
        "from gflv2.integrations.mmdet import accelerate, restore, standin\n"
        "try:\n    accelerate()\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
        "assert not hasattr(ours, 'other')\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(script), "--x", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "mmdet cannot be imported: mmcv-lite has no compiled operators; call gflv2.integrations.mmdet.standin() first, "
        "which puts torchvision's in their place",
        "__main__ ['--x', '1'] 7 True",
    ]


@pytest.mark.parametrize("arguments, got", [([], "nothing"), (["no/such.py", "--x"], "no/such.py")])
def test_what_is_no_script(arguments, got, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gflv2.integrations.mmdet", *arguments])
    assert main() == 2
    assert capsys.readouterr().err == f"SCRIPT: expected a file such as tools/train.py, got {got}\n"
