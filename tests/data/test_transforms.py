import numpy as np
import pytest
import torch

from gflv2.config import DataConfig
from gflv2.data.transforms import (
    IGNORED,
    KeepRatioResize,
    apply,
    evaluation_transforms,
    preprocess,
    resized_size,
    training_transforms,
)
from tests.data.generated import picture

PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def tensor_picture(height, width):
    return torch.from_numpy(picture(height, width).copy()).permute(2, 0, 1)


# (height, width) -> int(side · k + 0.5) by hand. torchvision's Resize(800, max_size=1333) makes the first and the
# fourth 1066 pixels wide.
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((640, 427), (1199, 800)),
        ((375, 500), (800, 1067)),
        ((300, 1000), (400, 1333)),
        ((1000, 300), (1333, 400)),
        ((2000, 2000), (800, 800)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_resized_size(size, expected):
    assert resized_size(*size, 1333, 800) == expected


def test_a_thin_image_keeps_a_pixel():
    assert resized_size(1, 5000, 1333, 800) == (1, 1333)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel-centred bilinear interpolation without antialiasing, in float64."""
    channels, h, w = image.shape
    y = ((np.arange(height) + 0.5) * h / height - 0.5).clip(0, h - 1)
    x = ((np.arange(width) + 0.5) * w / width - 0.5).clip(0, w - 1)
    y0, x0 = y.astype(int), x.astype(int)
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    fy, fx = (y - y0)[:, None], x - x0
    top = image[:, y0][:, :, x0] * (1 - fx) + image[:, y0][:, :, x1] * fx
    bottom = image[:, y1][:, :, x0] * (1 - fx) + image[:, y1][:, :, x1] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.parametrize("size", [(300, 400), (40, 30)])
def test_resize_is_bilinear_without_antialiasing(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = DataConfig(long_side=133, test_short_side=80, **PLAIN)
    sample = preprocess(image, config)
    height, width = sample.image.shape[-2:]
    expected = bilinear(image.numpy().astype(np.float64), height, width)
    assert np.abs(sample.image.numpy() - expected).max() <= 1.0  # one step of uint8
    assert torch.equal(sample.image, sample.image.round())


def test_boxes_are_scaled_per_axis_and_clipped():
    config = DataConfig(long_side=1333, test_short_side=800)
    boxes = [[10.0, 20.0, 300.0, 400.0], [-5.0, -5.0, 700.0, 500.0]]
    sample = apply(
        evaluation_transforms(config), tensor_picture(427, 640), torch.tensor(boxes), torch.tensor([0, 4]), 7
    )
    sx, sy = 1199 / 640, 800 / 427
    assert sample.scale_factor == (sx, sy) and sx != sy
    expected = torch.tensor([[10 * sx, 20 * sy, 300 * sx, 400 * sy], [0, 0, 1199, 800]])
    torch.testing.assert_close(sample.boxes, expected)
    assert (sample.image_id, sample.original_size, sample.labels.tolist()) == (7, (427, 640), [0, 4])


def test_flip_mirrors_pixels_and_boxes():
    boxes, labels = torch.tensor([[10.0, 20.0, 30.0, 50.0], [0.0, 0.0, 5.0, 5.0]]), torch.tensor([3, IGNORED])
    samples = {}
    for flip, vertical in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        config = DataConfig(long_side=160, short_side=[120, 120], flip=flip, vertical_flip=vertical)
        samples[flip, vertical] = apply(training_transforms(config), tensor_picture(60, 80), boxes, labels)
    plain, mirrored, upside_down = samples.values()
    assert torch.equal(mirrored.image, plain.image.flip(-1))
    assert torch.equal(upside_down.image, plain.image.flip(-2))
    assert plain.boxes.tolist() == [[20, 40, 60, 100]]
    assert mirrored.boxes.tolist() == [[160 - 60, 40, 160 - 20, 100]]
    assert upside_down.boxes.tolist() == [[20, 120 - 100, 60, 120 - 40]]
    assert plain.ignore_boxes.tolist() == [[0, 0, 10, 10]] and mirrored.ignore_boxes.tolist() == [[150, 0, 160, 10]]
    assert mirrored.labels.tolist() == [3]


def test_normalisation_is_per_channel_on_the_0_to_255_scale():
    image = torch.stack([torch.full((40, 40), value, dtype=torch.uint8) for value in (255, 0, 128)])
    config = DataConfig(long_side=40, test_short_side=40)
    expected = [(255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    torch.testing.assert_close(preprocess(image, config).image[:, 0, 0], torch.tensor(expected))


def test_multi_scale_draws_every_short_side_of_the_range():
    resize = KeepRatioResize(200, (60, 64))
    config = DataConfig(long_side=200, short_side=[60, 64], flip=0.0)
    transforms = training_transforms(config)
    sides = {apply(transforms, tensor_picture(100, 110), [], []).image.shape[1] for _ in range(200)}
    assert sides == {60, 61, 62, 63, 64}
    assert resize.short_side == (60, 64)


@pytest.mark.parametrize("short", [[64, 60], [0, 60], [60, 300]])
def test_impossible_sizes_are_refused(short):
    with pytest.raises(ValueError, match="short_side: expected 1 ≤ least ≤ greatest ≤ long_side"):
        training_transforms(DataConfig(long_side=200, short_side=short))


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"image: expected a uint8 tensor of shape \(3, H, W\)"):
        preprocess(torch.zeros(3, 8, 8), DataConfig())
    with pytest.raises(ValueError, match="std"):
        evaluation_transforms(DataConfig(std=[1.0, 1.0, 0.0]))


def test_crop_keeps_boxes_on_their_objects():
    """A bright square on black: after the crop its box must still surround exactly the bright pixels."""
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    image[:, 40:80, 60:110] = 255
    config = DataConfig(long_side=400, short_side=[200, 200], flip=0.5, random_crop=1.0, **PLAIN)
    transforms = training_transforms(config)
    cropped = 0
    for seed in range(30):
        torch.manual_seed(seed)
        box, crowd = [60.0, 40.0, 110.0, 80.0], [0.0, 0.0, 160.0, 120.0]
        sample = apply(transforms, image, torch.tensor([box, crowd]), torch.tensor([2, IGNORED]))
        cropped += sample.scale_factor[0] != 200 / 120
        # The crop chooses its boxes by their centres: one whose centre is outside is gone, else its visible part stays.
        if len(sample.boxes):
            bright = (sample.image[0] > 127).nonzero()
            (y1, x1), (y2, x2) = bright.amin(0).tolist(), (bright.amax(0) + 1).tolist()
            assert (sample.boxes[0] - torch.tensor([x1, y1, x2, y2])).abs().max() <= 2.5
            assert sample.labels.tolist() == [2]
    assert cropped > 10


def test_crop_of_an_image_without_boxes():
    config = DataConfig(long_side=100, short_side=[50, 50], random_crop=1.0)
    sample = apply(training_transforms(config), tensor_picture(80, 90), [], [])
    assert sample.boxes.shape == (0, 4) and sample.ignore_boxes.shape == (0, 4)


def test_photometric_change_leaves_boxes_alone():
    config = DataConfig(long_side=80, short_side=[60, 60], flip=0.0, photometric=1.0, **PLAIN)
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    torch.manual_seed(1)
    samples = [apply(training_transforms(config), tensor_picture(60, 80), box, [0]) for _ in range(6)]
    assert all(torch.equal(sample.boxes, box) for sample in samples)
    plain = tensor_picture(60, 80).float()
    assert any((sample.image - plain).abs().mean() > 3 for sample in samples)
    assert all(0 <= sample.image.min() and sample.image.max() <= 255 for sample in samples)
