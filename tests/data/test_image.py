import numpy as np
import pytest
import torch
from PIL import Image

from gflv2.data.image import image_size, read_image, to_rgb
from tests.data.generated import picture


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_comes_back_unchanged(tmp_path):
    array = picture(20, 30)
    tensor = read_image(saved(tmp_path, Image.fromarray(array)))
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 20, 30)
    assert np.array_equal(tensor.permute(1, 2, 0), array)


def test_grey_and_palette_and_transparent_images_become_rgb(tmp_path):
    colour = Image.fromarray(picture(20, 30))
    grey = np.asarray(colour.convert("L"))
    tensor = read_image(saved(tmp_path, colour.convert("L")))
    assert all(np.array_equal(channel, grey) for channel in tensor)
    palette = colour.quantize(16)
    assert np.array_equal(read_image(saved(tmp_path, palette)).permute(1, 2, 0), palette.convert("RGB"))
    transparent = colour.convert("RGBA")
    transparent.putalpha(0)
    assert np.array_equal(read_image(saved(tmp_path, transparent)).permute(1, 2, 0), colour)
    assert read_image(saved(tmp_path, colour.convert("1"))).unique().tolist() == [0, 255]


def test_cmyk_keeps_its_colours(tmp_path):
    colour = Image.fromarray(np.full((16, 16, 3), (200, 30, 90), dtype=np.uint8))
    tensor = read_image(saved(tmp_path, colour.convert("CMYK"), "a.jpg", quality=98))
    assert (tensor.float().mean((1, 2)) - torch.tensor([200.0, 30, 90])).abs().max() < 4


def test_sixteen_bits_are_cut_to_the_upper_eight(tmp_path):
    values = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    tensor = read_image(saved(tmp_path, Image.fromarray(values)))
    assert np.array_equal(tensor[1], values >> 8)


def test_floating_point_images_are_refused():
    with pytest.raises(ValueError, match="mode 'F'"):
        to_rgb(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


def rotated(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(tmp_path, Image.fromarray(picture(20, 30)), exif=exif)


def test_exif_orientation_is_applied(tmp_path):
    path = rotated(tmp_path, 6)  # stored 30 wide, shown 20 wide, turned clockwise
    assert image_size(path) == (30, 20)
    tensor = read_image(path)
    assert np.array_equal(tensor.permute(1, 2, 0), np.rot90(picture(20, 30), -1))
    assert torch.equal(tensor, read_image(path, size=(30, 20)))


def test_annotations_made_for_the_stored_pixels_get_those(tmp_path):
    path = rotated(tmp_path, 6)
    assert np.array_equal(read_image(path, size=(20, 30)).permute(1, 2, 0), picture(20, 30))


def test_another_size_than_annotated_is_an_error(tmp_path):
    path = rotated(tmp_path, 1)
    with pytest.raises(ValueError, match="a.png.* is 30×20 pixels, .* made for 30×21"):
        read_image(path, size=(21, 30))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        read_image(tmp_path / "absent.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match="text.jpg.*not an image"):
        read_image(tmp_path / "text.jpg")
    path = saved(tmp_path, Image.fromarray(picture(200, 200)), "cut.jpg")
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(ValueError, match="cut.jpg.*cannot be read"):
        read_image(path)
