"""Checkpoints whose structure is changed at random: each is loaded as it is, or refused by one line."""

from __future__ import annotations

import math
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gflv2 import GFLV2, cli
from tests.faults.fuzzing import places

EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "200"))

HUGE = "a number that Python refuses to print"  # stands for 10^5000 until the file is written
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 0.5, math.nan, math.inf, 10**12, 10**400, 2**63, -(2**63)])
TEXTS = st.sampled_from(
    ["", "gflv2", "0.1", "\x1b[31m", "\0", "é", "a" * 5000, "../../x", "statistics", "resnet50", HUGE]
)
TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(3),
        torch.ones(2, 16, 3, 3),
        torch.full((2,), math.nan),
        torch.full((2,), math.inf),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(1).expand(2**40),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
    ]
)
LEAVES = st.one_of(NUMBERS, TEXTS, st.none(), st.booleans(), TENSORS)
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=4), st.dictionaries(st.one_of(TEXTS, NUMBERS), LEAVES, max_size=3))
KEYS = st.sampled_from(
    ["state_dict", "ema_state_dict", "model", "meta", "format", "version", "config", "class_names", "gflv2", "epoch"]
    + ["current_model_state", "pytorch-lightning_version", "message_hub", "bbox_head.x", "module.backbone.x", 7, None]
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What a file holds, and a place for the changed file."""
    torch.manual_seed(0)
    sizes = {"model__neck__channels": 16, "model__head__channels": 16, "model__head__gn_groups": 4}
    sizes["model__backbone__name"] = "test_efficientnet"  # timm's smallest: 0.3 million weights
    model = GFLV2("gflv2_lite0", num_classes=2, model__head__stacked_convs=1, **sizes)
    folder = tmp_path_factory.mktemp("fuzz")
    content = torch.load(model.save(folder / "a.pt"), weights_only=True)
    return content, folder / "b.pt"


@st.composite
def changes(draw):
    """What is done to the content: a list of functions."""
    kinds = st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "wrap"])
    steps = [(draw(kinds), draw(st.floats(0, 1, exclude_max=True)), draw(VALUES), draw(KEYS)) for _ in range(3)]
    return steps[: draw(st.integers(1, 3))], draw(st.sampled_from(["file", "file", "weights"]))


def changed(content, steps):
    for kind, where, value, key in steps:
        # Half of the changes outside of the weights, of which there are many.
        found = [place for place in places(content) if where < 0.5 or "state_dict" not in place[:-1]]
        if not found or not isinstance(content, dict):
            return content
        *parents, last = found[int(where * 1009) % len(found)]
        holder = content
        for parent in parents:
            holder = holder[parent]
        if kind == "replace":
            holder[last] = value
        elif kind == "remove":
            del holder[last]
        elif kind == "add" and isinstance(holder, dict):
            holder[key] = value
        elif kind == "rename" and isinstance(holder, dict):
            holder[key] = holder.pop(last)
        elif kind == "wrap":
            content = {key: content}
    return content


def copied(value):
    """A copy of the containers: the tensors are never written into."""
    if isinstance(value, dict):
        return type(value)((copied(key), copied(item)) for key, item in value.items())
    if isinstance(value, list):
        return [copied(item) for item in value]
    return 10**5000 if isinstance(value, str) and value == HUGE else value


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(drawn=changes())
def test_a_changed_checkpoint_is_loaded_rightly_or_refused_by_one_line(base, drawn, capsys):
    content, path = base
    steps, form = drawn
    content = copied(changed(copied(content if form == "file" else content["state_dict"]), steps))
    torch.save(content, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is loaded with a reservation is told as a warning
        try:
            loaded = GFLV2(weights=path).state_dict()
        except cli._USER_ERRORS as error:
            assert cli._report(error, ["val"], False, 2) == 2
            line = capsys.readouterr().err
            assert line.count("\n") == 1 and line.rstrip("\n").isprintable() and len(line) < 3100, line
            assert "b.pt" in line, line
            return
    state = content.get("state_dict", content)
    for name, value in loaded.items():
        assert torch.isfinite(value).all(), name
        same_shape = isinstance(state.get(name), torch.Tensor) and state[name].shape == value.shape
        if same_shape and ".gfl_cls." not in name:  # which starts fresh where the number of classes is another one
            assert torch.equal(state[name].to(value.dtype), value), name
