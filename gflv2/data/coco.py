"""COCO annotation files as pycocotools' index, checked and with the boxes that count."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from gflv2.data.problems import Problems, shown, shown_path
from gflv2.data.records import check_records
from gflv2.data.text import read_bytes


class CheckedCOCO(COCO):
    """An index whose records are checked.

    Attributes:
        problems: what was left out, replaced or cut.
        annotations_left_out: their number.
    """

    problems: Problems
    annotations_left_out: int


def load_coco(source: str | Path | dict | COCO, *, keep_root: bool = False) -> COCO:
    """A COCO annotation file as pycocotools' index, without its prints.

    Records are checked and mended as docs/data.md says (``check_records``): boxes that training does not take, because
    they are empty or lie outside of their image, are not evaluated either. What was left out, replaced or cut is
    logged, one line for each kind.

    Args:
        source: path of the JSON file, its content, or an index. Not changed.
        keep_root: keep a category that only groups the others (Roboflow's category 0).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a COCO file of boxes; one line that names the record.
    """
    if isinstance(source, CheckedCOCO):
        return source
    if isinstance(source, COCO):
        source = source.dataset
    if isinstance(source, dict):
        return index_of(source, Problems("annotations"), keep_root=keep_root)
    return index_of(read_json(source), Problems(str(source)), keep_root=keep_root)


def index_of(
    content: Any,
    problems: Problems,
    *,
    complete: Callable[[list[dict]], list[dict]] | None = None,
    keep_root: bool = False,
) -> CheckedCOCO:
    """The index of any reader's content in COCO's form; ``complete`` and the rest as ``check_records``."""
    index = CheckedCOCO()
    index.dataset = check_records(content, problems, complete=complete, keep_root=keep_root)
    index.problems = problems
    index.annotations_left_out = len(content.get("annotations") or ()) - len(index.dataset["annotations"])
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    problems.log()
    return index


def read_json(path: str | Path, what: str = "annotation file") -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        what: the kind of file, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder or a pipe, or not JSON; one line that names the file and the place.
    """
    name = f"{what} {shown_path(path)}"
    text = read_bytes(path, what)
    if not text.strip():
        raise ValueError(f"{name} is empty")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error


def class_mapping(index: COCO, class_names: Sequence[str] | None, name: str) -> tuple[list[str], list[Any], dict]:
    """Classes of a COCO file as contiguous labels.

    Args:
        index: the file.
        class_names: a name per label; None: the file's categories in the order of their ids.
        name: the file's, for messages.

    Returns:
        names per label; category id per label, None where the file has no such category; label per category id.
    """
    categories = [index.cats[i] for i in sorted(index.cats)]
    if class_names is None:
        ids = [category["id"] for category in categories]
        return [str(category["name"]) for category in categories], ids, {i: label for label, i in enumerate(ids)}
    names = list(class_names)
    if len(set(names)) != len(names):
        raise ValueError(f"class_names: expected every name once, got {shown(names)}")
    used = {annotation["category_id"] for annotation in index.dataset["annotations"]}
    unknown = [c["name"] for c in categories if c["name"] not in names and c["id"] in used]
    if unknown:
        raise ValueError(
            f"{name}: the categories {shown(unknown)} have annotations but are not among the class_names {shown(names)}"
        )
    id_of = {str(category["name"]): category["id"] for category in categories}
    ids = [id_of.get(class_name) for class_name in names]
    return names, ids, {i: label for label, i in enumerate(ids) if i is not None}
