import pickle

import pytest
import torch

from gflv2.data import Batch, Sample, collate


def sample(height, width, boxes=2, crowds=0, image_id=1):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return Sample(
        image=torch.randn(3, height, width, generator=generator),
        boxes=torch.rand(boxes, 4, generator=generator),
        labels=torch.arange(boxes),
        ignore_boxes=torch.rand(crowds, 4, generator=generator),
        image_id=image_id,
        original_size=(height * 2, width * 2),
        scale_factor=(0.5, 0.25),
    )


def test_images_are_padded_right_and_bottom_with_zeros():
    samples = [sample(40, 70), sample(64, 33)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 64, 96) and batch.images.dtype == torch.float32
    assert batch.image_sizes == [(40, 70), (64, 33)]
    assert batch.padded_sizes == [(64, 96), (64, 64)], "each image's own padding, not the batch's"
    for image, one in zip(batch.images, samples, strict=True):
        h, w = one.image.shape[-2:]
        assert torch.equal(image[:, :h, :w], one.image)
        assert (image[:, h:] == 0).all() and (image[:, :, w:] == 0).all()
    assert batch.original_sizes == [(80, 140), (128, 66)]
    assert batch.scale_factors.tolist() == [[0.5, 0.25]] * 2
    assert len(batch) == 2


def test_the_divisor_is_respected():
    assert collate([sample(40, 70)], divisor=1).images.shape == (1, 3, 40, 70)
    assert collate([sample(40, 70)], divisor=128).padded_sizes == [(128, 128)]


def test_boxes_stay_ragged_and_crowds_appear_only_where_there_are_any():
    batch = collate([sample(32, 32, boxes=0), sample(32, 32, boxes=5)])
    assert [b.shape for b in batch.boxes] == [(0, 4), (5, 4)]
    assert [len(label) for label in batch.labels] == [0, 5]
    assert batch.ignore_boxes is None
    with_crowd = collate([sample(32, 32), sample(32, 32, crowds=1)])
    assert [b.shape for b in with_crowd.ignore_boxes] == [(0, 4), (1, 4)]


def same(one: Batch, other: Batch) -> bool:
    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b) and a.dtype == b.dtype
        if isinstance(a, list) and a and isinstance(a[0], torch.Tensor):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return all(equal(value, vars(other)[name]) for name, value in vars(one).items())


@pytest.mark.parametrize("counts", [[(3, 0), (0, 0), (2, 0)], [(0, 0)], [(1, 2), (0, 1)]])
def test_a_batch_survives_pickling_with_few_tensors(counts):
    batch = collate([sample(32, 40, boxes, crowds, image_id=i) for i, (boxes, crowds) in enumerate(counts)])
    state = batch.__getstate__()
    assert sum(isinstance(value, torch.Tensor) for value in state.values()) <= 5
    assert not any(
        isinstance(item, torch.Tensor) for value in state.values() if isinstance(value, list) for item in value
    )
    assert same(pickle.loads(pickle.dumps(batch)), batch)


def test_moving_moves_every_tensor_and_keeps_the_original():
    batch = collate([sample(32, 32, crowds=1), sample(32, 32)])
    moved = batch.to("meta")
    for name in ("images", "scale_factors"):
        assert getattr(moved, name).device.type == "meta"
    for name in ("boxes", "labels", "ignore_boxes"):
        assert [t.device.type for t in getattr(moved, name)] == ["meta", "meta"]
        assert [len(t) for t in getattr(moved, name)] == [len(t) for t in getattr(batch, name)]
    assert batch.images.device.type == "cpu" and batch.boxes[0].device.type == "cpu"
    assert same(batch.to("cpu"), batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_memory():
    batch = collate([sample(32, 32), sample(32, 32)])
    pinned = batch.pin_memory()
    assert pinned.images.is_pinned() and all(boxes.is_pinned() for boxes in pinned.boxes)
    assert same(pinned.to("cuda", non_blocking=True).to("cpu"), batch)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="samples: expected at least one"):
        collate([])
