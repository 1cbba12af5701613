"""The processes of a run on several devices: a bounded start, and none that outlives the others."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

_GRACE = 10.0  # seconds for the other processes to end by themselves after an error
_LOOK = 1.0  # seconds between two looks at the first process


class GroupError(RuntimeError):
    """The processes of a run did not come together."""


@contextlib.contextmanager
def said_by_the_first(rank: int) -> Iterator[contextlib.ExitStack]:
    """While a run is set up, which every process of it does alike, the first one alone says what all would.

    Errors are raised in every process. From ``close()`` of what it gives on, each process speaks for itself again: its
    batches are its own.
    """
    with contextlib.ExitStack() as stack:
        if rank:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            log = logging.getLogger("gflv2")
            stack.callback(log.setLevel, log.level)
            log.setLevel(logging.ERROR)
        yield stack


def bound_start(trainer: Any, seconds: float) -> None:
    """Let the start of the process group fail after so many seconds; torch's own limit, of half an hour, is for the
    collectives that follow (one process evaluates while the others wait).
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    start, later = strategy.setup_distributed, strategy._timeout

    def bounded() -> None:
        strategy._timeout = timedelta(seconds=seconds)
        try:
            start()
        except RuntimeError as error:  # torch.distributed's errors are
            said = str(error).strip().splitlines()
            raise GroupError(
                f"the {trainer.world_size} processes of the run did not come together within {seconds:g} s "
                f"(--train.start_timeout): process {trainer.global_rank} got: {said[0] if said else error!r}"
            ) from error
        finally:
            strategy._timeout = later
        if later is not None:
            _set_timeout(later)

    strategy.setup_distributed = bounded


def _set_timeout(timeout: timedelta) -> None:
    change = getattr(torch.distributed, "set_timeout", None) or torch.distributed.distributed_c10d._set_pg_timeout
    change(timeout)


@contextlib.contextmanager
def ended_together(trainer: Any) -> Iterator[None]:
    """Around ``trainer.fit``: after an error of the first process, those that it started end too.

    Lightning does that only at Ctrl-C; elsewhere they would wait in a collective for half an hour. It watches them the
    other way round, and kills the first process some seconds after one of them failed. That must not happen to a
    process that is about to say what went wrong.
    """
    try:
        yield
    except BaseException:
        children = getattr(trainer.strategy.launcher, "procs", [])
        ours = [child for child in children if isinstance(child, subprocess.Popen)]
        if ours:
            children.clear()  # what Lightning's thread looks at
            _end(ours)
        raise


def _end(processes: list[subprocess.Popen]) -> None:
    limit = time.monotonic() + _GRACE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(limit - time.monotonic(), 0))
    for process in processes:
        if process.poll() is None:
            process.kill()


def follow_the_first(trainer: Any) -> threading.Event:
    """Called in every process of the group: one that the first process started ends when that one is gone.

    Between GPUs a collective whose other side is gone waits for its time limit.

    Returns:
        To be set when the training is over: from then on the first process may go.
    """
    over = threading.Event()
    if trainer.world_size > 1:
        first = trainer.strategy.broadcast((socket.gethostname(), os.getpid()))
        if trainer.global_rank and (socket.gethostname(), os.getppid()) == first:
            arguments = (first[1], trainer.global_rank, over)
            threading.Thread(target=_watch, args=arguments, daemon=True, name="first process").start()
    return over


def _watch(first: int, rank: int, over: threading.Event) -> None:
    while os.getppid() == first:
        if over.wait(_LOOK):
            return
    print(f"process {rank} of the run ends: the first process is gone", file=sys.stderr, flush=True)
    os._exit(1)
