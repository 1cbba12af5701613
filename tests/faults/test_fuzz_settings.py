"""YAML configurations changed at random: each is read as it says, or refused by one line that names the file."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import typing

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gflv2 import cli
from gflv2.config import load_config
from gflv2.config import settings as known_settings
from gflv2.ranges import LENGTHS, RANGES
from tests.faults.fuzzing import places
from tests.faults.test_fuzz_text import CHANGES, damaged

EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "200"))
BASE = load_config("gflv2_lite0").to_dict()

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 0.5, 1e300, 10**12, 10**400, -(10**400), 2**63, math.nan, math.inf, -math.inf]),
    st.integers(-200, 200),
    st.floats(-200, 200),
)
TEXTS = st.sampled_from(["", "1", "null", "1e400", "[1, 2]", "nan", "gflv2_r50_fpn_1x", "\x1b[31m", "\0", "é" * 3000])
LEAVES = st.one_of(NUMBERS, TEXTS, st.none(), st.booleans(), st.dates())
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=5), st.dictionaries(st.one_of(TEXTS, NUMBERS), LEAVES, max_size=2))
KEYS = st.sampled_from(["base", "name", "lr", "model", "data", "train", "epochs", "reg_max", "x", 1, None, 0.5])


@st.composite
def files(draw):
    """The settings of a named configuration with one to three changes, as bytes; some with changed bytes too."""
    content = copy.deepcopy(BASE)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(content))
        if not found:
            break
        *parents, last = draw(st.sampled_from(found))
        holder = content
        for key in parents:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "alone"]))
        if change == "replace":
            holder[last] = draw(VALUES)
        elif change == "remove":
            del holder[last]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(KEYS)] = draw(VALUES)
        elif change == "alone" and isinstance(holder[last], (dict, list)):
            content = holder[last]
    text = yaml.safe_dump(content, sort_keys=False).encode()
    return damaged(text, draw(CHANGES)) if draw(st.integers(0, 3)) == 0 else text


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "mine.yaml"


def command(path) -> tuple[int, str, str]:
    """Status, output and errors of ``gflv2 configs``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return cli.main(["configs", str(path)]), out.getvalue(), err.getvalue()


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def same(read, written) -> bool:
    """Whether a value is what the file says: a number may be written as a text, and a whole one for a float."""
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(same, read, written))
    if isinstance(written, str) and not isinstance(read, str):
        return same(read, yaml.safe_load(written)) or read == float(written)
    return read == written and isinstance(read, bool) == isinstance(written, bool)


def check_types_and_ranges(values: dict) -> None:
    for key, value in values.items():
        hint, _ = known_settings()[key]
        kinds = typing.get_args(hint) if typing.get_origin(hint) is not list else ()
        items = value if isinstance(value, list) else [value]
        assert value is not None or type(None) in kinds, key
        if key in LENGTHS:
            assert LENGTHS[key][0] <= len(items) <= LENGTHS[key][1], key
        if key in RANGES and value is not None:
            assert all(RANGES[key][0] <= item <= RANGES[key][1] for item in items), key


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(text=files())
@example(text=b"train: {lr: {}}")
@example(text=b"model: {head: {loss_weights: null}}")
@example(text=b"train: {epochs: " + b"9" * 5000 + b"}")
@example(text=b"a: &a [*a]")
@example(text=b"train: &a {lr: *a}")
@example(text=b"base: no such name")
@example(text=b"train: 2001-99-99")
@example(text=b"a: " + b"{b: " * 3000)
def test_a_changed_configuration_is_read_as_it_says_or_refused_by_one_line(path, text):
    path.write_bytes(text)
    status, out, err = command(path)
    if status == 2:
        assert out == "" and err.count("\n") == 1 and err.rstrip("\n").isprintable() and len(err) < 3100, err
        assert "mine.yaml" in err, err
        return
    assert status == 0 and err == "", err
    read, written = flat(yaml.safe_load(out)), yaml.safe_load(text.decode("utf-8-sig")) or {}
    check_types_and_ranges(read)
    written.pop("base", None)
    for key, value in flat(written).items():
        assert same(read[key], value), (key, read[key], value)
