"""Text files as they come: whole, in one of the usual encodings, with errors that name them."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from gflv2.data.problems import shown_path

_MARKS = (
    # UTF-32's mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: str | Path, what: str) -> bytes:
    """The bytes of a file.

    Args:
        what: the kind of file, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder or a pipe, which would be waited for; or no file can have such a name.
        OSError: the system refuses; the message has its reason.
    """
    if "\0" in str(path):
        raise ValueError(f"{what} {shown_path(path)}: no file can have this name")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{what} {shown_path(path)} is not a file")
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{what} {shown_path(path)} does not exist") from None
    except OSError as error:  # not allowed, or a name that is too long to be shown whole
        raise OSError(f"{what} {shown_path(path)} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{what} {shown_path(path)}: no file can have this name") from None


def read_text(path: str | Path, what: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; as ``read_bytes``.

    Raises:
        ValueError: in another encoding.
    """
    data = read_bytes(path, what)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} {shown_path(path)} is not text in UTF-8: byte {data[error.start]:#04x} at {error.start}"
        ) from None
