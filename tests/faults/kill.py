"""Kill a run again and again at random, resume it each time, and compare it bit by bit with the run never killed.

usage: python tests/faults/kill.py [--kills 20] [--seed 0] [--folder FOLDER]

A tiny detector on generated images, with the default data workers. The kills are SIGKILLs: halfway through the writing
of a file, just after a file got its name, inside a validation, inside a training step, at any moment of the clock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The lightest detector that has every part.
TINY = {
    "name": "tiny",
    "model": {
        "backbone": {"name": "tf_efficientnet_lite0", "frozen_stages": 1},
        "neck": {"channels": 16},
        "head": {"channels": 16, "stacked_convs": 1, "gn_groups": 4},
    },
    "data": {"long_side": 64, "short_side": [48, 64], "test_short_side": 64, "photometric": 0.5},
    "train": {
        "epochs": 3,
        "batch_size": 2,
        "base_batch_size": 2,
        "optimizer": "adamw",
        "lr": 0.004,
        "schedule": "cosine",
        "warmup_iterations": 2,
        "ema_decay": 0.9,
        "save_every_steps": 2,
    },
}
KINDS = ("written", "renamed", "validation", "step", "clock")


def train_run(data: Any, folder: Path, **options: Any) -> Any:
    """Start a run in ``folder``, or continue the one that it holds."""
    from gflv2.engine.train import train

    resumed = any((folder / "checkpoints").glob("*.ckpt"))
    if resumed:
        options = {"resume": folder, **options}
    else:
        options = {"config": TINY, "train_data": data.train, "val_data": data.val, "output": folder, **options}
    return train(pretrained=False, accelerator="cpu", progress=False, **options)


def states(folder: Path) -> Iterator[tuple[str, Any]]:
    """Everything of a finished run that must not depend on how often it was stopped, as (name, value) pairs."""
    import torch

    for name in ("last", "best"):
        content = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            if part in content:
                yield from _leaves(f"{name}.ckpt: {part}", content[part])
        exported = torch.load(folder / "weights" / f"{name}.pt", weights_only=True)
        yield from _leaves(f"{name}.pt", exported["state_dict"])
    report = json.loads((folder / "metrics.json").read_text())
    yield from _leaves("metrics.json", {key: value for key, value in report.items() if key != "seconds"})


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}.{index}", item)
    else:
        yield name, value


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs in any bit between two finished runs."""
    import torch

    first, second = dict(states(one)), dict(states(other))
    differing = [name for name in {**first, **second} if (name in first) != (name in second)]
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if not same:
            differing.append(name)
    return sorted(differing)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arrange_death(kind: str, count: int) -> list[Any]:
    """Let this process kill itself at the ``count``-th event of a kind; returns the callbacks that it needs."""
    from lightning.pytorch.callbacks import Callback

    from gflv2 import files

    events = itertools.count(1)

    class Killer(Callback):
        def on_before_optimizer_step(self, *args: Any) -> None:
            if kind == "step" and next(events) == count:
                _die()

        def on_validation_batch_start(self, *args: Any) -> None:
            if kind == "validation" and next(events) == count:
                _die()

    if kind == "written":

        def half(handle: int) -> None:
            if stat.S_ISREG(os.fstat(handle).st_mode) and next(events) == count:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                _die()

        files.os = _With(os, fsync=half)
    elif kind == "renamed":
        files._sync_folder = lambda folder: _die() if next(events) == count else None
    return [Killer()]


class _With:
    """A module with some of its functions exchanged."""

    def __init__(self, module: Any, **functions: Callable) -> None:
        self._module, self._functions = module, functions

    def __getattr__(self, name: str) -> Any:
        return self._functions.get(name) or getattr(self._module, name)


def _in_a_child(work: Callable[[], Any], kill_after: float | None = None) -> int | None:
    """Run in a copy of this process, which has everything imported. Returns its exit code, None where it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            logging.exception("the run failed")
        finally:
            os._exit(code)
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG)[0] == child:
                return 0
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return (
        None if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else os.waitstatus_to_exitcode(status)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=4, help="kills of one run, at most")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        return run(options, Path(options.folder or temporary))


def run(options: argparse.Namespace, folder: Path) -> int:
    import torch

    import gflv2.engine.train  # noqa: F401  so that every child has it
    from gflv2.data import shapes

    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    data = shapes.generate(folder / "shapes", seed=3, train=12, val=4, size=64)
    begin = time.monotonic()
    if _in_a_child(lambda: train_run(data, folder / "whole")) != 0:
        raise RuntimeError("the run that nobody kills failed")
    seconds = time.monotonic() - begin
    choose = random.Random(options.seed)
    kills = finished = wrong = 0
    kinds = itertools.cycle(options.kinds)
    while kills < options.kills:
        run_folder, times = folder / f"killed-{finished}", []
        while len(times) < min(options.each, options.kills - kills):
            kind = next(kinds)
            count, delay = choose.randint(1, 6), choose.uniform(0.1, seconds)
            after = f"after {delay:.1f} s" if kind == "clock" else f"number {count}"

            def work(kind: str = kind, count: int = count, run_folder: Path = run_folder) -> None:
                train_run(data, run_folder, callbacks=_arrange_death(kind, count))

            code = _in_a_child(work, delay if kind == "clock" else None)
            if code is None:
                times.append(f"{kind} {after}")
            elif code == 0:
                break  # it reached its end first
            else:
                raise RuntimeError(f"after {times}: the run failed by itself")
        if _in_a_child(lambda run_folder=run_folder: train_run(data, run_folder)) != 0:
            raise RuntimeError(f"after {times}: the resumed run failed")
        differing = differences(folder / "whole", run_folder)
        kills, finished, wrong = kills + len(times), finished + 1, wrong + bool(differing)
        verdict = f"{len(differing)} values differ, first {differing[0]}" if differing else "the same bits"
        print(f"{run_folder.name}: {len(times)} kills ({', '.join(times) or 'none'}): {verdict}", flush=True)
    print(f"{kills} kills in {finished} runs; {finished - wrong} of {finished} runs end with the same bits")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
