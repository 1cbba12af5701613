"""COCO files changed at random: each is read with the right boxes, or refused by one line that names the file."""

import copy
import json
import math
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gflv2.config import DataConfig
from gflv2.data import CocoDetection
from tests.faults.base import content, write_images

EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "500"))
CONFIG = DataConfig(long_side=64, short_side=[48, 48], test_short_side=48, keep_empty=True)
WIDTH, HEIGHT = 160, 120

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, -1, 0.5, 3.0, 1e9, 1e300, 10**400, -(10**400), 2**63, math.nan, math.inf, 160, 120]),
    st.integers(-200, 200),
    st.floats(-200, 200),
)
LEAVES = st.one_of(NUMBERS, st.none(), st.booleans(), st.sampled_from(["", "1", "im1.png", "\x1b[31m", "\0", "\ud800"]))
VALUES = st.one_of(
    LEAVES,
    st.lists(NUMBERS, min_size=4, max_size=4),
    st.lists(LEAVES, max_size=6),
    st.dictionaries(st.sampled_from(["id", "bbox", "counts", "size"]), LEAVES, max_size=3),
    st.lists(st.lists(NUMBERS, min_size=6, max_size=8), min_size=1, max_size=2),
)
KEYS = (
    "id",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "ignore",
    "segmentation",
    "name",
    "file_name",
    "width",
)


def _places(value, path=()):
    """Paths of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@st.composite
def files(draw):
    """The base with one to three changes."""
    base = content()
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(base))
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        holder = base
        for key in parents:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "add"]))
        if change == "replace":
            holder[last] = draw(VALUES)
        elif change == "remove":
            del holder[last]
        elif change == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(KEYS))] = draw(VALUES)
    return base


def _expected(base):
    """Boxes that count, by the words of docs/data.md: image id → (x1, y1, x2, y2) rounded. For files that are read."""
    found = {image["id"]: [] for image in base["images"]}
    for row in base.get("annotations") or []:
        box = row.get("bbox")
        if row["image_id"] not in found:
            continue
        if not box:
            if not row.get("segmentation"):
                continue
            return None  # the boxes of masks have tests of their own
        x, y, w, h = box
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, WIDTH), min(y + h, HEIGHT)
        inside = x1 == x and y1 == y and x2 == x + w and y2 == y + h
        sides = (w, h) if inside else (x2 - x1, y2 - y1)
        if min(w, h) >= 1 and min(sides) >= 1:
            found[row["image_id"]].append([round(value, 3) for value in (x1, y1, x2, y2)])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    write_images(folder / "images")
    return folder


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(base=files(), train=st.booleans())
def test_a_changed_file_is_read_rightly_or_refused_by_one_line(folder, base, train):
    path = folder / "train.json"
    path.write_text(json.dumps(base))
    try:
        dataset = CocoDetection(path, config=CONFIG, train=train)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert "train.json" in text and len(text) < 1500, text
        assert text.isprintable(), text
        return
    expected = _expected(base)
    if expected is None:
        return
    for item, image_id in enumerate(dataset.image_ids):
        boxes, _ = dataset.annotations(item)
        wanted = np.array(sorted(expected[image_id])).reshape(-1, 4)
        np.testing.assert_allclose(np.array(sorted(boxes.tolist())).reshape(-1, 4), wanted, atol=2e-3)
    assert len(dataset) == len(base["images"]) and set(dataset.image_ids) == set(expected)
