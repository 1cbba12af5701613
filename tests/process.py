"""The memory of a test's own process."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def peak_kib() -> int:
    """The most that this process has had, in KiB. Not `getrusage`'s where there is another: a child starts with the
    number of the process that started it, and pytest has had more than most tests measure.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:  # another system than Linux
        found = None
    return int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
