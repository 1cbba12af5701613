"""The memory of a test's own process."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
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


def growth_kib(prepare: str, call: str) -> int:
    """What the code of ``call`` adds to the peak of ``prepare``, in a process of its own with two threads of torch."""
    program = f"""
import torch
from tests.process import peak_kib
torch.set_num_threads(2)
{prepare}
before = peak_kib()
{call}
print(peak_kib() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(run.stdout)
