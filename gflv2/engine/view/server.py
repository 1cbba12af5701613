"""The server behind ``gflv2 view``: for this machine alone, one picture at a time."""

from __future__ import annotations

import logging
import socket
import threading
import webbrowser
from pathlib import Path

from gflv2.engine.view.answer import PictureError, about, answer
from gflv2.extras import missing_package
from gflv2.models.detector import SingleStageDetector

try:
    from flask import Flask, Response, jsonify, request, send_from_directory
    from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, SecurityError
    from werkzeug.serving import BaseWSGIServer, make_server
except ModuleNotFoundError as error:
    raise missing_package(error, "gflv2 view") from error

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORT = 8710
MOST_MEGABYTES = 32
_FILES = Path(__file__).with_name("page")
# The page loads nothing from elsewhere, and nobody may frame it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def make_app(model: SingleStageDetector, *, most_megabytes: int = MOST_MEGABYTES) -> Flask:
    """The application: the page, ``GET /about`` and ``POST /detect``, whose body is a picture's file.

    It answers requests that name this machine as their host, and takes pictures from its own page alone, so that no
    page from elsewhere that is open in the same browser can use it.

    Args:
        model: a ``GFLV2``; one request at a time runs it.
        most_megabytes: a larger upload is refused before it is read.

    Raises:
        ValueError: ``most_megabytes`` is not an integer ≥ 1.
        TypeError: a model of another kind, an exported file for example: it gives detections alone.
    """
    if not isinstance(model, SingleStageDetector):
        raise TypeError(f"model: expected a GFLV2, whose outputs can be looked at, got {type(model).__name__}")
    if isinstance(most_megabytes, bool) or not isinstance(most_megabytes, int) or most_megabytes < 1:
        raise ValueError(f"most_megabytes: expected an integer ≥ 1, got {most_megabytes!r}")
    app = Flask("gflv2", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = most_megabytes * 2**20
    app.config["TRUSTED_HOSTS"] = [HOST, "localhost"]
    turn = threading.Lock()

    @app.get("/")
    def page() -> Response:
        return send_from_directory(_FILES, "page.html")

    @app.get("/<any('page.css', 'page.js'):name>")
    def file(name: str) -> Response:
        return send_from_directory(_FILES, name)

    @app.get("/about")
    def describe() -> Response:
        return jsonify({**about(model), "most_megabytes": most_megabytes})

    @app.post("/detect")
    def detect() -> Response | tuple[Response, int]:
        # Another page's request with this header would need this server's consent, which it does not give.
        if request.headers.get("X-Gflv2") != "view":
            return _refusal("pictures are taken from this page alone", 403)
        data = request.get_data(cache=False)
        with turn:
            try:
                return jsonify(answer(model, data))
            except PictureError as error:
                return _refusal(str(error), 400)

    @app.errorhandler(Exception)
    def fail(error: Exception) -> tuple[Response, int]:
        if isinstance(error, RequestEntityTooLarge):
            return _refusal(f"expected a file of at most {most_megabytes} MB, got a larger one", 413)
        if isinstance(error, SecurityError):
            return _refusal(f"this page answers at {HOST} and localhost only", 400)
        if isinstance(error, HTTPException):
            return _refusal(error.name, error.code or 500)
        _log.error("a picture failed", exc_info=error)
        return _refusal(f"{type(error).__name__}: {' '.join(str(error).split())}", 500)

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def _refusal(text: str, code: int) -> tuple[Response, int]:
    return jsonify({"error": text}), code


def serve(app: Flask, port: int = PORT) -> BaseWSGIServer:
    """A server of the application on the loopback address; ``serve_forever`` runs it, ``shutdown`` ends it.

    Args:
        port: 0: any that is free; ``server.port`` says which.

    Raises:
        ValueError: not a port. OSError: it is taken, or not allowed.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise ValueError(f"port: expected an integer from 0 to 65535, got {port!r}")
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"port {port} of {HOST} cannot be used ({error.strerror}); name another") from None
    # The server duplicates the descriptor that it is given.
    with listening:
        server = make_server(HOST, listening.getsockname()[1], app, threaded=True, fd=listening.fileno())
    return server


def view(
    model: SingleStageDetector, *, port: int = PORT, browser: bool = True, most_megabytes: int = MOST_MEGABYTES
) -> None:
    """Serve the page on this machine until Ctrl-C.

    Args:
        model: a ``GFLV2``.
        port: of 127.0.0.1; 0: any that is free.
        browser: open the page in the usual browser.
        most_megabytes: of a picture's file.

    Raises:
        ValueError, OSError: see ``make_app`` and ``serve``.
    """
    app = make_app(model, most_megabytes=most_megabytes)
    server = serve(app, port)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for each request
    address = f"http://{HOST}:{server.port}/"
    print(f"{model.config.name or 'the model'} at {address} (this machine only; Ctrl-C ends it)", flush=True)
    if browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    server.serve_forever()  # returns after Ctrl-C, and closes its socket
    print("ended")
