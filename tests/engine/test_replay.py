"""The order of things around a recording, with stand-ins for streams and graphs: they need no GPU to be called."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from gflv2.engine.cuda_graph.replay import Replay

CUDA = torch.device("cuda", 0)


class Stream:
    def __init__(self, log: list[str], name: str = "side") -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Graph:
    log: list[str]

    def replay(self) -> None:
        self.log.append("replay")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order."""
    log: list[str] = []

    @contextmanager
    def noted(begin: str, end: str) -> Any:
        log.append(begin)
        yield
        log.append(end)

    monkeypatch.setattr(Graph, "log", log, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(log, "current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: noted("on side", "on current"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, *, stream: noted("begin", "end"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return log


def test_recorded_once_and_replayed(log: list[str]) -> None:
    results = iter("abc")

    def function() -> str:
        log.append("function")
        return next(results)

    replay = Replay(function, CUDA, before=lambda: log.append("before"))
    replay.warm_up(2)
    assert log == [
        *("side waits for current", "on side", "before", "function", "before", "function"),
        *("on current", "current waits for side"),
    ]
    log.clear()
    replay.record()
    # What is recorded is never preceded by what must not be recorded.
    assert log == ["before", "begin", "function", "end"]
    log.clear()
    assert [replay(), replay()] == ["c", "c"], "the place of the result, which each replay fills"
    assert log == ["replay", "replay"]


def test_without_a_graph_the_function_is_called(log: list[str]) -> None:
    for device, graph in ((torch.device("cpu"), None), (CUDA, False)):
        replay = Replay(lambda: log.append("function"), device, graph=graph, before=lambda: log.append("before"))
        replay.warm_up(1)
        replay.record()
        replay()
        assert log == ["before", "function"] * 2
        log.clear()


def test_checks_of_values_are_refused(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFLV2_CHECK", "1")
    with pytest.raises(ValueError, match="GFLV2_CHECK: expected 0 while a graph is recorded"):
        Replay(lambda: None, CUDA)
    Replay(lambda: None, torch.device("cpu"))
