"""Weights by name: the table, the download with everything that can go wrong, and files of the layouts in it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gflv2 import GFLV2, list_models, load_config
from gflv2.checkpoint import (
    COCO_NAMES,
    CheckpointError,
    cache_folder,
    convert,
    download,
    fetch,
    find_weights,
    interpret,
    list_weights,
    load_weights,
    read,
    zoo,
)
from gflv2.cli import main
from gflv2.config import Config
from tests.checkpoint.checkpoint_files import TINY, equal, mmcv_file, official, tiny, weights
from tests.checkpoint.weights_server import PAGE, WeightsServer, serving
from tests.models.fill import on_meta
from tests.shared import golden

MMDET = [named for named in list_weights() if named.source == "mmdet"]
AUTHORS = [named for named in list_weights() if named.address is None]
# The golden list of the authors' keys and shapes with the same backbone and neck.
STRUCTURES = {
    "r50_fpn": "r50",
    "r101_fpn": "r101",
    "r101_dcn_fpn": "r101_dcn",
    "x101_fpn": "x101_nodcn",
    "x101_dcn_fpn": "x101_dcn",
    "r2n101_dcn_fpn": "r2n101_dcn",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that is the mirror, and an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first call
    with serving() as running:
        monkeypatch.setenv("GFLV2_WEIGHTS_MIRROR", running.address)
        yield running
    monkeypatch.setattr(urllib.request, "_opener", None)


def publish(server: WeightsServer, name: str, content: object, monkeypatch, **options) -> zoo.NamedWeights:
    """Serve a file for an entry of the table; where the entry has a hash, the table gets that of this file."""
    buffer = io.BytesIO()
    if isinstance(content, bytes):
        buffer.write(content)
    else:
        torch.save(content, buffer, **options)
    named = find_weights(name)
    server.files[named.file] = buffer.getvalue()
    if named.sha256 is not None:
        digits = hashlib.sha256(buffer.getvalue()).hexdigest()[: len(named.sha256)]
        named = replace(named, sha256=digits)
    monkeypatch.setitem(zoo._TABLE, name, named)
    return named


def in_cache() -> list[str]:
    return sorted(path.name for path in cache_folder().rglob("*"))


# ---- the table -----------------------------------------------------------------------------------------------------


def test_every_entry_is_whole() -> None:
    entries = list_weights()
    assert len(entries) == 15 and len({named.file for named in entries}) == 15
    assert entries[0].name == zoo.DEFAULT
    for named in entries:
        assert named.name in list_models()
        assert named.address is not None or named.page is not None
        if named.address is not None:
            assert named.address.startswith("https://") and named.address.endswith(f"/{named.file}")
            assert named.sha256 is not None, "what is downloaded is checked"
            assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", named.sha256)
    for named in MMDET:
        assert named.file.endswith(f"-{named.sha256}.pth"), "torch.hub's way to tell a hash"
    for named in AUTHORS:
        authors = load_config(named.name).authors
        assert (named.ap, named.ap_test_dev) == (authors.ap_minival, authors.ap_test_dev)
        assert named.file == f"{authors.name}.pth"


def test_a_name_means_one_entry(tmp_path: Path) -> None:
    assert find_weights("gflv1_r50_fpn_1x").name == "gflv1_r50_fpn_1x"
    assert find_weights("coco", "gflv1_r50_fpn_1x") == find_weights("gflv1_r50_fpn_1x", "gflv2_lite0")
    assert find_weights("coco", load_config("atss_r50_fpn_1x")).name == "atss_r50_fpn_1x"
    for path in ("mine.pth", "./coco", Path("coco"), "gflv2_lite0", None):
        assert find_weights(path, "gflv1_r50_fpn_1x") is None
    # Everywhere the name in the configuration counts, not that of the file or the kind of the argument.
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: atss_r50_fpn_1x")
    for config in (None, "gflv2_lite0", mine, Config()):
        with pytest.raises(CheckpointError, match="'coco' means .*gflv2_nanodet_m"):
            find_weights("coco", config)
    mine.write_text("base: atss_r50_fpn_1x\nname: gflv1_r50_fpn_1x")
    for config in (mine, str(mine), {"name": "gflv1_r50_fpn_1x"}):
        assert find_weights("coco", config).name == "gflv1_r50_fpn_1x"
    with pytest.raises(FileNotFoundError, match="config: no file and no named configuration"):
        find_weights("coco", "missing.yaml")


def test_models_lists_them(capsys) -> None:
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for named in list_weights():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{named.name} "))
        assert f" {named.ap:.1f} " in line and named.source in line and named.licence in line
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["address"] for each in found] == [named.address for named in list_weights()]
    assert [each["name"] for each in found if each["default"]] == [zoo.DEFAULT]


# ---- the download --------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_appears_whole(server, monkeypatch, capfd) -> None:
    named = publish(server, "gflv1_r50_fpn_1x", mmcv_file(weights(tiny("gflv1_r50_fpn_1x"))), monkeypatch)
    seen = []
    server.halfway = lambda: seen.append((cache_folder() / named.file).exists())
    path = fetch(named)
    assert path == cache_folder() / named.file == Path(torch.hub.get_dir()) / "checkpoints" / named.file
    assert seen == [False] and path.read_bytes() == server.files[named.file]
    assert "100%" in capfd.readouterr().err
    assert fetch(named) == path and len(server.asked) == 1
    assert in_cache() == [named.file]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("html", "gave a web page in place of the file"),
        ("cut", "gave a part of the file or another one: .* bytes, SHA-256 .*expected"),
        ("short", "gave a part of the file or another one"),
        ("silent", "could not be downloaded .*[Tt]ime"),
        ("gone", "could not be downloaded .*404"),
        ("other", "gave a part of the file or another one"),
        ("off", "could not be downloaded .*refused"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(fault, message, server, monkeypatch, capsys) -> None:
    named = publish(server, "gflv1_r50_fpn_1x", mmcv_file(weights(tiny("gflv1_r50_fpn_1x"))), monkeypatch)
    server.fault = fault
    monkeypatch.setattr(download, "_SILENCE", 0.3 if fault == "silent" else 60)
    if fault == "gone":
        server.files.clear()
    elif fault == "other":
        server.fault, server.files[named.file] = None, b"XX" + server.files[named.file][2:]
    elif fault == "off":
        monkeypatch.setenv("GFLV2_WEIGHTS_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=message) as caught:
        GFLV2("gflv1_r50_fpn_1x", weights="coco", **TINY)
    text = str(caught.value)
    assert "\n" not in text and named.file in text and str(cache_folder() / named.file) in text
    assert in_cache() == []
    # The same as one line of the command line.
    capsys.readouterr()
    assert main(["val", "gflv1_r50_fpn_1x", "--weights", "coco", "--data", "x.json"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and str(cache_folder() / named.file) in lines[0]


def test_what_lies_in_the_cache_is_checked_too(server, monkeypatch) -> None:
    named = publish(server, "gflv1_r50_fpn_1x", mmcv_file(weights(tiny("gflv1_r50_fpn_1x"))), monkeypatch)
    path = cache_folder() / named.file
    path.parent.mkdir(parents=True)
    for content, message in ((PAGE, "a web page"), (b"", "0 bytes"), (server.files[named.file][:-1], "expected")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{named.file} in the cache is .*{message}.*delete it"):
            read("gflv1_r50_fpn_1x")
        assert path.read_bytes() == content and server.asked == []


def test_an_interrupted_download_leaves_nothing(server, monkeypatch) -> None:
    named = publish(server, "gflv1_r50_fpn_1x", b"0" * 1000, monkeypatch)

    def interrupt(address: str, path: str, **options) -> None:
        Path(path).write_bytes(b"0" * 500)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(named)
    assert in_cache() == []


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("fault", ["cut", "html"])
def test_a_file_without_a_hash_is_read_before_it_gets_its_name(fault, old, server, monkeypatch) -> None:
    content = mmcv_file(official(weights(tiny("gflv2_r50_fpn_1x"))))
    publish(server, "gflv2_r50_fpn_1x", content, monkeypatch, _use_new_zipfile_serialization=not old)
    server.fault = fault
    with pytest.raises(CheckpointError, match="gave (what is no whole checkpoint|a web page)"):
        read("gflv2_r50_fpn_1x")
    assert in_cache() == []


def test_the_authors_files_are_put_there_by_hand(server, monkeypatch) -> None:
    monkeypatch.delenv("GFLV2_WEIGHTS_MIRROR")
    path = cache_folder() / "gfocal_r50_fpn_1x.pth"
    with pytest.raises(CheckpointError) as caught:
        GFLV2("gflv2_r50_fpn_1x", weights="coco")
    text = str(caught.value)
    assert "https://drive.google.com/file/d/1wSE9-c7tcQwIDPC6Vm_yfOokdPfmYmy7/view" in text and str(path) in text
    path.parent.mkdir(parents=True)
    source = tiny("gflv2_r50_fpn_1x", num_classes=80)
    torch.save(mmcv_file(official(weights(source))), path)
    assert equal(weights(GFLV2("gflv2_r50_fpn_1x", weights="coco", **TINY)), weights(source))
    assert server.asked == []


def test_a_proxy_of_the_environment_is_asked(server, monkeypatch) -> None:
    named = publish(server, "gflv1_r50_fpn_1x", mmcv_file(weights(tiny("gflv1_r50_fpn_1x"))), monkeypatch)
    monkeypatch.setenv("GFLV2_WEIGHTS_MIRROR", "http://weights.invalid/folder/")
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fetch(named)
    assert server.asked == [f"http://weights.invalid/folder/{named.file}"]


# ---- files in the layouts of the table -----------------------------------------------------------------------------


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published file: the authors', or mmdet's, which differ in the last layers of the head."""
    kind, rest = name.split("_", 1)
    structure = golden(f"structure_{STRUCTURES[rest.rsplit('_', 1)[0]]}").meta["state_dict"]
    keys = {key: tuple(entry["shape"]) for key, entry in structure.items()}
    if kind == "gflv2":
        return keys
    keys = {key: shape for key, shape in keys.items() if ".reg_conf." not in key}
    keys["bbox_head.gfl_cls.weight"], keys["bbox_head.gfl_cls.bias"] = (80, 256, 3, 3), (80,)
    if kind == "gflv1":
        return keys
    keys = {key: shape for key, shape in keys.items() if ".gfl_" not in key and ".integral." not in key}
    for layer, channels in (("atss_cls", 80), ("atss_reg", 4), ("atss_centerness", 1)):
        keys[f"bbox_head.{layer}.weight"], keys[f"bbox_head.{layer}.bias"] = (channels, 256, 3, 3), (channels,)
    return keys


@pytest.mark.parametrize("named", [*MMDET, *AUTHORS], ids=lambda named: named.name)
def test_every_key_of_a_published_file_has_its_place(named) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in layout(named.name).items()}
    model = on_meta(lambda: GFLV2(named.name))
    report = load_weights(model, interpret(mmcv_file(state, COCO_NAMES)))
    assert report.fresh == [] and report.dropped == [] and report.warnings == []
    assert report.class_names == list(COCO_NAMES)
    assert set(report.loaded) == set(model.state_dict())
    assert (model.config.test.score_thr, model.config.test.iou_thr) == (0.05, 0.6)


@pytest.mark.parametrize("named", [*MMDET, *AUTHORS], ids=lambda named: named.name)
def test_values_arrive_by_name(named, server, monkeypatch) -> None:
    # Of the small backbone only this stage has blocks that can be deformable.
    small = TINY | ({"model__backbone__deform__stages": [4]} if "dcn" in named.name else {})
    source = tiny(named.name, num_classes=80, **small)
    state = official(weights(source)) if named in AUTHORS else weights(source)
    # mmcv wrote these files before torch 1.6, in the format of that time.
    content = mmcv_file(state, COCO_NAMES)
    publish(server, named.name, content, monkeypatch, _use_new_zipfile_serialization=False)
    model = GFLV2(named.name, weights="coco", **small)
    assert any(".conv_offset." in key for key in weights(model)) == ("dcn" in named.name)
    assert equal(weights(model), weights(source)) and model.class_names == list(COCO_NAMES)
    assert model.config.name == named.name
    assert server.asked == [f"/{named.file}"]


def test_a_whole_file_by_its_name_alone(server, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(shape, generator=generator) for key, shape in layout("gflv1_r50_fpn_1x").items()}
    state["bbox_head.integral.project"] = torch.arange(17.0)
    state |= {key: value.long() for key, value in state.items() if key.endswith("num_batches_tracked")}
    content = mmcv_file(state, COCO_NAMES)
    publish(server, "gflv1_r50_fpn_1x", content, monkeypatch, _use_new_zipfile_serialization=False)
    model = GFLV2(weights="gflv1_r50_fpn_1x")
    assert model.config == load_config("gflv1_r50_fpn_1x")
    assert equal(model.state_dict(), state)


def test_the_name_is_taken_where_weights_are(server, monkeypatch, tmp_path) -> None:
    source = tiny("gflv1_r50_fpn_ms2x", num_classes=80)
    publish(server, "gflv1_r50_fpn_ms2x", mmcv_file(weights(source), COCO_NAMES), monkeypatch)
    with pytest.warns(UserWarning, match="starts fresh"):
        model = tiny("gflv2_r50_fpn_1x", num_classes=80, seed=3)
        load_weights(model, "gflv1_r50_fpn_ms2x")
    assert torch.equal(model.bbox_head.gfl_cls.weight, source.bbox_head.gfl_cls.weight)
    path = convert("gflv1_r50_fpn_ms2x", tmp_path / "ours.pt", "gflv2")
    assert read(path).config["name"] == "gflv1_r50_fpn_ms2x"
    assert main(["convert", "gflv1_r50_fpn_ms2x", str(tmp_path / "b.pt"), "--layout", "gflv2"]) == 0
    assert len(server.asked) == 1
