"""Annotation files with changed bytes: each is read, with boxes inside their images, or refused by one line."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gflv2.config import DataConfig
from gflv2.data import CocoDetection
from tests.faults.base import changed
from tests.faults.voc_files import voc
from tests.faults.yolo_files import yolo

EXAMPLES = int(os.environ.get("GFLV2_TEST_EXAMPLES", "150"))
CONFIG = DataConfig(long_side=64, short_side=[48, 48], test_short_side=48, keep_empty=True)
FORMS = {
    "coco": (changed(), "train.json"),
    "yaml": (yolo(), "data.yaml"),
    "labels": (yolo(), "labels/train/im2.txt"),
    "xml": (voc(), "Annotations/im2.xml"),
    "list": (voc(), "ImageSets/Main/train.txt"),
}
PIECES = (
    *(b"\0", b"\xff", b"\xc3\xa9", b"\n", b"\t", b" ", b"-", b"9" * 30, b"1e999", b"nan", b"../", b"*", b"&a"),
    *(b"[", b"{", b"<", b"</", b"&", b"'", b'"', b"\x1b[31m", b":", b"!!", b"null", b"- ", b"0.5 "),
)


def damaged(text: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, piece in changes:
        place = int(where * len(text))
        if kind == "insert":
            text = text[:place] + piece + text[place:]
        elif kind == "replace":
            text = text[:place] + piece + text[place + len(piece) :]
        elif kind == "cut":
            text = text[:place]
        else:
            text = text[:place] + text[place + 1 + len(piece) :]
    return text


CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["insert", "replace", "remove", "cut"]),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """Source, file to change, and its text."""
    make, name = FORMS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    source = make(folder)
    file = folder / name
    return source, file, file.read_bytes()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=CHANGES)
def test_changed_bytes_are_read_or_refused_by_one_line(form, changes):
    source, file, text = form
    file.write_bytes(damaged(text, changes))
    try:
        dataset = CocoDetection(source, config=CONFIG, split="train")
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        assert said.isprintable() and len(said) < 1500, said
        assert str(source) in said or str(file.parent) in said or str(source.parent) in said, said
        return
    for item in range(len(dataset)):
        boxes, labels = dataset.annotations(item)
        height, width = dataset.size(item)
        assert np.isfinite(boxes).all() and (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= width + 1e-3).all() and (boxes[:, [1, 3]] <= height + 1e-3).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 0.99).all()
        assert ((labels >= -1) & (labels < len(dataset.class_names))).all()
