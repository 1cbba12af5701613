"""Records of COCO files that are wrong or unusual."""

from __future__ import annotations

import numpy as np
import pycocotools.mask

from tests.faults.base import (
    ABSENT,
    annotation,
    annotations,
    category,
    changed,
    encoded,
    image,
    more,
    top,
    write_images,
    written,
)
from tests.faults.row import BOX, Row

TWO = {1: [BOX], 3: [BOX]}  # what is left where the second image has no annotation
WITHOUT_SECOND = {1: [BOX], 2: [], 3: [BOX]}
EXTRA = {"id": 4, "image_id": 2, "category_id": 1, "bbox": [5, 5, 10, 10]}


def _ids(images, links):
    """The base with ids made by two functions of 1, 2, 3."""
    return changed(
        lambda base: [record.update(id=images(record["id"])) for record in base["images"]],
        lambda base: [record.update(image_id=links(record["image_id"])) for record in base["annotations"]],
    )


def _second(bbox):
    """The base's boxes with another one in the second image, given as x, y, width, height."""
    x, y, w, h = bbox
    return {1: [BOX], 2: [[x, y, x + w, y + h]], 3: [BOX]}


def _names(*names):
    """The base with these file names, for images that keep theirs."""
    return changed(
        lambda base: [r.update(file_name=name) for r, name in zip(base["images"], names, strict=True)],
    )


def _in_folder(*names):
    """The same with the images in the folder images/sub."""

    def make(folder):
        source = _names(*names)(folder)
        write_images(folder / "images" / "sub")
        for path in (folder / "images").glob("*.png"):
            path.unlink()
        return source

    return make


def _with_spaces(folder):
    source = _names("my%20im1.png", "my%20im2.png", "my%20im3.png")(folder)
    write_images(folder / "images", ("my im1.png", "my im2.png", "my im3.png"))
    return source


def _grouped(base):
    """Give the categories a root, as Roboflow's exports have it."""
    base["categories"][0].update(supercategory="cells")
    base["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})


def _mask_as_text():
    """The base's box as pycocotools writes a mask."""
    pixels = np.zeros((120, 160), dtype=np.uint8, order="F")
    pixels[20:70, 20:80] = 1
    mask = pycocotools.mask.encode(pixels)
    return {"size": mask["size"], "counts": mask["counts"].decode()}


ROWS = [
    # ---- ids and links
    Row(
        "ids of images as text, `image_id` as numbers",
        _ids(str, int),
        "image_id 1 is a number, but an id of the images, such as '1', is text",
        report="yolact#156",
    ),
    Row(
        "ids of images as numbers, `image_id` as text",
        _ids(int, str),
        "annotation 1: image_id '1' is text",
        report="yolact#156",
    ),
    Row("ids of images and `image_id` as text", _ids(str, str), boxes={"1": [BOX], "2": [BOX], "3": [BOX]}),
    Row(
        "one `image_id` as text, the others as numbers", annotation(image_id="2"), "annotation 2: image_id '2' is text"
    ),
    Row(
        "ids of images partly text, partly numbers",
        image(id="2"),
        "image '2': the id is text, but that of the first image (1) is a number",
    ),
    Row("ids of images 1.0, 2.0, 3.0", _ids(float, int)),
    Row("`image_id` 1.0, 2.0, 3.0", _ids(int, float)),
    Row("an id of an image 1.5", image(id=1.5), "expected 'id' as a whole number or a text, got 1.5"),
    Row("an id of an image is null", image(id=None), "expected 'id' as a whole number or a text, got None"),
    Row("an id of an image is true", image(id=True), "expected 'id' as a whole number or a text, got True"),
    Row("an id of an image is a list", image(id=[2]), "expected 'id' as a whole number or a text, got [2]"),
    Row(
        "ids of images beyond 2^63",
        _ids(lambda i: 2**63 + 2 * i, lambda i: 2**63 + 2 * i),
        "which is beyond 2^63",
        report="cocoapi#330",
    ),
    Row("an id of an image of 400 digits", image(id=10**400), "a number of 1329 bits"),
    Row("negative ids of images", _ids(lambda i: -i, lambda i: -i), boxes={-1: [BOX], -2: [BOX], -3: [BOX]}),
    Row(
        "ids of images just below 2^63",
        _ids(lambda i: 2**63 - i, lambda i: 2**63 - i),
        boxes={2**63 - i: [BOX] for i in (1, 2, 3)},
    ),
    Row("an image's id stands twice", image(id=1), "image id 1 stands twice", report="sahi#98"),
    Row(
        "one annotation names no image of the file",
        annotation(image_id=999),
        said=("name no image of the file, left out: 1; first: annotation 2: image_id 999",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "every annotation names no image of the file",
        annotations(image_id=999),
        "3 of 3 annotations name images that the file does not have; first: annotation 1",
    ),
    Row(
        "`image_id` is null",
        annotation(image_id=None),
        "annotation 2: expected 'image_id' as a whole number or a text, got None",
    ),
    Row("`image_id` is missing", annotation(image_id=ABSENT), "annotation 2: expected the key 'image_id'"),
    Row("`image_id` is an object", annotation(image_id={}), "expected 'image_id' as a whole number or a text, got {}"),
    Row(
        "`category_id` of no category",
        annotation(category_id=7),
        "annotation 2: category_id 7 is not among the categories",
    ),
    Row("`category_id` as text", annotation(category_id="1"), "annotation 2: category_id '1' is text"),
    Row("`category_id` missing", annotation(category_id=ABSENT), "annotation 2: expected the key 'category_id'"),
    Row("`category_id` 1.0", annotation(category_id=1.0)),
    Row("ids of annotations as text", annotation(id="b"), said=("annotation ids counted anew",)),
    Row("an id of an annotation 0", annotation(id=0), said=("annotation ids counted anew",)),
    Row("an annotation's id stands twice", annotation(id=1), said=("annotation ids counted anew",)),
    Row("annotations without ids", annotations(id=ABSENT)),
    # ---- categories
    Row(
        'ids of categories 1 and "2"',
        more("categories", {"id": "2", "name": "b"}),
        "category '2': the id is text",
        report="yolov5#9989",
    ),
    Row(
        "a category without `name`",
        category(name=ABSENT),
        "category 1: expected the key 'name', got the keys 'id'",
        report="SoftTeacher#105",
    ),
    Row("a category without `id`", category(id=ABSENT), "category number 1 of the list: expected the key 'id'"),
    Row("a category's name is null", category(name=None), "expected a name of 1 to 256 characters"),
    Row("a category's name is empty", category(name="  "), "expected a name of 1 to 256 characters"),
    Row("a category's name is a number", category(name=7)),
    Row("a category's name with a terminal escape", category(name="\x1b[31mred"), "got '\\x1b[31mred'"),
    Row(
        "a category's name of a million characters",
        category(name="a" * 10**6),
        "expected a name of 1 to 256 characters",
    ),
    Row(
        "a category's name is half of a surrogate pair",
        category(name="\ud800"),
        "expected a name of 1 to 256 characters",
    ),
    Row("a category's name in Chinese with an emoji", category(name="盒子 📦")),
    Row(
        "two categories of one name",
        more("categories", {"id": 2, "name": "box"}),
        "categories 1 and 2 have one name, 'box'",
        report="mmdet#11072",
    ),
    Row("a category's id stands twice", more("categories", {"id": 1, "name": "other"}), "category id 1 stands twice"),
    Row("a category is a text", top(categories=["box"]), "category number 1 of the list: expected an object, got text"),
    Row(
        "a root category without boxes, the supercategory of the others",
        changed(_grouped),
        said=("left out (data.keep_root_category keeps it): 1; first: category 0 'cells'",),
        report="rf-detr#1303",
    ),
    Row("the same with `data.keep_root_category`", changed(_grouped), options={"keep_root_category": True}),
    Row(
        "the same, but the root has boxes",
        changed(_grouped, lambda c: c["annotations"].append({**EXTRA, "category_id": 0})),
        boxes={1: [BOX], 2: [BOX, [5, 5, 15, 15]], 3: [BOX]},
    ),
    # ---- areas
    Row(
        "`area` 0",
        annotation(area=0),
        said=("'area' is not above 0 and finite, given width × height: 1; first: annotation 2 of image 2: 0",),
        report="mmdet#4436",
    ),
    Row("`area` null", annotation(area=None), report="mmdet#804"),
    Row("`area` missing", annotation(area=ABSENT)),
    Row("`area` negative", annotation(area=-5), said=("'area' is not above 0",)),
    Row("`area` 10^400", annotation(area=10**400), said=("'area' is not above 0",)),
    Row("`area` NaN", annotation(area=float("nan")), said=("'area' is not above 0 and finite",)),
    Row("`area` 1.2 · 10^9", annotation(area=1.2e9)),
    Row(
        "`area` as text",
        annotation(area="3000"),
        "annotation 2: expected 'area' as a number, got '3000'",
        report="kili-python-sdk#1735",
    ),
    # ---- boxes
    Row(
        "`bbox` empty",
        annotation(bbox=[]),
        said=("without a box ('bbox' empty or null, no mask), left out: 1; first: annotation 2",),
        boxes=WITHOUT_SECOND,
        report="mmdet#6351",
    ),
    Row("`bbox` null", annotation(bbox=None), said=("without a box",), boxes=WITHOUT_SECOND, report="sahi#1028"),
    Row(
        "`bbox` missing, no mask",
        annotation(bbox=ABSENT),
        "annotation 2: expected 'bbox' as four numbers (x, y, width, height), got the keys 'id', 'image_id'",
    ),
    Row(
        "`bbox` of three numbers",
        annotation(bbox=[1, 2, 3]),
        "annotation 2: expected 'bbox' as four numbers (x, y, width, height), got [1, 2, 3]",
    ),
    Row("`bbox` of five numbers", annotation(bbox=[1, 2, 3, 4, 5]), "expected 'bbox' as four numbers"),
    Row("`bbox` of texts", annotation(bbox=["20", "20", "60", "50"]), "got ['20', '20', '60', '50']"),
    Row("`bbox` as an object", annotation(bbox={"x": 1}), "got {'x': 1}"),
    Row("`bbox` as text", annotation(bbox="20 20 60 50"), "expected 'bbox' as four numbers"),
    Row("`bbox` with NaN", annotation(bbox=[1, 2, float("nan"), 4]), "expected 'bbox' as four numbers"),
    Row("`bbox` with infinity", annotation(bbox=[1, 2, float("inf"), 4]), "expected 'bbox' as four numbers"),
    Row("`bbox` with null", annotation(bbox=[1, 2, None, 4]), "got [1, 2, None, 4]"),
    Row("`bbox` with true", annotation(bbox=[1, 2, True, 4]), "got [1, 2, True, 4]"),
    Row("`bbox` with 10^400", annotation(bbox=[1, 2, 10**400, 4]), "got [1, 2, a number of 1329 bits, 4]"),
    Row("`bbox` with 10^300", annotation(bbox=[1, 2, 1e300, 4]), "expected 'bbox' as four numbers"),
    Row(
        "`bbox` of 100,000 numbers",
        changed(lambda c: c["annotations"][1].update(bbox=[1] * 10**5)),
        "got [1, 1, 1, 1, 1, 1, 1, 1, ...]",
    ),
    Row(
        "a box of width 0",
        annotation(bbox=[5, 5, 0, 20]),
        said=("with a side of 0 or below, left out: 1; first: annotation 2 of image 2: [5, 5, 0, 20]",),
        boxes=WITHOUT_SECOND,
        report="PaddleDetection#1205",
    ),
    Row(
        "a box of negative sides",
        annotation(bbox=[80, 70, -60, -50]),
        said=("with a side of 0 or below, left out: 1",),
        boxes=WITHOUT_SECOND,
        report="EISeg#85",
    ),
    Row(
        "a box 0.9 px wide",
        annotation(bbox=[5, 5, 0.9, 20]),
        said=("narrower or lower than 1 px, left out: 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row("a box 1 px wide", annotation(bbox=[5, 5, 1, 20]), boxes=_second([5, 5, 1, 20])),
    Row(
        "a box beside its image",
        annotation(bbox=[160, 5, 20, 20]),
        said=("outside of their image, left out: 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "a box of which 0.5 px lie in the image",
        annotation(bbox=[159.5, 5, 20, 20]),
        said=("narrower or lower than 1 px, left out: 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "a box that reaches over the edge",
        annotation(bbox=[150, 110, 20, 20]),
        said=("1 px or more over their image's edge, cut there: 1; first: annotation 2",),
        boxes=_second([150, 110, 10, 10]),
    ),
    Row(
        "a box that reaches 0.3 px over the edge",
        annotation(bbox=[140, 100, 20.25, 20.25]),
        boxes=_second([140, 100, 20, 20]),
    ),
    Row(
        "every box between 0 and 1 (normalised)",
        annotations(bbox=[0.1, 0.2, 0.5, 0.5]),
        "every 'bbox' lies between 0 and 1, as if it were a share of the image",
    ),
    Row(
        "one box between 0 and 1",
        annotation(bbox=[0.1, 0.2, 0.5, 0.5]),
        said=("narrower or lower than 1 px, left out: 1",),
        boxes=WITHOUT_SECOND,
    ),
    Row("`iscrowd` 1", annotation(iscrowd=1)),
    Row(
        "`iscrowd` missing, null or false",
        changed(
            lambda c: [r.update(iscrowd=v) for r, v in zip(c["annotations"], (None, False, 0), strict=True)],
            lambda c: c["annotations"][2].pop("iscrowd"),
        ),
    ),
    Row("`iscrowd` as text", annotation(iscrowd="0"), "annotation 2: expected 'iscrowd' as 0 or 1, got '0'"),
    Row("`iscrowd` 2", annotation(iscrowd=2), "annotation 2: expected 'iscrowd' as 0 or 1, got 2"),
    Row("`ignore` 1", annotation(ignore=1), said=("marked 'ignore', taken as crowds",)),
    # ---- masks without boxes
    Row(
        "a polygon, no `bbox`",
        annotation(bbox=ABSENT, segmentation=[[20, 20, 80, 20, 80, 70, 20, 70]]),
        said=("given the box of their mask: 1",),
        report="maskrcnn-benchmark#480",
    ),
    Row(
        "two polygons, `bbox` null",
        annotation(bbox=None, segmentation=[[20, 20, 40, 20, 40, 30], [60, 60, 80, 60, 80, 70]]),
        said=("given the box of their mask: 1",),
        report="JSON2YOLO#83",
    ),
    Row(
        "a mask of runs, no `bbox`",
        annotation(bbox=ABSENT, segmentation={"size": [120, 160], "counts": [20 * 120 + 20, *[50, 70] * 60]}),
        said=("given the box of their mask: 1",),
    ),
    Row(
        "a mask of runs as COCO's text, no `bbox`",
        annotation(bbox=ABSENT, segmentation=_mask_as_text()),
        said=("given the box of their mask: 1",),
    ),
    Row(
        "a mask of runs that are no numbers, no `bbox`",
        annotation(bbox=ABSENT, segmentation={"size": [120, 160], "counts": ["a"]}),
        "annotation 2: expected 'bbox'",
    ),
    Row(
        "a mask of height 0, `bbox` empty",
        annotation(bbox=[], segmentation={"size": [0, 160], "counts": [1, 2]}),
        said=("without a box",),
        boxes=WITHOUT_SECOND,
    ),
    Row(
        "a polygon of an odd number of values, `bbox` empty",
        annotation(bbox=[], segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        said=("without a box",),
        boxes=WITHOUT_SECOND,
    ),
    Row("a polygon beside a `bbox`", annotation(segmentation=[[0, 0, 9, 0, 9, 9]])),
    # ---- images
    Row(
        "an image without `id`",
        image(id=ABSENT),
        "image number 2 of the list: expected the key 'id', got the keys 'file_name', 'width', 'height'",
    ),
    Row(
        "an image without `file_name`",
        image(file_name=ABSENT),
        "image 2: expected the key 'file_name' with a text, got the keys 'id'",
        report="detectron2#946",
    ),
    Row(
        "an image with `filename` in place of `file_name`",
        image(file_name=ABSENT, filename="im2.png"),
        "got the keys 'id', 'width', 'height', 'filename'",
        report="Mask_RCNN#1439",
    ),
    Row(
        "an image without `file_name`, with `coco_url`",
        image(file_name=ABSENT, coco_url="http://images.example/val/im2.png?size=1"),
        said=("given the last part of their URL: 1; first: image 2: 'im2.png'",),
        report="SoftTeacher#105",
    ),
    Row(
        "an image's `file_name` is a number",
        image(file_name=7),
        "image 2: expected 'file_name' as a text of 1 to 4096 characters, got 7",
    ),
    Row("an image's `file_name` is empty", image(file_name=""), "expected 'file_name' as a text"),
    Row("an image's `file_name` with a zero byte", image(file_name="a\0b"), "got 'a\\x00b'"),
    Row(
        "an image's `file_name` of a million characters",
        image(file_name="a" * 10**6),
        "expected 'file_name' as a text of 1 to 4096",
    ),
    Row("an image's `file_name` with a terminal escape", image(file_name="\x1b]0;x\x07.png"), "'\\x1b]0;x\\x07.png'"),
    Row(
        "two images of one file",
        image(file_name="im1.png"),
        said=("name a file which another image names too: 1; first: images 1 and 2: 'im1.png'",),
    ),
    Row(
        "`file_name` with backslashes",
        _in_folder("sub\\im1.png", "sub\\im2.png", "sub\\im3.png"),
        said=("another spelling",),
        report="active#218",
    ),
    Row(
        "`file_name` as `C:\\data\\im1.png`",
        _names(*(f"C:\\data\\im{i}.png" for i in (1, 2, 3))),
        said=("found by another spelling of their name",),
        report="Mask_RCNN#616",
    ),
    Row(
        "`file_name` as `/data/images/im1.png`",
        _names(*(f"/no/such/folder/im{i}.png" for i in (1, 2, 3))),
        said=("found by another spelling of their name",),
    ),
    Row("`file_name` with `%20` for spaces", _with_spaces, said=("found by another spelling of their name",)),
    Row(
        "`C:\\a\\im1.png` and `C:\\b\\im1.png`, one file",
        _names("C:\\a\\im1.png", "C:\\b\\im1.png", "im3.png"),
        "the files 'C:\\\\a\\\\im1.png' and 'C:\\\\b\\\\im1.png' are both taken for 'im1.png'",
    ),
    Row("`width` −1", image(width=-1), "image 2: expected 'width' as a whole number from 1 to 1000000, got -1"),
    Row("`width` as text", image(width="160"), "expected 'width' as a whole number from 1 to 1000000, got '160'"),
    Row("`width` 160.5", image(width=160.5), "got 160.5"),
    Row("`width` 10^400", image(width=10**400), "got a number of 1329 bits"),
    Row("`width` 160.0", image(width=160.0)),
    Row(
        "`width` and `height` missing, null or 0",
        changed(
            lambda c: c["images"][0].pop("width"),
            lambda c: c["images"][1].update(width=None),
            lambda c: c["images"][2].update(height=0),
        ),
    ),
    Row(
        "`width` and `height` exchanged",
        image(width=120, height=160),
        "im2.png' is 160×120 pixels, but its annotations are made for 120×160",
        report="detectron2#863",
    ),
    Row(
        "the same with `data.skip_bad`",
        image(width=120, height=160),
        said=("images that cannot be used, left out", "annotations of images that were left out: 1"),
        boxes=TWO,
        options={"skip_bad": True},
    ),
    # ---- lists
    Row(
        "`annotations` null",
        top(annotations=None),
        said=("'annotations' is null, taken as an empty list",),
        boxes={1: [], 2: [], 3: []},
    ),
    Row("`annotations` missing", top(annotations=ABSENT), boxes={1: [], 2: [], 3: []}),
    Row(
        "`annotations` an object",
        top(annotations={"1": {}}),
        "expected a list under the key 'annotations', got an object",
    ),
    Row("`annotations` a text", top(annotations="none"), "expected a list under the key 'annotations', got text"),
    Row(
        "an annotation is null",
        more("annotations", None),
        "annotation number 4 of the list: expected an object, got null",
    ),
    Row(
        "an annotation is a list",
        more("annotations", []),
        "annotation number 4 of the list: expected an object, got a list",
    ),
    Row("`images` null", top(images=None), "expected a list under the key 'images', got null"),
    Row("`images` missing", top(images=ABSENT), "expected a list under the key 'images', got no such key"),
    Row("`images` an object", top(images={}), "expected a list under the key 'images', got an object"),
    Row("`images` empty", top(images=[], annotations=[]), "holds no images"),
    Row("an image is a text", more("images", "im4.png"), "image number 4 of the list: expected an object, got text"),
    Row("`categories` missing", top(categories=ABSENT), "expected a list under the key 'categories', got no such key"),
    Row(
        "`categories` an object",
        top(categories={"1": "box"}),
        "expected a list under the key 'categories', got an object",
    ),
    # ---- the text of the file
    Row("UTF-8 with a byte order mark", encoded("utf-8-sig"), report="cityjson/cjio#21"),
    Row("UTF-16 with a byte order mark", encoded("utf-16"), report="gc-scripts-hub#234"),
    Row("UTF-16 without a byte order mark", encoded("utf-16-le")),
    Row("UTF-32", encoded("utf-32")),
    Row("Latin-1 with an é", written('{"images": "é"}'.encode("latin-1")), "train.json' is not JSON: "),
    Row("an empty file", written(b""), "is empty"),
    Row("no JSON", written(b"images: 3\n"), "train.json' is not JSON: "),
    Row("JSON that ends in the middle", written(b'{"images": [{"id": 1,'), "train.json' is not JSON: "),
    Row("lists nested 100,000 deep", written(b"[" * 10**5 + b"]" * 10**5), "is nested too deeply"),
    Row("objects nested 100,000 deep", written(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "is nested too deeply"),
    Row("a number of 5000 digits", written(b'{"images": [{"id": ' + b"9" * 5000 + b"}]}"), "train.json' is not JSON: "),
    Row(
        "a list of detections in place of a data set",
        written(b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'),
        "expected an object, got a list; a list of detections is a file of results",
    ),
    Row("a number in place of a data set", written(b"7"), "expected an object, got a number"),
    Row("null in place of a data set", written(b"null"), "expected an object, got null"),
]
