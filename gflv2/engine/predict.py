"""Prediction on images in any usual form, and on whole folders of files."""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gflv2.data.batch import collate
from gflv2.data.coco import load_coco
from gflv2.data.files import IMAGE_SUFFIXES
from gflv2.data.problems import shown, shown_path
from gflv2.data.transforms import at_scale, preprocess
from gflv2.engine.export.onnx_detector import OnnxDetector
from gflv2.engine.formats import LabelFiles
from gflv2.engine.image_sources import ImageError, read_source
from gflv2.engine.results import Result
from gflv2.engine.tiles import merge, tiles_of
from gflv2.engine.tta import detect_views
from gflv2.files import write_whole
from gflv2.models.detector import SingleStageDetector
from gflv2.ops import Detections
from gflv2.ops.checks import check_number

_WRITE_EVERY = 30.0  # seconds

__all__ = ["FilesReport", "ImageError", "expand", "predict", "predict_files"]


def predict(
    model: SingleStageDetector | OnnxDetector,
    source: Any,
    *,
    score_thr: float | None = None,
    iou_thr: float | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    bgr: bool = False,
    tiles: int | None = None,
    overlap: float = 0.2,
) -> Result | list[Result]:
    """Detect objects in one image or several.

    Args:
        model: a ``GFLV2``, which runs on its own device in evaluation mode, undone afterwards; or an exported file as
            ``gflv2.engine.export.OnnxDetector``, whose results have no distributions.
        source: a path, a PIL image, a uint8 array (H, W, 3) in RGB order (also (H, W), (H, W, 1), (H, W, 4)), a uint8
            tensor (3, H, W), or a list or tuple of these. Files and PIL images are turned upright by their EXIF
            orientation.
        score_thr: least joint score, exclusive. None, here and in the next two: the value of ``model.config.test``.
        iou_thr: of the class-wise non-maximum suppression.
        max_detections: kept per image.
        batch_size: images that go through the network together. Smaller images of a batch are padded to the
            largest, which changes their results a little; with 1 each result depends on its own image only.
        bgr: the channels of arrays and tensors are blue, green, red (OpenCV's order).
        tiles: cut each image into squares of this side in pixels, predict each as an image of its own, and merge
            (`gflv2.engine.tiles`): for small objects in large images. None: images as a whole.
        overlap: least part of their side that neighbouring tiles share; objects should be smaller than that part.

    Returns:
        A ``Result``, for a list or tuple one ``Result`` each. Boxes are in pixels of the original image; those
        without area are dropped. ``model.config.test.tta`` may ask for several views of each image.

    Raises:
        FileNotFoundError, gflv2.engine.predict.ImageError: a file is missing, or not a readable image; the message
            names it.
        TypeError, ValueError: another kind of source, dtype or shape.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected an integer ≥ 1, got {batch_size!r}")
    limits = model.config.test.options(score_thr=score_thr, iou_thr=iou_thr, max_detections=max_detections)
    if not 0 <= limits["score_thr"] <= 1:
        raise ValueError(f"score_thr: expected a number from 0 to 1, got {limits['score_thr']!r}")
    if tiles is not None:
        size = (tiles, overlap, batch_size)
        if not isinstance(source, (list, tuple)):
            return _predict_tiles(model, *read_source(source, bgr=bgr), *size, limits)
        images = (read_source(item, bgr=bgr, name=f"source[{number}]") for number, item in enumerate(source))
        return [_predict_tiles(model, *image, *size, limits) for image in images]
    if isinstance(source, (list, tuple)):
        results = []
        for start in range(0, len(source), batch_size):
            part = enumerate(source[start : start + batch_size], start)
            images = [read_source(item, bgr=bgr, name=f"source[{number}]") for number, item in part]
            results += _predict_batch(model, images, limits)
        return results
    return _predict_batch(model, [read_source(source, bgr=bgr)], limits)[0]


def _predict_tiles(
    model: SingleStageDetector | OnnxDetector,
    image: Tensor,
    path: Path | None,
    side: int,
    overlap: float,
    batch_size: int,
    limits: dict[str, Any],
) -> Result:
    places = tiles_of(image.shape[1], image.shape[2], side, overlap)
    parts: list[Result] = []
    for start in range(0, len(places), batch_size):
        parts += _predict_batch(model, [(tile.of(image), None) for tile in places[start : start + batch_size]], limits)
    options = {name: limits[name] for name in ("iou_thr", "max_detections")}
    return merge(parts, places, image.permute(1, 2, 0).numpy(), path, **options)


def _predict_batch(
    model: SingleStageDetector | OnnxDetector, images: Sequence[tuple[Tensor, Path | None]], limits: dict[str, Any]
) -> list[Result]:
    data, tta = model.config.data, model.config.test.tta
    if isinstance(model, OnnxDetector):
        batch = collate([preprocess(image, data) for image, _ in images], data.pad_divisor)
        found = model.detect(batch.images, batch.image_sizes, batch.scale_factors, **limits)
        pairs = zip(images, found, strict=True)
        return [_without_distributions(detections, model, image, path) for (image, path), detections in pairs]
    device = next(model.parameters()).device
    views = [
        collate([preprocess(image, at_scale(data, scale)) for image, _ in images], data.pad_divisor).to(device)
        for scale in tta.scales
    ]
    head = model.bbox_head
    has_distributions = hasattr(head, "integral")
    with _evaluating(model), torch.inference_mode():
        found, origins = detect_views(model, views, flip=tta.flip, return_distributions=has_distributions, **limits)
    projection = head.integral.project.detach().float().cpu() if has_distributions else None
    names = tuple(model.class_names)
    results = []
    for (image, path), detections, origin in zip(images, found, origins, strict=True):
        boxes = detections.boxes.cpu()
        solid = _have_area(boxes)
        points, strides, levels = (values.cpu()[solid] for values in origin)
        # Indexing outside of inference mode also makes ordinary tensors of them.
        results.append(
            Result(
                boxes=boxes[solid],
                scores=detections.scores.cpu()[solid],
                labels=detections.labels.cpu()[solid],
                class_names=names,
                image=image.permute(1, 2, 0).numpy(),
                path=path,
                distributions=detections.distributions.cpu()[solid] if has_distributions else None,
                projection=projection,
                points=points,
                strides=strides,
                levels=levels,
                category_ids=tuple(model.category_ids),
            )
        )
    return results


def _without_distributions(detections: Detections, model: OnnxDetector, image: Tensor, path: Path | None) -> Result:
    """The result of an exported file, which gives boxes, scores and labels alone."""
    solid = _have_area(detections.boxes)
    boxes, scores, labels = (value[solid] for value in detections[:3])
    pixels, ids = image.permute(1, 2, 0).numpy(), tuple(model.category_ids)
    return Result(boxes, scores, labels, tuple(model.class_names), pixels, path, category_ids=ids)


def _have_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


@contextmanager
def _evaluating(model: SingleStageDetector) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as it was (a frozen stage may differ from its parent)."""
    states = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in states:
            module.training = training


@dataclass
class FilesReport:
    """What ``predict_files`` did.

    Attributes:
        json: the file with all detections.
        pictures: one for each image that could be read; empty where none were asked for.
        images, detections: their numbers; detections are those in the JSON file.
        failures: path or pattern → what was wrong with it.
    """

    json: Path
    pictures: list[Path]
    images: int
    detections: int
    failures: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.detections} detections in {self.images} images: {self.json}"]
        if self.failures:
            lines.append(f"{len(self.failures)} could not be read:")
            # A name can hold escapes that a terminal would obey.
            named = ((name if name.isprintable() else shown_path(name), why) for name, why in self.failures.items())
            lines += [f"  {name}: {reason}" for name, reason in named]
        return "\n".join(lines)


def expand(patterns: str | Path | Sequence[str | Path]) -> tuple[list[Path], dict[str, str]]:
    """Files named by paths, folders and patterns (``**`` descends), each once.

    Of a folder the images directly in it are taken, hidden ones are not.

    Returns:
        The files in the order of the patterns, sorted within each; and the patterns that gave nothing, with the reason.
    """
    if isinstance(patterns, (str, Path)):
        patterns = [patterns]
    files: dict[Path, None] = {}
    failures: dict[str, str] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            inside = (p for p in path.iterdir() if not p.name.startswith("."))
            found, problem = sorted(p for p in inside if _is_image(p)), "the folder holds no image files"
        elif path.exists():
            found, problem = [path], ""
        elif glob.has_magic(str(path)):
            matches = (Path(match) for match in glob.glob(str(path), recursive=True))
            found, problem = sorted(p for p in matches if _is_image(p)), "no image file matches"
        else:
            found, problem = [], "no such file"
        files.update(dict.fromkeys(found))
        if not found:
            failures[str(pattern)] = problem
    return list(files), failures


def predict_files(
    model: SingleStageDetector | OnnxDetector,
    patterns: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    threshold: float = 0.3,
    score_thr: float | None = None,
    iou_thr: float | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    distributions: bool = False,
    pictures: bool = True,
    formats: Sequence[str] = (),
    tiles: int | None = None,
    overlap: float = 0.2,
    categories: str | Path | None = None,
    progress: bool = True,
) -> FilesReport:
    """Predict files, folders and patterns; write a picture of each image and one COCO-style JSON file.

    A file that cannot be read, or that memory does not do for, does not stop the others: it is listed in the report.
    Results are written as they come, the JSON file every half minute and at the end, whatever ends it.

    Args:
        model, score_thr, iou_thr, max_detections, batch_size, tiles, overlap: as ``predict``.
        patterns: see ``expand``.
        output: folder, created where missing: ``detections.json`` (``images``, ``categories`` and ``annotations``
            with their ``score``) and a JPEG named after each image.
        threshold: least score of the boxes that are drawn. The JSON file holds all above ``score_thr``.
        distributions: draw the distributions of each image's best box beside it.
        pictures: False writes the JSON file only.
        formats: further formats, "yolo", "voc", "csv" (`gflv2.engine.formats.LabelFiles`).
        categories: a COCO file; the JSON file takes the ids of its categories of the same names. None:
            ``model.category_ids``, those of the annotations that it was trained on.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: the patterns name no file at all.
        ValueError: a picture would overwrite one of the images; ``categories`` lacks a class of the model; a number is
            out of its range.
    """
    from tqdm import tqdm

    files, failures = expand(patterns)
    if not files:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items()) or "no pattern was given"
        raise FileNotFoundError(f"nothing to predict ({reasons})")
    check_number(threshold, "threshold", least=0, most=1)
    if distributions and isinstance(model, OnnxDetector):
        raise ValueError("distributions: an exported file gives none; predict with the checkpoint")
    ids = list(model.category_ids) if categories is None else _category_ids(model.class_names, categories)
    output = Path(output)
    targets = _picture_paths(files, output) if pictures else {}
    output.mkdir(parents=True, exist_ok=True)
    labels = LabelFiles(output, formats, model.class_names)
    found = _Detections(output / "detections.json", model.class_names, ids)
    settings = {"score_thr": score_thr, "iou_thr": iou_thr, "max_detections": max_detections, "batch_size": batch_size}
    settings |= {"tiles": tiles, "overlap": overlap}
    written: list[Path] = []

    def finish(file: Path, result: Result) -> None:
        result.path = file
        found.add(result)
        labels.add(result)
        if pictures:
            written.append(result.save(targets[file], threshold, distributions))

    try:
        with tqdm(total=len(files), unit="image", disable=not progress) as bar:
            for start in range(0, len(files), batch_size):
                part, images = files[start : start + batch_size], []
                for file in part:
                    try:
                        images.append((file, read_source(file)[0]))
                    except (OSError, ValueError) as error:
                        failures[str(file)] = str(error)
                failures |= _each(model, images, settings, finish)
                bar.update(len(part))
    except BaseException:
        with suppress(OSError):  # what ended it is told, not what follows from it
            found.write()
        raise
    found.write()
    content = found.content
    return FilesReport(found.path, written, len(content["images"]), len(content["annotations"]), failures)


def _category_ids(names: Sequence[str], categories: str | Path) -> list[int]:
    index = load_coco(categories)
    number_of = {str(row["name"]): number for number, row in index.cats.items()}
    if missing := [name for name in names if name not in number_of]:
        raise ValueError(
            f"{categories}: {len(missing)} of the model's {len(names)} classes are not among its categories; first: "
            f"{shown(missing[0])}"
        )
    return [number_of[name] for name in names]


def _each(
    model: SingleStageDetector,
    images: Sequence[tuple[Path, Tensor]],
    settings: dict[str, Any],
    finish: Callable[[Path, Result], None],
) -> dict[str, str]:
    """Predict a batch and hand on each result. Where memory does not do, one image after the other.

    Returns:
        Those that memory does not do for even so: path → what was wrong.
    """
    try:
        results = predict(model, [image for _, image in images], **settings)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        if len(images) == 1:
            return {str(images[0][0]): _too_large(images[0][1])}
        parts = [_each(model, [image], settings, finish) for image in images]
        return {file: reason for part in parts for file, reason in part.items()}
    failures = {}
    for (file, image), result in zip(images, results, strict=True):
        try:
            finish(file, result)
        except MemoryError:  # its picture
            failures[str(file)] = _too_large(image)
    return failures


def _lacks_memory(error: BaseException) -> bool:
    """torch's allocator for CPUs raises a plain RuntimeError."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _too_large(image: Tensor) -> str:
    return f"there is not enough memory for its {image.shape[2]}×{image.shape[1]} pixels"


class _Detections:
    """The JSON file of all detections, which grows on the disk too while a long prediction runs.

    Attributes:
        content: in COCO's form.
    """

    def __init__(self, path: Path, names: Sequence[str], ids: list[int]) -> None:
        self.path, self._ids = path, ids
        categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
        self.content: dict[str, list] = {"images": [], "categories": categories, "annotations": []}
        self._next = time.monotonic() + _WRITE_EVERY

    def add(self, result: Result) -> None:
        """Append one image and its detections."""
        image_id = len(self.content["images"]) + 1
        height, width = result.size
        image = {"id": image_id, "file_name": str(result.path), "height": height, "width": width}
        self.content["images"].append(image)
        annotations = self.content["annotations"]
        for record in result.to_coco(image_id, self._ids):
            area = round(record["bbox"][2] * record["bbox"][3], 2)
            annotations.append({"id": len(annotations) + 1, **record, "area": area, "iscrowd": 0})
        if time.monotonic() > self._next:
            self.write()

    def write(self) -> None:
        start = time.monotonic()
        write_whole(self.path, json.dumps(self.content))
        # A file that takes long to write is written less often.
        self._next = time.monotonic() + max(_WRITE_EVERY, 20 * (time.monotonic() - start))


def _is_image(path: Path) -> bool:
    # A pipe or a link to nothing too: its reading will tell.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _picture_paths(files: list[Path], output: Path) -> dict[Path, Path]:
    """One path in ``output`` for the picture of each file; equal names are numbered, no image is overwritten."""
    images = {file.resolve() for file in files}
    paths: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 2
        while name in taken:
            name, number = f"{file.stem}_{number}", number + 1
        taken.add(name)
        paths[file] = output / f"{name}.jpg"
        if paths[file].resolve() in images:
            raise ValueError(
                f"output: the picture of {str(file)!r} would overwrite an image in {str(output)!r}; name another folder"
            )
    return paths
