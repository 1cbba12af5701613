import logging

import numpy as np
import pytest
import torch
from PIL import Image

from gflv2.config import DataConfig
from gflv2.data import CocoDetection, cache, files, make_loader, read_image
from tests.data.generated import annotation, picture, write_set

SMALL = {"long_side": 128, "short_side": [64, 64], "test_short_side": 64, "flip": 0.0}


def write_jpegs(folder, sizes, annotations):
    """A set as ``write_set`` makes it, with JPEG data in its files."""
    path = write_set(folder, sizes, annotations)
    for number, (height, width) in enumerate(sizes, 1):
        Image.fromarray(picture(height, width, number)).save(
            folder / "images" / f"{number:04d}.png", "JPEG", quality=95
        )
    return path


@pytest.mark.parametrize(
    ("least", "shape"),
    [
        ((60, 80), (60, 80)),
        ((61, 80), (120, 160)),
        ((120, 161), (240, 320)),
        ((241, 1), (480, 640)),
        ((9, 9), (60, 80)),
    ],
)
def test_a_jpeg_is_decoded_at_the_least_size_that_is_enough(tmp_path, least, shape):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(480, 640)).save(path)
    image = read_image(path, size=(480, 640), least=least)
    assert image.shape == (3, *shape)
    whole = Image.fromarray(picture(480, 640)).resize(shape[::-1], Image.Resampling.BOX)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(whole)).mean() < 3


def test_a_turned_jpeg_is_decoded_at_the_least_size_of_its_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(480, 640)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", least=(320, 240)).shape == (3, 320, 240)
    assert read_image(tmp_path / "a.jpg", size=(640, 480), least=(321, 1)).shape == (3, 640, 480)
    assert read_image(tmp_path / "a.jpg", size=(480, 640), least=(240, 320)).shape == (3, 240, 320)


def test_other_formats_are_decoded_whole(tmp_path):
    Image.fromarray(picture(480, 640)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", least=(60, 80)).shape == (3, 480, 640)


@pytest.mark.parametrize("train", [False, True])
def test_reduced_decoding_gives_the_same_sample_but_for_its_pixels(tmp_path, train):
    rows = [annotation(1, (100, 50, 333, 250)), annotation(1, (0, 0, 600, 40), iscrowd=1)]
    path = write_jpegs(tmp_path, [(401, 603)], rows)
    whole, reduced = (
        CocoDetection(path, config=DataConfig(**SMALL, reduced_decode=on), train=train)[0] for on in (False, True)
    )
    assert reduced.image.shape == whole.image.shape and reduced.original_size == whole.original_size == (401, 603)
    assert reduced.scale_factor == whole.scale_factor
    torch.testing.assert_close(reduced.boxes, whole.boxes)
    torch.testing.assert_close(reduced.ignore_boxes, whole.ignore_boxes)
    difference = (reduced.image - whole.image).abs().mean()
    assert 0 < difference < 0.1, "in standard deviations of the pixels"


def test_what_a_crop_enlarges_is_decoded_whole(tmp_path, monkeypatch):
    path = write_jpegs(tmp_path, [(400, 600)], [annotation(1, (100, 50, 300, 250))])
    asked = []
    monkeypatch.setattr(
        "gflv2.data.dataset.read_image", lambda *a, least=None, **k: asked.append(least) or picture_of()
    )
    config = DataConfig(**SMALL, reduced_decode=True, random_crop=1.0)
    CocoDetection(path, config=config, train=True)[0]
    CocoDetection(path, config=config)[0]
    assert asked == [None, (64, 96)]


def picture_of():
    return torch.from_numpy(picture(400, 600).copy()).permute(2, 0, 1)


def test_images_in_memory_need_their_files_no_more(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [annotation(i, (5, 5, 20, 20)) for i in (1, 2, 3)]
    path = write_set(tmp_path, [(64, 64), (48, 80), (64, 64)], rows)
    config = DataConfig(**SMALL, cache_images=True)
    dataset, files = CocoDetection(path, config=config, train=True), CocoDetection(path, config=DataConfig(**SMALL))
    before = [files[i].image for i in range(3)]
    assert any("3 images in memory, 0 MB" in message for message in caplog.messages)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    for _ in range(2):
        assert all(torch.equal(dataset[i].image, before[i]) for i in range(3))
    assert sum(len(batch) for batch in make_loader(dataset, 2, train=True, workers=1)) == 3
    with pytest.raises(FileNotFoundError):
        files[0]


def test_images_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    path = write_set(tmp_path, [(64, 64)] * 3, [annotation(1, (5, 5, 20, 20))])
    monkeypatch.setattr(cache, "free_memory", lambda: 3 * 64 * 64 * 5)
    with pytest.raises(ValueError, match="data.cache_images: 3 of 3 images of .* more than half"):
        CocoDetection(path, config=DataConfig(**SMALL, cache_images=True))
    monkeypatch.setattr(cache, "free_memory", lambda: None)
    assert len(CocoDetection(path, config=DataConfig(**SMALL, cache_images=True))) == 3


def test_of_a_large_set_evenly_spread_headers_are_read_and_every_file_is_looked_for(tmp_path, monkeypatch):
    path = write_set(tmp_path, [(64, 64)] * 6, [annotation(1, (5, 5, 20, 20))])
    monkeypatch.setattr(files, "MOST_HEADERS", 2)  # the first and the fourth
    for name in ("0002.png", "0003.png", "0006.png"):
        (tmp_path / "images" / name).write_text("no image")
    assert len(CocoDetection(path, config=DataConfig(**SMALL))) == 6
    (tmp_path / "images" / "0004.png").write_text("no image")
    with pytest.raises(ValueError, match=r"0004.png' is not an image .*\(1 of 6 images"):
        CocoDetection(path, config=DataConfig(**SMALL))
    (tmp_path / "images" / "0006.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 6 image files are missing"):
        CocoDetection(path, config=DataConfig(**SMALL))


def damage(image):
    """Spoil the pixels, not the header nor the end."""
    data = bytearray(image.read_bytes())
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    data[start:end] = b"\xff" * (end - start)
    image.write_bytes(data)


@pytest.mark.parametrize("cached", [False, True])
def test_damage_that_only_decoding_shows_ends_the_run_or_is_skipped_and_named(tmp_path, caplog, cached):
    path = write_set(tmp_path, [(64, 64)] * 3, [annotation(i, (5 * i, 5, 20, 20)) for i in (1, 2, 3)])
    damage(tmp_path / "images" / "0002.png")
    strict = CocoDetection(path, config=DataConfig(**SMALL), train=True)
    with pytest.raises(ValueError, match="0002.png' cannot be read"):
        strict[1]
    config = DataConfig(**SMALL, skip_bad=True, cache_images=cached)
    dataset = CocoDetection(path, config=config, train=True)
    for _ in range(2):
        taken = dataset[1]
        assert taken.image_id == 3 and taken.boxes.tolist() == [[15, 5, 35, 25]]
    assert sum("0002.png' cannot be read" in message for message in caplog.messages) == 1
    assert len(dataset.undecoded) == 1 and "0002.png' cannot be read" in dataset.undecoded[0]
    with pytest.raises(ValueError, match="0002.png' cannot be read"):
        CocoDetection(path, config=config)[1]
    for name in ("0001.png", "0003.png"):
        damage(tmp_path / "images" / name)
    if not cached:
        with pytest.raises(ValueError, match="none of its 3 images can be decoded"):
            dataset[0]
