"""One run of a study: train or go on training, look at the detector, write down what came out."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gflv2 import checkpoint
from gflv2.config import Config
from gflv2.data import CocoDetection, shapes
from gflv2.engine.analysis import analyze
from gflv2.engine.run_folder import held
from gflv2.engine.study.plan import DataSet, Run, Study, folder_name
from gflv2.engine.train import train
from gflv2.files import write_whole
from gflv2.models.detector import SingleStageDetector
from gflv2.shown import shown
from gflv2.version import __version__

_log = logging.getLogger("gflv2")

AP = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
PEARSON = (
    "score_iou_points", "quality_iou_points", "top1_iou_points",
    "score_iou_detections", "top1_iou_detections", "score_iou_near", "top1_iou_near",
)  # fmt: skip
METRICS = (*AP, *PEARSON)
"""What is measured of a run: names of ``Analysis.ap`` and ``Analysis.pearson``."""

FACTS = (
    "images", "objects", "points", "detections", "epochs", "quality_init",
    "seconds", "device", "threads", "torch", "gflv2",
)  # fmt: skip
"""What else is written down of it."""

_MARK = "generated.json"  # beside a generated data set: what it was made of

# Settings that change how long a run takes, but not what comes out.
_WITHOUT_EFFECT = {
    "name": None,
    "authors": None,
    "data": {"train", "val", "train_images", "val_images", "workers", "cache_images"},
    "train": {"save_every_steps", "start_timeout"},
}
# Settings of the quality predictor, which not every head has.
_OF_THE_PREDICTOR = {"quality_init", "reg_topk", "add_topk", "add_mean", "add_variance", "reg_channels"}


def read_result(study: Study, run: Run, folder: Path) -> dict[str, Any] | None:
    """The result of a run that is complete; None where there is none.

    Raises:
        ValueError: it was made with other settings or data.
    """
    file = folder / run.place / "result.json"
    try:
        found = _record(file, (*METRICS, "settings"))
    except FileNotFoundError:
        return None
    _check_same(file, found, study, run)
    return found


def _record(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """What a run wrote down about itself."""
    expected = f"study: {file} is no record of a run: expected a JSON mapping with {', '.join(keys)}"
    then = "remove it to train again"
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{expected}, got no JSON: {error}; {then}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{expected}, got {shown(found)}; {then}")
    absent = [key for key in keys if key not in found]
    if absent:
        raise ValueError(f"{expected}, got none of the name {absent[0]}; {then}")
    if not isinstance(found["settings"], dict):
        raise ValueError(f"{expected} (a mapping), got {shown(found['settings'])}; {then}")
    return found


def run_once(study: Study, run: Run, folder: Path, *, device: str, progress: bool) -> dict[str, Any]:
    """Train and look, from where an earlier call was stopped.

    Raises:
        FileExistsError: another process has this run.
    """
    place = folder / run.place
    place.mkdir(parents=True, exist_ok=True)
    with held(place):
        done = read_result(study, run, folder)
        if done is not None:
            return done
        config = study.config(run.row, run.data, run.seed)
        paths = data_paths(run.data, folder)
        start = place / "started.json"
        settings = settings_of(study, run)
        if any((place / "train" / "checkpoints").glob("*.ckpt")) and start.is_file():
            _check_same(start, _record(start, ("settings",)), study, run)
            resume: dict[str, Any] = {"resume": place / "train"}
        else:
            resume = {"output": place / "train", "overwrite": True}
            write_whole(start, json.dumps({"settings": settings}, indent=1))
        trained = train(
            config,
            train_data=paths["train"],
            train_images=paths["train_images"],
            pretrained=study.pretrained,
            progress=progress,
            **_machine(device),
            **resume,
        )
        # The last weights, not the best: a choice on the validation data would favour rows whose AP jumps about.
        model = load(trained.last_weights).to(device)
        look = analyze(
            model,
            paths["val"],
            image_dir=paths["val_images"],
            workers=config.data.workers,
            sides=0,
            progress=False,
        )
        result = {
            **{name: _number(look.ap[name]) for name in AP},
            **{name: _number(look.pearson.get(name, math.nan)) for name in PEARSON},
            "images": look.images,
            "objects": look.objects,
            "points": look.relations["score_iou_points"].samples if "score_iou_points" in look.relations else 0,
            "detections": look.detections,
            "epochs": config.train.epochs,
            "quality_init": settings["config"]["model"]["head"].get("quality_init"),
            "seconds": trained.seconds,
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "gflv2": __version__,
            "settings": settings,
        }
        write_whole(place / "result.json", json.dumps(result, indent=1))
        start.unlink(missing_ok=True)
        shutil.rmtree(place / "train" / "checkpoints", ignore_errors=True)  # three times the weights
        return result


def load(weights: Path) -> SingleStageDetector:
    """The detector that a run left."""
    content = checkpoint.read(weights)
    config, names, _ = checkpoint.resolve(content)  # the run's own, with the classes of its training data
    model = SingleStageDetector(config, class_names=names, category_ids=content.category_ids)
    checkpoint.load_weights(model, content)
    return model


def weights_of(run: Run, folder: Path) -> Path:
    return folder / run.place / "train" / "weights" / "last.pt"


def data_paths(data: DataSet, folder: Path) -> dict[str, Any]:
    """Where a data set lies; a generated one is made where it is missing."""
    if data.generate is None:
        return {name: getattr(data, name) for name in ("train", "val", "train_images", "val_images")}
    place = _generated_place(data, folder)
    place.mkdir(parents=True, exist_ok=True)
    while not is_generated(data, folder):
        try:
            with held(place):
                if is_generated(data, folder):  # meanwhile, by another process, which may train on it
                    break
                _log.info("generating the data set %s in %s", data.name, place)
                shapes.generate(place, **data.generate)
                write_whole(place / _MARK, json.dumps(dict(data.generate)))
        except FileExistsError:
            time.sleep(0.5)  # another process makes it
    return {
        "train": str(place / "annotations" / "instances_train.json"),
        "val": str(place / "annotations" / "instances_val.json"),
        "train_images": str(place / "train"),
        "val_images": str(place / "val"),
    }


def is_generated(data: DataSet, folder: Path) -> bool:
    """Whether a data set that is to be generated is there already.

    Raises:
        ValueError: one of that name and other settings is, which runs in this folder were trained on.
    """
    if data.generate is None:
        return False
    mark, wanted = _generated_place(data, folder) / _MARK, dict(data.generate)
    if not mark.is_file():
        return False
    try:
        there = json.loads(mark.read_text())
    except ValueError:
        there = "a broken record"
    if there != wanted:
        raise ValueError(
            f"study: {mark.parent}: expected the data set {data.name!r} of {shown(wanted)}, found "
            f"{shown(there)}; take another output, or remove this folder to generate it anew"
        )
    return True


def _generated_place(data: DataSet, folder: Path) -> Path:
    return folder / "data" / folder_name(data.name)


def validation_set(config: Config, paths: Mapping[str, Any]) -> CocoDetection:
    return CocoDetection(paths["val"], paths["val_images"], config=config.data, train=False)


def _machine(device: str) -> dict[str, Any]:
    if device.startswith("cuda"):
        return {"accelerator": "gpu", "devices": [torch.device(device).index or 0]}
    return {"accelerator": device, "devices": 1}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# ---- the same run? -------------------------------------------------------------------------------


def settings_of(study: Study, run: Run) -> dict[str, Any]:
    """What a result depends on: the settings, the start, and the data."""
    data, values = run.data, study.config(run.row, run.data, run.seed).to_dict()
    for section, names in _WITHOUT_EFFECT.items():
        if names is None:
            values.pop(section)
        else:
            values[section] = {key: value for key, value in values[section].items() if key not in names}
    head = values["model"]["head"]
    if head["kind"] != "gfl" or head["quality"] is None:
        values["model"]["head"] = {key: value for key, value in head.items() if key not in _OF_THE_PREDICTOR}
    if data.generate is not None:
        source: dict[str, Any] = {"generate": dict(data.generate)}
    else:
        source = {name: _digest(Path(str(getattr(data, name)))) for name in ("train", "val")}
    found = {"config": values, "pretrained": study.pretrained, "data": source}
    teacher = values["train"]["distill"]["teacher"]
    return found if teacher is None else {**found, "teacher": _digest(Path(teacher))}


def _digest(path: Path) -> str:
    """Of a file its SHA-256; a folder counts by its name, published weights by theirs."""
    if not path.is_file():
        return path.name
    found = path.stat()
    return _digest_of_file(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    """``size``, ``changed``: with others it is another file. Every look at a result asks for it again."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_same(file: Path, found: Mapping[str, Any], study: Study, run: Run) -> None:
    old, new = _flat(found["settings"]), _flat(json.loads(json.dumps(settings_of(study, run))))
    # A setting that a newer version brought has the default with which an older one ran.
    default = _flat({"config": Config().to_dict()})
    for key in new.keys() - old.keys():
        if key in default:
            old[key] = default[key]
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(
            f"study: {file}: {key.removeprefix('config.')} was {shown(old.get(key))}, now {shown(new.get(key))}{more}; "
            "take another output, or remove the folder of this run"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
