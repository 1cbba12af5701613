"""The one check of COCO records: images, categories and annotations, whichever file they came from.

What cannot be understood is refused by one line that names file, record, what was expected and what came. What can be
mended or left out is counted in a ``Problems``. docs/data.md states the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from gflv2.data.boxes import box_of_mask, is_number, usable_box, whole
from gflv2.data.problems import Problems, kind_of, shown

Record = dict[str, Any]
Size = tuple[int, int]  # (height, width)

MAX_ID = 2**63 - 1  # the evaluators keep ids as 64-bit integers
MAX_SIDE = 1_000_000  # pixels
MAX_NAME = 256  # characters of a class name
MAX_PATH = 4096  # characters of a file name
MOST_UNKNOWN = 0.5  # share of annotations that may name images which are not there


class Where(str):
    """A record's place in a file of its own, under its key "where": readers name a record so in messages.

    A type of its own, because a JSON file may hold anything under that key.
    """


NO_BOX = "annotations without a box ('bbox' empty or null, no mask), left out"
MASKED = "annotations without 'bbox', given the box of their mask"
UNKNOWN_IMAGE = "annotations that name no image of the file, left out"
IMAGE_LEFT_OUT = "annotations of images that were left out"
AREA = "annotations whose 'area' is not above 0 and finite, given width × height"
IDS = "annotation ids counted anew, from 1 (some are 0, stand twice or are not whole numbers)"
NULL_LIST = "'annotations' is null, taken as an empty list"
URL = "images without 'file_name', given the last part of their URL"
ROOT = "categories without boxes that are the supercategory of all others, left out (data.keep_root_category keeps it)"
IGNORED_FLAG = "annotations marked 'ignore', taken as crowds: neither targets nor missed objects"
SAME_FILE = "images that name a file which another image names too"


def check_records(
    content: Any,
    problems: Problems,
    *,
    complete: Callable[[list[Record]], list[Record]] | None = None,
    keep_root: bool = False,
) -> Record:
    """COCO content as it may be used: checked, mended, and with the boxes that count (``boxes.usable_box``).

    Args:
        content: what the JSON file holds. Not changed.
        problems: counts what was mended or left out; its name begins every message.
        complete: takes the checked images, some without width and height, and gives those that can be used, with
            their sizes. None: no image file is needed, and boxes on images of unknown size are not cut.
        keep_root: keep a category that only groups the others.

    Returns:
        A mapping like ``content`` with ``images``, ``categories`` and ``annotations``. Every annotation has ``id``,
        ``image_id``, ``category_id``, ``bbox``, ``area`` > 0 and ``iscrowd`` 0 or 1.

    Raises:
        ValueError: one line, that names the record.
    """
    name = problems.name
    if not isinstance(content, dict):
        hint = "; a list of detections is a file of results, not of annotations" if isinstance(content, list) else ""
        _refuse(name, f"not a COCO annotation file: expected an object, got {kind_of(content)}{hint}")
    images = _images(_list(content, "images", name), problems, needs_files=complete is not None)
    categories = _categories(_list(content, "categories", name), name)
    known = dict.fromkeys(image["id"] for image in images)
    if complete is not None:
        images = complete(images)
    rows = content.get("annotations", [])
    if rows is None:
        problems.add(NULL_LIST, "annotations: null")
        rows = []
    if not isinstance(rows, list):
        _refuse(name, f"expected a list under the key 'annotations', got {kind_of(rows)}")
    sizes = {image["id"]: _size_of(image) for image in images}
    annotations = _annotations(rows, problems, known, sizes, dict.fromkeys(category["id"] for category in categories))
    if not keep_root:
        categories = _without_root(categories, annotations, problems)
    return {**content, "images": images, "categories": categories, "annotations": annotations}


def _refuse(name: str, text: str) -> NoReturn:
    raise ValueError(f"{name}: {text}")


def _list(content: Record, key: str, name: str) -> list:
    rows = content.get(key)
    if not isinstance(rows, list):
        got = kind_of(rows) if key in content else "no such key"
        _refuse(name, f"not a COCO annotation file: expected a list under the key {key!r}, got {got}")
    return rows


def _which(what: str, number: int, row: Any) -> str:
    """A record's name in messages: by its place in a file of its own, by its id, or by its place in the list."""
    found = row.get("id") if isinstance(row, dict) else None
    if isinstance(row, dict) and isinstance(row.get("where"), Where):
        return row["where"]
    if isinstance(found, (int, float, str)) and not isinstance(found, bool):
        return f"{what} {shown(found)}"
    return f"{what} number {number} of the list"


def _identity(value: Any, key: str, where: Callable[[], str], name: str) -> int | str:
    """An id: a whole number below 2^63 or a text. 3.0 is 3."""
    if type(value) is int and -MAX_ID <= value <= MAX_ID or type(value) is str:
        return value
    number = whole(value, MAX_ID)
    if number is None:
        too_large = ", which is beyond 2^63" if type(value) is int else ""
        _refuse(name, f"{where()}: expected {key!r} as a whole number or a text, got {shown(value)}{too_large}")
    return number


def _one_kind(records: list[Record], what: str, name: str) -> None:
    """Refuse ids of which one stands twice, or that are partly numbers and partly texts."""
    seen: set[int | str] = set()
    for number, record in enumerate(records, 1):
        value, first = record["id"], records[0]["id"]
        if type(value) is not type(first):
            _refuse(
                name,
                f"{_which(what, number, record)}: the id is {kind_of(value)}, but that of the first {what} "
                f"({shown(first)}) is {kind_of(first)}; write all of them the same way",
            )
        if value in seen:
            _refuse(name, f"{what} id {shown(value)} stands twice")
        seen.add(value)


def _images(rows: list, problems: Problems, needs_files: bool) -> list[Record]:
    name, images = problems.name, []
    for number, row in enumerate(rows, 1):

        def which(number: int = number, row: Any = row) -> str:
            return _which("image", number, row)

        if not isinstance(row, dict):
            _refuse(name, f"{which()}: expected an object, got {kind_of(row)}")
        if "id" not in row:
            _refuse(name, f"{which()}: expected the key 'id', got {_keys(row)}")
        image = {**row, "id": _identity(row["id"], "id", which, name)}
        if needs_files or row.get("file_name") is not None:
            image["file_name"] = _file_name(row, which, problems)
        width, height = image.pop("width", None), image.pop("height", None)
        sides = _side(width, "width", which, name), _side(height, "height", which, name)
        if None not in sides:  # one side alone is as good as none
            image["width"], image["height"] = sides
        images.append(image)
    _one_kind(images, "image", name)
    first_of: dict[str, Any] = {}
    for image in images:
        other = first_of.setdefault(image.get("file_name", image["id"]), image["id"])
        if other != image["id"]:
            problems.add(SAME_FILE, f"images {shown(other)} and {shown(image['id'])}: {shown(image['file_name'])}")
    return images


def _keys(row: Record) -> str:
    return f"the keys {', '.join(map(shown, list(row)[:8]))}" if row else "no key"


def _file_name(row: Record, which: Callable[[], str], problems: Problems) -> str:
    value = row.get("file_name")
    if value is None:
        for key in ("coco_url", "flickr_url", "url"):
            url = row.get(key)
            base = unquote(urlsplit(url).path).rpartition("/")[2] if isinstance(url, str) else ""
            if base:
                problems.add(URL, f"{which()}: {shown(base)}")
                return base
        _refuse(problems.name, f"{which()}: expected the key 'file_name' with a text, got {_keys(row)}")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH or "\0" in value:
        _refuse(
            problems.name,
            f"{which()}: expected 'file_name' as a text of 1 to {MAX_PATH} characters, got {shown(value)}",
        )
    return value


def _side(value: Any, key: str, which: Callable[[], str], name: str) -> int | None:
    """Width or height; None where it is absent, null or 0, which stands for unknown."""
    if value is None or value == 0 and not isinstance(value, bool):
        return None
    number = whole(value, MAX_SIDE)
    if number is None or number < 0:
        _refuse(name, f"{which()}: expected {key!r} as a whole number from 1 to {MAX_SIDE}, got {shown(value)}")
    return number


def _size_of(image: Record) -> Size | None:
    return (image["height"], image["width"]) if "width" in image else None


def _categories(rows: list, name: str) -> list[Record]:
    categories = []
    for number, row in enumerate(rows, 1):
        which = _which("category", number, row)
        if not isinstance(row, dict):
            _refuse(name, f"{which}: expected an object, got {kind_of(row)}")
        for key in ("id", "name"):
            if key not in row:
                _refuse(name, f"{which}: expected the key {key!r}, got {_keys(row)}")
        own_id = _identity(row["id"], "id", lambda which=which: which, name)
        categories.append({**row, "id": own_id, "name": class_name(row["name"], f"{name}: {which}")})
    _one_kind(categories, "category", name)
    first_of: dict[str, Any] = {}
    for category in categories:
        other = first_of.setdefault(category["name"], category["id"])
        if other != category["id"]:
            _refuse(
                name,
                f"categories {shown(other)} and {shown(category['id'])} have one name, {shown(category['name'])}; "
                "make them one category, or give them different names",
            )
    return categories


def class_name(value: Any, where: str) -> str:
    """A class name as text; refuses what could not be printed, written or told apart."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and is_number(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME or not _printable(value):
        raise ValueError(
            f"{where}: expected a name of 1 to {MAX_NAME} characters, none of them a control character, "
            f"got {shown(value)}"
        )
    return value


def _printable(text: str) -> bool:
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _without_root(categories: list[Record], annotations: list[Record], problems: Problems) -> list[Record]:
    """Leave out a category that only groups the others, as Roboflow's exports have one with id 0."""
    used = {annotation["category_id"] for annotation in annotations}
    for root in categories:
        others = [c for c in categories if c is not root]
        if others and root["id"] not in used and all(c.get("supercategory") == root["name"] for c in others):
            problems.add(ROOT, f"category {shown(root['id'])} {shown(root['name'])}")
            return others
    return categories


def _annotations(
    rows: list, problems: Problems, known: dict, sizes: dict[int | str, Size | None], categories: dict
) -> list[Record]:
    """Checked copies of the annotations whose boxes count.

    Args:
        known: its keys are the ids of the images in the file.
        sizes: size of each image that is used.
        categories: its keys are their ids.
    """
    name, kept = problems.name, []
    unknown: list[str] = []
    boxes = _Extremes()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            _refuse(name, f"annotation number {number} of the list: expected an object, got {kind_of(row)}")

        def which(number: int = number, row: Record = row) -> str:
            return _which("annotation", number, row)

        image_id = _link(row, "image_id", "images", known, which, name)
        category_id = _link(row, "category_id", "categories", categories, which, name)
        if category_id not in categories:
            _refuse(name, f"{which()}: category_id {shown(category_id)} is not among the categories")
        box = _box(row, which, problems)
        crowd, ignored = _flag(row, "iscrowd", which, name), _flag(row, "ignore", which, name)
        area = row.get("area")
        if area is not None and (isinstance(area, bool) or not isinstance(area, (int, float))):
            _refuse(name, f"{which()}: expected 'area' as a number, got {shown(area)}")
        if image_id not in known:
            unknown.append(f"{which()}: image_id {shown(image_id)}")
            problems.add(UNKNOWN_IMAGE, unknown[-1])
            continue
        if image_id not in sizes:
            problems.add(IMAGE_LEFT_OUT, f"{which()}: image_id {shown(image_id)}")
            continue
        if box is None:
            problems.add(NO_BOX, f"{which()} of image {shown(image_id)}")
            continue
        boxes.see(box, which)
        usable, kind = usable_box(box, sizes[image_id])
        if kind is not None:
            problems.add(kind, f"{which()} of image {shown(image_id)}: {shown(list(box))}")
        if usable is None:
            continue
        if ignored and not crowd:
            problems.add(IGNORED_FLAG, f"{which()} of image {shown(image_id)}")
        if area is None or not 0 < area <= MAX_SIDE**2:
            if area is not None:
                problems.add(AREA, f"{which()} of image {shown(image_id)}: {shown(area)}")
            area = usable[2] * usable[3]
        kept.append(
            {
                **row,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": list(usable),
                "area": area,
                "iscrowd": int(crowd or ignored),
            }
        )
    if len(unknown) > MOST_UNKNOWN * len(rows):
        _refuse(
            name,
            f"{len(unknown)} of {len(rows)} annotations name images that the file does not have; first: {unknown[0]}",
        )
    boxes.refuse_normalised(name)
    _number(kept, problems)
    return kept


def _link(row: Record, key: str, what: str, known: dict, which: Callable[[], str], name: str) -> int | str:
    """The id of a record's image or category, of the same kind as the ids that it refers to."""
    if key not in row:
        _refuse(name, f"{which()}: expected the key {key!r}, got {_keys(row)}")
    value = row[key]
    try:
        if value in known and not isinstance(value, bool):
            return value if type(value) is not float else int(value)
    except TypeError:  # a list or an object
        pass
    value = _identity(value, key, which, name)
    example = next(iter(known), None)
    if example is not None and isinstance(value, str) != isinstance(example, str):
        _refuse(
            name,
            f"{which()}: {key} {shown(value)} is {kind_of(value)}, but an id of the {what}, such as {shown(example)}, "
            f"is {kind_of(example)}; write both the same way",
        )
    return value


def _box(row: Record, which: Callable[[], str], problems: Problems) -> list | tuple | None:
    """The record's box, or that of its mask; None where it has neither."""
    box = row.get("bbox")
    if isinstance(box, (list, tuple)) and len(box) == 4 and all(map(is_number, box)):
        return box
    empty = box is None or isinstance(box, (list, tuple)) and len(box) == 0
    mask = row.get("segmentation")
    if empty and mask:
        found = box_of_mask(mask)
        if found is not None:
            problems.add(MASKED, which())
            return found
    if not empty or "bbox" not in row:
        got = shown(box) if "bbox" in row else _keys(row)
        _refuse(problems.name, f"{which()}: expected 'bbox' as four numbers (x, y, width, height), got {got}")
    return None


def _flag(row: Record, key: str, which: Callable[[], str], name: str) -> bool:
    value = row.get(key, 0)
    if value is None or value in (0, 1) and not isinstance(value, str):
        return bool(value)
    _refuse(name, f"{which()}: expected {key!r} as 0 or 1, got {shown(value)}")


def _number(annotations: list[Record], problems: Problems) -> None:
    """Make the ids fit for the evaluators: whole numbers, each once, none 0 (which they take for "not matched")."""
    ids = [annotation.get("id") for annotation in annotations]
    if all(type(i) is int and 0 < abs(i) <= MAX_ID for i in ids) and len(set(ids)) == len(ids):
        return
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    if any(i is not None for i in ids):
        problems.add(IDS, f"{shown(next(i for i in ids if i is not None))} became 1")


class _Extremes:
    """Whether all boxes of a file look like shares of the image, not pixels."""

    def __init__(self) -> None:
        self.largest, self.fraction, self.first = 0.0, False, ""

    def see(self, box: list | tuple, which: Callable[[], str]) -> None:
        if self.largest > 1:
            return
        self.largest = max(self.largest, *map(abs, box))
        self.fraction = self.fraction or any(0 < value < 1 for value in box)
        self.first = self.first or f"{which()}: {shown(list(box))}"

    def refuse_normalised(self, name: str) -> None:
        if self.fraction and self.largest <= 1:
            _refuse(
                name,
                f"every 'bbox' lies between 0 and 1, as if it were a share of the image, but COCO's are pixels "
                f"(x, y, width, height); first: {self.first}",
            )
