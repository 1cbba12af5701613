"""The peers of the benchmarks (tests/benchmarks/test_peers.py), here where mmdet is installed."""

from __future__ import annotations

import pytest

from benchmarks import dfl, giou, qfl
from tests.benchmarks import test_peers as peers


@pytest.mark.parametrize("module", [dfl, giou, qfl])
def test_losses(module):
    peers.test_losses(module, "mmdet", peers.CASE.but(form="logits"))


def test_assignment():
    peers.test_assignment()


def test_head_without_quality():
    peers.test_head_without_quality()


def test_detections():
    peers.test_detections()
