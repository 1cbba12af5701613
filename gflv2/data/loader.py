"""Loaders: batches of one orientation for training, every image once for evaluation, equal shares for every process."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gflv2.config import DataConfig
from gflv2.data.batch import collate
from gflv2.data.image import say_once


class SampleKey(NamedTuple):
    """What a sampler asks a data set for: an item and the seed of its random transforms.

    The seed travels with the index, so a sample does not depend on the number of workers or on which of them made it.
    """

    index: int
    seed: int


class _BatchSampler:
    """A share of the batches for each process; ``len`` is the same in all of them.

    Rank and world size are asked for at the first use, because a trainer starts the processes after loaders are built.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        self._rank, self._world_size = rank, world_size
        self.epoch = 0
        self._skipped = 0

    @property
    def rank(self) -> int:
        return self._rank if self._rank is not None else rank_and_world()[0]

    @property
    def world_size(self) -> int:
        return self._world_size if self._world_size is not None else rank_and_world()[1]

    @property
    def sampler(self) -> _BatchSampler:
        """Itself: Lightning calls ``set_epoch`` on ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Another order and other random transforms for each epoch."""
        if epoch != self.epoch:
            self._skipped = 0  # of an epoch that had no batch left
        self.epoch = int(epoch)

    def start_at(self, epoch: int, batch: int) -> None:
        """Let the next iteration, and that one alone, begin with batch number ``batch`` (from 0) of an epoch.

        Call it before anything makes an iterator of the loader: one with workers asks for batches at once.
        """
        self.epoch, self._skipped = int(epoch), int(batch)


class GroupedBatchSampler(_BatchSampler):
    """Shuffled batches of training in which all images belong to one group (wide, or not wide).

    Each epoch shows every image once. With several processes a group is filled up by repeating fewer than
    ``world_size`` of its images, so that every process gets equally many batches of equal sizes. The sizes of a group's
    batches differ by at most one image: a last batch of a single image would weigh as much as a full one.

    Args:
        groups: (N,) the group of each item, e.g. ``CocoDetection.aspect_groups``.
        batch_size: images per batch and process, at most.
        seed: of the order and of the random transforms, together with the epoch.
        rank, world_size: None: asked of ``torch.distributed``.
    """

    def __init__(
        self, groups, batch_size: int, *, seed: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        super().__init__(rank, world_size)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.groups = torch.as_tensor(groups).to(torch.int64)
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        share = self.batch_size * self.world_size
        return sum(math.ceil(int(count) / share) for count in self.groups.unique(return_counts=True)[1])

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # All of this happens at the first `next`: a loader with workers calls `iter` twice and uses the second one.
        first, self._skipped = self._skipped, 0
        # The same on every rank: each makes the whole plan and takes its part.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        seeds = torch.randint(2**62, (len(self.groups),), generator=generator)
        batches: list[Tensor] = []
        for group in self.groups.unique():
            items = (self.groups == group).nonzero()[:, 0]
            items = items[torch.randperm(len(items), generator=generator)]
            missing = -len(items) % self.world_size
            items = torch.cat([items, items.repeat(math.ceil(missing / len(items)))[:missing]])
            mine = items[self.rank :: self.world_size]
            batches += mine.tensor_split(math.ceil(len(mine) / self.batch_size))
        for position in torch.randperm(len(batches), generator=generator)[first:]:
            yield [SampleKey(int(i), int(seeds[i])) for i in batches[int(position)]]


class ShardedBatchSampler(_BatchSampler):
    """Batches of evaluation in the order of the data set, dealt out to the processes.

    Where the images cannot be dealt out evenly, the last are repeated (``CocoEvaluator`` counts each image once).
    """

    def __init__(self, length: int, batch_size: int, *, rank: int | None = None, world_size: int | None = None) -> None:
        super().__init__(rank, world_size)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.length = length
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.length / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        share = math.ceil(self.length / self.world_size)
        mine = [min(self.rank + i * self.world_size, self.length - 1) for i in range(share)]
        for start in range(0, share, self.batch_size):
            yield mine[start : start + self.batch_size]


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where ``torch.distributed`` does not run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class _Loader(DataLoader):
    """A loader whose iterator starts at the first batch, and whose workers' errors are as short as they were raised.

    A trainer makes the iterator of a resumed run before it says which epoch that is; workers that start at once would
    fetch the batches of the first epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        return _Batches(super().__iter__, self.dataset if self.num_workers else None)


class _Batches:
    """``dataset``: is told what the workers could not decode; None: there are no workers."""

    def __init__(self, start: Callable[[], Iterator[Any]], dataset: Any = None) -> None:
        self._start, self._iterator, self._dataset = start, None, dataset

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except (ValueError, OSError) as error:
            text = str(error)
            if "Original Traceback" not in text:
                raise
            # torch raises the same type again, with the worker's traceback as its text; the last line is what was said.
            said = text.rstrip().splitlines()[-1].partition(": ")[2]
            raise type(error)(said) from error
        if self._dataset is not None and getattr(batch, "instead_of", ()):
            self._dataset.note_undecoded(batch.instead_of)
        return batch


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    config: DataConfig | None = None,
    workers: int | None = None,
    seed: int = 0,
    group_by_aspect: bool = True,
    rank: int | None = None,
    world_size: int | None = None,
) -> DataLoader:
    """A loader of ``Batch``. It divides the data among processes by itself: switch off a trainer's own sampler
    replacement (Lightning: ``use_distributed_sampler=False``).

    Args:
        dataset: e.g. ``CocoDetection``; for ``train`` it takes ``SampleKey`` and has ``aspect_groups``.
        batch_size: images per batch and process.
        train: shuffled batches with augmentation seeds, or the data set's order.
        config: padding and workers; None: the data set's ``config``.
        workers: worker processes; None: ``config.workers``. 0 reads in this process.
        seed: see ``GroupedBatchSampler``.
        group_by_aspect: wide images and the others in separate batches.
        rank, world_size: None: asked of ``torch.distributed``.
    """
    config = config if config is not None else getattr(dataset, "config", None) or DataConfig()
    workers = config.workers if workers is None else workers
    if train:
        groups = dataset.aspect_groups if group_by_aspect else torch.zeros(len(dataset))
        sampler = GroupedBatchSampler(groups, batch_size, seed=seed, rank=rank, world_size=world_size)
    else:
        sampler = ShardedBatchSampler(len(dataset), batch_size, rank=rank, world_size=world_size)
    processors = _processors()
    if workers > processors:
        say_once(
            "workers",
            f"data.workers: {workers} processes are to read images, and this process may use {processors} of the "
            "processors: they take turns with the training; 0 reads in the process itself",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # said above
        return _Loader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=partial(collate, divisor=config.pad_divisor),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0 and train,
            worker_init_fn=_outlive_a_signal,
            # Its own generator: making an iterator draws a number, and a resumed run makes one more of them.
            generator=torch.Generator().manual_seed(seed),
        )


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _outlive_a_signal(worker: int) -> None:
    """A signal to a whole process group must not end the workers before the last step.

    SIGINT comes from a terminal: the process that reads from the workers ends them. SIGTERM comes from ``timeout`` or a
    scheduler; the second one ends them, which is how a loader ends workers that do not answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
