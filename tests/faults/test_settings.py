"""Numbers that can only be mistakes, from wherever they come: one line, at once, and nothing is built."""

from __future__ import annotations

import json
import typing

import pytest
import torch
import yaml

from gflv2 import GFLV2, checkpoint, cli
from gflv2.config import list_models, load_config, settings
from gflv2.ranges import LENGTHS, RANGES

NUMBERS = (int, float)


def kinds(hint) -> set:
    """Types that a field may hold, those of a list's items included."""
    found = {hint}
    for inner in typing.get_args(hint):
        found |= kinds(inner)
    return found


def test_every_number_of_the_configuration_has_a_range() -> None:
    numbers = {key for key, (hint, _) in settings().items() if kinds(hint) & set(NUMBERS)}
    assert numbers == RANGES.keys()
    lists = {key for key, (hint, _) in settings().items() if typing.get_origin(hint) is list}
    assert lists == LENGTHS.keys()


@pytest.mark.parametrize("name", list_models())
def test_every_named_configuration_is_inside(name) -> None:
    assert load_config(name).name == name


WRONG = [
    ("model.num_classes", 10**12),
    ("model.num_classes", 0),
    ("model.head.stacked_convs", 10**6),
    ("model.neck.levels", 10**6),
    ("model.backbone.frozen_stages", 10**9),
    ("model.head.reg_max", 10**9),
    ("model.head.gn_groups", 0),
    ("model.head.strides", [8, 16, 0]),
    ("model.head.strides", [8] * 100),
    ("model.head.loss_weights", [1.0]),
    ("data.pad_divisor", 0),
    ("data.std", [1.0, 1.0, 0.0]),
    ("data.mean", [1.0, 2.0]),
    ("data.short_side", [800]),
    ("data.long_side", -1),
    ("data.flip", 1.5),
    ("data.workers", -1),
    ("train.lr", float("nan")),
    ("train.lr", float("inf")),
    ("train.epochs", 0),
    ("train.batch_size", -4),
    ("train.seed", 2**32),
    ("train.seed", -1),
    ("train.ema_decay", 1.0),
    ("train.milestones", [-1]),
    ("train.save_every_steps", 0),
    ("train.clip_grad_norm", -1.0),
    ("test.score_thr", 50.0),
    ("test.max_detections", 0),
]
names = [f"{key}={value}"[:60] for key, value in WRONG]


def nested(key: str, value) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("key", "value"), WRONG, ids=names)
def test_a_number_out_of_its_range_in_every_source(key, value, tmp_path, capsys) -> None:
    expected = rf"{key}: expected .*, got "
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(nested(key, value)))
    for source in (file, nested(key, value), None):
        with pytest.raises(ValueError, match=f"{file.name}: {expected}" if source is file else f"^{expected}"):
            load_config(source, {key: value} if source is None else None)
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    assert cli.main(["train", "gflv2_lite0", f"--{key}", text]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"gflv2 train: error: --{key}: expected"), error


def test_a_number_out_of_its_range_in_a_checkpoint(tmp_path) -> None:
    model = GFLV2("gflv2_lite0", num_classes=1)
    content = torch.load(model.save(tmp_path / "a.pt"), weights_only=True)
    for key, value in WRONG[:12]:
        changed = json.loads(json.dumps(content["config"]))
        part = changed
        *parts, last = key.split(".")
        for name in parts:
            part = part[name]
        part[last] = value
        torch.save({**content, "config": changed}, tmp_path / "b.pt")
        with pytest.raises(checkpoint.CheckpointError, match=rf"b.pt holds a configuration .*{key}: expected"):
            GFLV2(weights=tmp_path / "b.pt")


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValueError) as caught:
        load_config(None, {"model.num_classes": 10**5000 if hasattr(int, "bit_count") else 10**400})
    assert len(str(caught.value)) < 300


def test_yaml_that_is_no_yaml_is_one_line_with_its_place(tmp_path, capsys) -> None:
    cases = {
        "tab": b"train:\n\tlr: 1\n",
        "open": b"model: {num_classes: [3\n",
        "tag": b"model: !!python/object/apply:os.system [ls]\n",
        "latin": b"\xe9: 1\n",
        "self": b"base: SELF\n",
        "list": b"- 1\n",
        "key": b"1: 2\n",
        "deep": b"a: " + b"[" * 5000 + b"\n",
        "base": b"base: [1]\n",
    }
    for name, content in cases.items():
        file = tmp_path / f"{name}.yaml"
        file.write_bytes(content.replace(b"SELF", str(file).encode()))
        assert cli.main(["configs", str(file)]) == 2, name
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and (name == "base" or f"{name}.yaml" in error[0]), error
