"""`normalisers`: the clamps, and the one all-reduce over real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from gflv2.ops import normalisers


def test_clamps() -> None:
    torch.testing.assert_close(normalisers(torch.tensor([5.0, 2.5])), torch.tensor([5.0, 2.5]))
    torch.testing.assert_close(normalisers(torch.tensor([0.0, 0.0])), torch.tensor([1.0, 1e-12]))
    torch.testing.assert_close(normalisers(torch.tensor([3.0, 0.2]), weight_floor=1.0), torch.tensor([3.0, 1.0]))
    assert normalisers(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_sums_are_left_alone() -> None:
    sums = torch.tensor([0.0, 0.0])
    normalisers(sums)[0] = 7
    assert sums.tolist() == [0.0, 0.0]


def test_mean_over_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has seen no box: its share of the first sum is 1 an image, of the second 0."""
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    calls = []

    def all_reduce(values: torch.Tensor) -> None:
        calls.append(values.shape)
        values += torch.tensor([2.0, 0.0])

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    sums = torch.tensor([6.0, 3.0])
    torch.testing.assert_close(normalisers(sums), torch.tensor([4.0, 1.5]))
    assert sums.tolist() == [6.0, 3.0] and calls == [(2,)]


def rank(number: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=number, world_size=world)
    # The second rank has seen no box: it takes part all the same.
    sums = torch.tensor([6.0, 3.0]) if number == 0 else torch.tensor([2.0, 0.0])
    found = normalisers(sums)
    assert sums.tolist() == ([6.0, 3.0] if number == 0 else [2.0, 0.0])
    torch.save(found, Path(folder) / f"{number}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_mean_over_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(rank, args=(2, str(tmp_path)), nprocs=2)
    for number in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{number}.pt"), torch.tensor([4.0, 1.5]))
