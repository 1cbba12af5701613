"""A server of weights on the loopback address that can also fail in the ways that servers do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>\n"


@dataclass
class WeightsServer:
    """What it serves and how.

    Attributes:
        files: name → content.
        fault: None; "html": a page with status 200; "cut": the connection ends after half of the bytes; "short": the
            same, but the header tells half of the size; "silent": half of the bytes, then nothing more.
        halfway: called when half of a file has been sent.
        asked: the paths of all requests.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None
    halfway: Callable[[], object] | None = None
    asked: list[str] = field(default_factory=list)
    address: str = ""
    over: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serving() -> Iterator[WeightsServer]:
    state = WeightsServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            content = state.files.get(self.path.rsplit("/", 1)[-1])
            if content is None:
                self.send_error(404)
                return
            if state.fault == "html":
                content = PAGE
            half = len(content) // 2
            self.send_response(200)
            self.send_header("Content-Length", str(half if state.fault == "short" else len(content)))
            self.end_headers()
            self.wfile.write(content[:half])
            if state.halfway is not None:
                self.wfile.flush()
                state.halfway()
            if state.fault == "silent":
                state.over.wait(20)
            if state.fault in (None, "html"):
                self.wfile.write(content[half:])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
