"""A function on tensors that stay where they are: recorded once as a CUDA graph and replayed, or called each time.

Both forms run the same function on the same buffers: a CPU tests everything but the recording itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gflv2.ops.checks import bad_type, bad_value, values_are_checked

Result = TypeVar("Result")


class Replay(Generic[Result]):
    """``replay()`` does what ``function()`` does, to the values that its buffers then hold.

    Args:
        function: reads and writes tensors that live as long as this object, and waits for none of their values.
        device: of all these tensors.
        graph: True: a CUDA graph. False: the function is called. None: a graph on a CUDA device.
        before: called before each call of the function, and once before it is recorded; never replayed.

    Raises:
        ValueError: a graph on another device, or with ``GFLV2_CHECK=1``, whose checks wait for values.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        device: torch.device,
        *,
        graph: bool | None = None,
        before: Callable[[], Any] = lambda: None,
    ) -> None:
        self.recorded = device.type == "cuda" if graph is None else bool(graph)
        if self.recorded and device.type != "cuda":
            bad_value("graph", f"False or None for a model on {device}: only CUDA has graphs", graph)
        if self.recorded and values_are_checked():
            bad_value("GFLV2_CHECK", "0 while a graph is recorded: the checks of values wait for the device", 1)
        self._function, self._device, self._before = function, device, before
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    def warm_up(self, times: int) -> None:
        """Call the function a few times: what is loaded, compiled, chosen and allocated once must not be recorded."""
        with self._beside_the_current_stream():
            for _ in range(times):
                self._before()
                self._function()

    def record(self) -> None:
        """Record the function, on memory of the graph's own. Without a graph there is nothing to do."""
        if not self.recorded:
            return
        self._before()
        graph = torch.cuda.CUDAGraph()
        # The context's own stream would be that of the first device which ever recorded something.
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=torch.cuda.Stream(self._device)):
            self._result = self._function()
        self._graph = graph

    def __call__(self) -> Result:
        """Run. The result of a graph lies in its memory and changes with the next run."""
        if self._graph is None:
            self._before()
            return self._function()
        self._graph.replay()
        return self._result

    @contextlib.contextmanager
    def _beside_the_current_stream(self) -> Iterator[None]:
        """A side stream: what the current stream has used, autograd nodes too, cannot be recorded on another."""
        if not self.recorded:
            yield
            return
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(stream)


class Weights:
    """Holds the tensors of a model: a graph uses their addresses, even after the model has got others."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._held = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]

    def check(self) -> None:
        """Raise ValueError if the model has been moved since; its first tensor is looked at."""
        if next(self._model.parameters()).data_ptr() != self._held[0].data_ptr():
            bad_value("model", "weights where they lay at the capture: capture again after model.to()", "moved weights")


def to_device(rows: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host as a tensor on the device. From page-locked memory: such a copy does not wait."""
    tensor = torch.tensor(rows, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def check_shape(shape: Any) -> tuple[int, int, int, int]:
    """(B, 3, H, W) of the images that a captured call takes."""
    if not isinstance(shape, (tuple, list, torch.Size)) or not all(type(size) is int for size in shape):
        bad_type("shape", "four integers (B, 3, H, W)", shape)
    if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
        bad_value("shape", "four positive integers (B, 3, H, W)", tuple(shape))
    return tuple(shape)


def check_autocast(dtype: Any, device: torch.device) -> None:
    """Check ``autocast`` (None, or the half precision of the network), and that none surrounds the recording."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        bad_value("autocast", "None, torch.bfloat16 or torch.float16", dtype)
    if torch.is_autocast_enabled(device.type):
        # Its cache of converted weights would outlive the recording: replays would read stale copies.
        bad_value("autocast", "no torch.autocast around the capture; say autocast=torch.bfloat16 instead", "one")


def half_precision(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """The context of the recorded part; entered inside, so that its cache of converted weights ends there too."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
