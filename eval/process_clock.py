"""How long this process has been running, importing torch included: what a time budget is counted from."""

from __future__ import annotations

import os
import time
from pathlib import Path

FALLBACK_START = time.monotonic()


def seconds_since_process_start() -> float:
    """Seconds since the process began, from the kernel where it says so, else since this module was imported."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        start = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start)
    except (OSError, AttributeError, IndexError, ValueError, UnicodeDecodeError):
        return time.monotonic() - FALLBACK_START
