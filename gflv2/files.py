"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, content: bytes | memoryview | str, *, keep_as: Path | None = None) -> Path:
    """Write a file beside its target and rename it: whatever happens, the target is the old file or the new one.

    The bytes are on the disk before the name changes. The temporary file lies in the target's folder, because a rename
    from another file system (that of ``TMPDIR``, say) would be a copy. Missing folders are made.

    Args:
        path: the target.
        content: text is written as UTF-8.
        keep_as: a second name, in the same folder, under which the old file stays; not on a file system that has no
            second names.

    Raises:
        OSError: with the path of the target and the cause, for example "No space left on device".
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
        temporary = Path(name)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        if keep_as is not None:
            _keep(path, keep_as)
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the first error counts
                temporary.unlink(missing_ok=True)
    return path


def _keep(path: Path, other: Path) -> None:
    temporary = other.with_name(other.name + ".part")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(other)


def _sync_folder(folder: Path) -> None:
    """The new name too must outlive a loss of power. Some file systems do not know this for folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
