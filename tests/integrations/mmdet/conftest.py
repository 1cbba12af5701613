"""mmdet on mmcv-lite: mmcv's operators are stood in for before it is imported."""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of mmdet's own imports
    from gflv2.integrations.mmdet import standin

    standin()

from mmengine.logging import MessageHub  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

from gflv2.integrations.mmdet import restore  # noqa: E402


@pytest.fixture(autouse=True)
def unchanged():
    """One thread, and mmdet as it was."""
    torch.set_num_threads(1)
    init_default_scope("mmdet")  # a Runner leaves another one
    MessageHub.get_current_instance().update_info("epoch", 0)  # which TOODHead asks for
    yield
    restore()
