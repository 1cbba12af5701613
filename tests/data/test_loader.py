import collections
import os
import signal

import pytest
import torch

from gflv2.config import DataConfig
from gflv2.data import CocoDetection, GroupedBatchSampler, ShardedBatchSampler, image, make_loader
from tests.data.generated import annotation, write_set

GROUPS = [True] * 37 + [False] * 9


def plan(world_size, batch_size=4, epoch=0, seed=0, groups=GROUPS):
    samplers = [
        GroupedBatchSampler(groups, batch_size, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers], samplers


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_process_gets_equal_batches_of_one_group(world_size, batch_size):
    ranks, samplers = plan(world_size, batch_size)
    assert {len(batches) for batches in ranks} == {len(sampler) for sampler in samplers}
    for together in zip(*ranks, strict=True):
        # The ranks work on batches of the same size and orientation at the same time.
        assert len({len(batch) for batch in together}) == 1
        assert len({GROUPS[key.index] for batch in together for key in batch}) == 1
        assert 1 <= len(together[0]) <= batch_size
    counts = collections.Counter(key.index for batches in ranks for batch in batches for key in batch)
    assert set(counts) == set(range(len(GROUPS)))
    assert sum(counts.values()) - len(GROUPS) <= 2 * (world_size - 1), "only what fills up the last share is repeated"


def test_one_process_repeats_nothing_and_has_no_tiny_last_batch():
    ((batches,), _) = plan(1, 16, groups=[True] * 33)
    assert sorted(key.index for batch in batches for key in batch) == list(range(33))
    assert [len(batch) for batch in batches] == [11, 11, 11]


def test_order_and_seeds_change_with_the_epoch_and_the_seed_only():
    first = plan(1)[0]
    assert plan(1)[0] == first
    assert plan(1, epoch=1)[0] != first and plan(1, seed=1)[0] != first
    seeds = [{key.index: key.seed for batch in batches for key in batch} for batches in plan(2)[0] + first]
    for shared in (seeds[0], seeds[1]):
        assert all(seeds[2][index] == seed for index, seed in shared.items()), "independent of the number of processes"
    assert len(set(seeds[2].values())) == len(GROUPS)
    other = {key.index: key.seed for batch in plan(1, epoch=1)[0][0] for key in batch}
    assert not set(other.values()) & set(seeds[2].values())


@pytest.mark.parametrize(("length", "world_size", "batch_size"), [(10, 1, 4), (10, 3, 2), (2, 4, 3), (16, 2, 8)])
def test_evaluation_shows_every_image_with_equally_many_batches(length, world_size, batch_size):
    samplers = [ShardedBatchSampler(length, batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    ranks = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in ranks} == {len(samplers[0])}
    shown = [index for batches in ranks for batch in batches for index in batch]
    assert set(shown) == set(range(length)) and len(shown) - length < world_size
    if world_size == 1:
        assert shown == list(range(length))


def test_bad_batch_sizes_are_refused():
    for make in (lambda: GroupedBatchSampler(GROUPS, 0), lambda: ShardedBatchSampler(5, 0)):
        with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
            make()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    sizes = [(60, 80), (80, 60), (60, 90), (64, 64), (50, 90), (90, 50), (60, 80), (61, 80)]
    rows = [annotation(i + 1, (5, 5, 20 + i, 30)) for i in range(len(sizes))]
    rows.append(annotation(1, (0, 0, 50, 50), iscrowd=1))
    config = DataConfig(
        long_side=120, short_side=[40, 90], test_short_side=64, photometric=0.5, random_crop=0.5, vertical_flip=0.3
    )
    return CocoDetection(write_set(tmp_path_factory.mktemp("set"), sizes, rows), config=config, train=True)


def epoch_of(loader, epoch):
    loader.batch_sampler.set_epoch(epoch)
    return {
        image_id: (batch.images[i].double().sum().item(), batch.image_sizes[i], batch.boxes[i].tolist())
        for batch in loader
        for i, image_id in enumerate(batch.image_ids)
    }


def test_samples_do_not_depend_on_workers_but_on_seed_and_epoch(dataset):
    here = make_loader(dataset, 3, train=True, workers=0, seed=5)
    first = epoch_of(here, 0)
    there = make_loader(dataset, 3, train=True, workers=2, seed=5)
    assert epoch_of(there, 0) == first
    second = epoch_of(there, 1)
    assert second == epoch_of(here, 1)
    assert sum(second[i] != first[i] for i in first) >= 6
    assert epoch_of(here, 0) == first
    assert epoch_of(make_loader(dataset, 3, train=True, workers=0, seed=6), 0) != first


def test_seeded_samples_leave_the_global_generator_alone(dataset):
    state = torch.get_rng_state()
    one, other = dataset[0, 3], dataset[0, 3]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.image, other.image) and torch.equal(one.boxes, other.boxes)


def test_training_batches_do_not_mix_orientations(dataset):
    for batch in make_loader(dataset, 3, train=True, workers=0):
        assert len({width > height for height, width in batch.original_sizes}) == 1
    mixed = make_loader(dataset, 8, train=True, workers=0, group_by_aspect=False)
    (batch,) = list(mixed)
    assert len({width > height for height, width in batch.original_sizes}) == 2


def test_evaluation_loader_keeps_the_order_and_the_images(dataset):
    plain = CocoDetection(dataset.annotation_file, config=dataset.config)
    batches = list(make_loader(plain, 3, train=False, workers=1))
    assert [image_id for batch in batches for image_id in batch.image_ids] == list(range(1, 9))
    assert batches[0].ignore_boxes is not None and batches[1].ignore_boxes is None
    assert all(side % 32 == 0 for batch in batches for side in batch.images.shape[-2:])


def test_lightning_finds_set_epoch(dataset):
    pytest.importorskip("lightning")
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = make_loader(dataset, 3, train=True, workers=0)
    _set_sampler_epoch(loader, 7)
    assert loader.batch_sampler.epoch == 7


def test_more_workers_than_processors_are_said_once(dataset, monkeypatch, caplog, recwarn):
    """In one line of ours, which names the setting; torch warns of each loader."""
    monkeypatch.setattr(image, "_said", set())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    for workers in (0, 1, 2, 2):
        make_loader(dataset, 3, train=True, workers=workers)
    (said,) = caplog.messages
    assert "data.workers: 2 processes" in said and "may use 1 of the processors" in said
    assert not [warning for warning in recwarn if "DataLoader" in str(warning.message)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_may_be_told_after_the_iterator_is_made(tmp_path, workers):
    """As Lightning does when it resumes a run."""
    rows = [annotation(i, (5, 5, 20, 20)) for i in range(1, 13)]
    path = write_set(tmp_path, [(64, 64)] * 12, rows)
    config = DataConfig(long_side=64, short_side=[48, 64], test_short_side=48, workers=workers)
    dataset = CocoDetection(path, config=config, train=True)

    def batches(loader, epoch):
        iterator = iter(loader)
        loader.batch_sampler.sampler.set_epoch(epoch)
        return [(batch.image_ids, [tuple(size) for size in batch.image_sizes]) for batch in iterator]

    loaders = [make_loader(dataset, 4, train=True) for _ in range(2)]
    first = batches(loaders[0], 0)
    assert batches(loaders[0], 3) == batches(loaders[1], 3) != first
    assert batches(loaders[1], 0) == first, "the same workers, another epoch"


def test_ctrl_c_leaves_the_workers_to_the_process_that_reads_from_them(dataset):
    batches = iter(make_loader(dataset, 1, train=True, workers=1))
    next(batches)
    os.kill(batches._iterator._workers[0].pid, signal.SIGINT)
    assert len(list(batches)) == len(dataset) - 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("train", [False, True])
def test_an_error_of_a_worker_is_one_line_that_names_the_file(tmp_path, workers, train):
    path = write_set(tmp_path, [(64, 64)] * 2, [annotation(i, (5, 5, 20, 20)) for i in (1, 2)])
    dataset = CocoDetection(path, config=DataConfig(long_side=64, short_side=[48, 48], test_short_side=48), train=train)
    image = tmp_path / "images" / "0002.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(ValueError) as caught:
        list(make_loader(dataset, 1, train=train, workers=workers))
    assert str(caught.value).startswith(f"image file '{image}' cannot be read: ") and "\n" not in str(caught.value)
    image.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        list(make_loader(dataset, 1, train=train, workers=workers))
    assert str(caught.value) == f"image file '{image}' does not exist"


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_workers_cannot_decode_are_counted_and_named_once_each(tmp_path, workers, caplog):
    rows = [annotation(i, (5, 5, 20, 20)) for i in (1, 2, 3, 4)]
    path = write_set(tmp_path, [(64, 64)] * 4, rows)
    config = DataConfig(long_side=64, short_side=[48, 48], test_short_side=48, skip_bad=True)
    dataset = CocoDetection(path, config=config, train=True)
    for name in ("0002.png", "0003.png"):
        image = tmp_path / "images" / name
        image.write_bytes(image.read_bytes()[:60])
    loader = make_loader(dataset, 1, train=True, workers=workers)
    caplog.clear()
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        assert sorted(batch.image_ids[0] for batch in loader) == [1, 4, 4, 4]
    assert len(dataset.undecoded) == len(caplog.messages) == 2
    assert {line.split("'")[1][-8:] for line in dataset.undecoded} == {"0002.png", "0003.png"}
