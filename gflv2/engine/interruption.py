"""SIGINT and SIGTERM while a run trains: a wish to stop, which is granted between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; the message says where it stands and which command goes on.

    Attributes:
        code: exit status for a shell, 128 + the signal's number: 130 (SIGINT) or 143 (SIGTERM).
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


class Stop(Exception):
    """Leaves the training loop; the state is saved.

    Attributes:
        signum: the signal that asked for it; None: ``max_steps`` is reached.
    """

    def __init__(self, signum: int | None) -> None:
        super().__init__("the run stops here")
        self.signum = signum


class Signals:
    """While entered, the first SIGINT or SIGTERM is noted in ``received``. A second SIGINT interrupts at once.

    Handlers belong to the main thread; elsewhere this does nothing. A signal that the parent told us to ignore, as
    ``nohup`` does, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signum
