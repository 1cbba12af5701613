"""Configurations: where they come from, what lies over what, and one way to read a value and to refuse it."""

from __future__ import annotations

import pytest

from gflv2.config import Config, list_models, load_config, parse_setting, settings


def test_overrides_lie_over_the_file_and_the_file_over_its_base(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 5, lr: 1e-3}\ndata: {mean: [1, 2, 3]}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {tmp_path / 'base.yaml'}\ntrain: {{epochs: 6}}\n")
    config = load_config(path, {"train.seed": 4, "model.head": {"quality": None}})
    assert (config.train.epochs, config.train.lr, config.train.seed) == (6, 1e-3, 4)
    assert config.data.mean == [1.0, 2.0, 3.0] and config.model.head.quality is None
    assert config.name == "mine" and config.train.batch_size == Config().train.batch_size


@pytest.mark.parametrize("name", list_models())
def test_a_configuration_is_what_it_writes(name) -> None:
    config = load_config(name)
    assert config.name == name
    assert load_config(config.to_dict()) == load_config(config) == config


def test_a_configuration_given_is_copied() -> None:
    first = load_config(None)
    second = load_config(first, {"train.epochs": 3})
    second.data.mean[0] = 0.0
    assert first == Config()
    nested = {"train": {"epochs": 2}}
    load_config(nested, {"train.epochs": 3})
    assert nested == {"train": {"epochs": 2}}


@pytest.mark.parametrize(
    "key, value, found",
    [("train.lr", 1, 1.0), ("data.mean", (1, 2, 3), [1.0, 2.0, 3.0]), ("name", "12", "12"), ("data.train", None, None)],
)
def test_values_get_the_type_of_their_field(key, value, found) -> None:
    assert parse_setting(key, value) == found and type(parse_setting(key, value)) is type(found)


@pytest.mark.parametrize(
    "values, error, message",
    [
        ({"train": {"epochs": 3.5}}, TypeError, "train.epochs: expected an integer, got 3.5"),
        ({"train": {"epochs": True}}, TypeError, "train.epochs: expected an integer, got True"),
        ({"train": {"scale_lr": 1}}, TypeError, "train.scale_lr: expected true or false, got 1"),
        ({"train": {"precision": 16}}, TypeError, "train.precision: expected a text, got 16"),
        ({"train": {"clip_grad_norm": []}}, TypeError, "train.clip_grad_norm: expected a number or null, got []"),
        ({"data": {"short_side": 480}}, TypeError, "data.short_side: expected a list of integers, for example"),
        ({"data": {"short_side": ["a", 1]}}, TypeError, "data.short_side: expected a list of integers, for example"),
        ({"data": {"mean": [[1], 2, 3]}}, TypeError, "data.mean: expected a list of numbers, for example [1,2,0.25]"),
        ({"train": {"epoch": 3}}, ValueError, "unknown setting train.epoch; did you mean train.epochs?"),
        ({"model": None}, ValueError, "unknown setting model: it is a section, of model.num_classes, "),
        ({"train": 3}, ValueError, "unknown setting train: it is a section, of train.epochs, "),
        ({"colour": 1}, ValueError, "unknown setting colour"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_what_came(values, error, message) -> None:
    with pytest.raises(error) as caught:
        load_config(values)
    assert str(caught.value).startswith(message)


def test_every_default_is_a_value_of_its_type() -> None:
    assert len(settings()) > 60
    for key, (_, default) in settings().items():
        assert parse_setting(key, default) == default, key


def test_settings_of_a_call_stand_in_place_of_the_configured_ones() -> None:
    test = load_config(None, {"test.score_thr": 0.2}).test
    assert test.options(iou_thr=0.5, max_detections=None) == {
        "pre_topk": 1000,
        "score_thr": 0.2,
        "iou_thr": 0.5,
        "max_detections": 100,
    }
    assert test.options(score_thr=0.0)["score_thr"] == 0.0
