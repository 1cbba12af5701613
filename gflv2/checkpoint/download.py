"""Named weights from the network, through torch.hub's cache: a file is there whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gflv2.checkpoint.errors import CheckpointError
from gflv2.checkpoint.zoo import NamedWeights

MIRROR = "GFLV2_WEIGHTS_MIRROR"
_SILENCE = 60.0  # seconds without a byte after which a connection counts as lost
_CHUNK = 1 << 20
_log = logging.getLogger("gflv2")


def cache_folder() -> Path:
    """Where torch.hub keeps files of weights: ``~/.cache/torch/hub/checkpoints``, or below ``TORCH_HOME``."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(named: NamedWeights, *, progress: bool = True, check: Callable[[Path], object] | None = None) -> Path:
    """The file of named weights, from the cache, else downloaded into it. Proxies are those of the environment.

    The environment variable ``GFLV2_WEIGHTS_MIRROR`` names another place, a folder's address under which every file
    lies under its own name (``http://…``, ``file:///…``). Then files that are otherwise downloaded by hand come from
    there too.

    Args:
        named: of ``find_weights``.
        progress: show torch.hub's bar.
        check: reads a file of which no hash is published, and raises ``CheckpointError`` where it cannot be read.

    Raises:
        CheckpointError: the network does not give the file, gives another or a part of it, or what lies in the cache is
            not that file. One line that says what to do.
    """
    folder = cache_folder()
    path = folder / named.file
    if path.exists():
        if problem := _problem(path, named, None):
            raise CheckpointError(f"weights: {path} in the cache is {problem}; delete it and call again")
        return path
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    address = f"{mirror}/{named.file}" if mirror else named.address
    if address is None:
        raise CheckpointError(
            f"weights: those of {named.name} lie on a page that a browser has to open, {named.page}: save the file as "
            f"{path} and call again"
        )
    by_hand = f"get the file elsewhere and save it as {path}, or set {MIRROR} to a place that has it"
    _log.info("weights of %s: downloading %s to %s", named.name, address, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the cache's folder, because a rename from another file system would be a copy.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as place:
            part = Path(place) / named.file
            with _patience():
                torch.hub.download_url_to_file(address, str(part), progress=progress)
            if problem := _problem(part, named, check):
                raise CheckpointError(
                    f"weights: {address} gave {problem}; nothing was kept. Call again; if that does not help, {by_hand}"
                )
            part.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"weights: {address} could not be downloaded ({reason}); {by_hand}") from error
    return path


def _problem(path: Path, named: NamedWeights, check: Callable[[Path], object] | None) -> str | None:
    """What is wrong with a file, to be read after "gave"; None: nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(256).lstrip()[:1] == b"<":
            return "a web page in place of the file"
    if named.sha256 is not None:
        found = sha256(path)
        if not found.startswith(named.sha256):
            digits = named.sha256[:8]
            return f"a part of the file or another one: {size:,} bytes, SHA-256 {found[:8]}…, expected {digits}…"
    elif check is not None:
        try:
            check(path)
        except CheckpointError as error:
            return f"what is no whole checkpoint: {error}"
    return None


def sha256(path: Path) -> str:
    """Hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """torch.hub opens its connection without a timeout: a server that falls silent would be waited for for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
