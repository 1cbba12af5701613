"""A detector trained on one data set in three formats."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from gflv2.data import shapes
from gflv2.engine.train import train
from tests.data.formats import write_voc, write_yolo

# The lightest detector that has every part.
TINY = {
    "model": {
        "backbone": {"name": "tf_efficientnet_lite0", "frozen_stages": 1},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 64, "short_side": [64, 64], "test_short_side": 64, "workers": 0},
    "train": {"epochs": 2, "batch_size": 4, "base_batch_size": 4, "optimizer": "adamw", "warmup_iterations": 2},
}


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), seed=3, train=8, val=4, size=64)


def test_training_and_evaluation_are_the_same_from_coco_yolo_and_voc(sample_set, tmp_path) -> None:
    sources = {"coco": {}, "yolo": {}, "voc": {}}
    for split in ("train", "val"):
        file, images = (getattr(sample_set, name) for name in (split, f"{split}_images"))
        content = json.loads(file.read_text())
        for row in content["annotations"]:
            del row["area"]  # of the shape, not of the box, which is all that the other formats have
        coco = tmp_path / f"{split}.json"
        coco.write_text(json.dumps(content))
        sources["coco"][split] = coco
        sources["yolo"][split] = write_yolo(content, images, tmp_path / f"yolo {split}", split)
        sources["voc"][split] = write_voc(content, images, tmp_path / f"voc {split}", split, labels=True)
    results, losses = {}, {}
    for name, data in sources.items():
        folders = {f"{s}_images": getattr(sample_set, f"{s}_images") for s in data} if name == "coco" else {}
        given = {f"{split}_data": source for split, source in data.items()}
        losses[name] = Losses()
        results[name] = train(
            TINY, **given, **folders, output=tmp_path / name, pretrained=False, accelerator="cpu", progress=False,
            max_steps=2, callbacks=[losses[name]],
        )  # fmt: skip
    weights = {name: torch.load(r.last_weights, weights_only=True) for name, r in results.items()}
    assert weights["coco"]["class_names"] == list(shapes.CLASS_NAMES)
    assert len(losses["coco"].seen) == 2
    for name in ("yolo", "voc"):
        assert losses[name].seen == losses["coco"].seen
        assert weights[name]["class_names"] == weights["coco"]["class_names"]
        pairs = ((weights[name]["state_dict"][key], value) for key, value in weights["coco"]["state_dict"].items())
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs), name
        ids = list(results[name].metrics.pop("category_ids").values())
        assert ids == [number - (name == "yolo") for number in (1, 2, 3, 4, 5)], "those of the data set"
        assert weights[name]["category_ids"] == ids
        assert results[name].metrics == {k: v for k, v in results["coco"].metrics.items() if k != "category_ids"}
