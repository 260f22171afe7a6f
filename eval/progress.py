"""Progress of an evaluation: running BPB and time to finish; a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

BAR_WIDTH = 24
TERMINAL_INTERVAL_SECONDS = 0.2
PLAIN_INTERVAL_SECONDS = 10.0


class Progress:
    """Counts scored targets and shows how far the evaluation is. `bytes_per_target` makes the running BPB."""

    def __init__(
        self,
        label: str,
        num_targets: float,
        bytes_per_target: float,
        visible: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.label = label
        self.num_targets = num_targets
        self.bytes_per_target = bytes_per_target
        self.num_done = 0
        self.nats = 0.0
        self._visible = visible
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = self._started

    def add(self, num_targets: int, nats: float) -> None:
        """Counts newly scored targets and their nats, and prints if the last print is long enough ago."""
        self.num_done += num_targets
        self.nats += nats
        interval = TERMINAL_INTERVAL_SECONDS if self._terminal else PLAIN_INTERVAL_SECONDS
        now = time.monotonic()
        if self._visible and now - self._shown >= interval:
            self._shown = now
            print(self._line(now), end="" if self._terminal else "\n", file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar's line on a terminal."""
        if self._visible and self._terminal:
            print(self._line(time.monotonic()), file=self._stream, flush=True)

    def _line(self, now: float) -> str:
        fraction = self.num_done / self.num_targets
        bpb = self.nats / math.log(2.0) / max(1.0, self.num_done * self.bytes_per_target)
        elapsed = now - self._started
        left = elapsed / fraction - elapsed if fraction > 0 else math.inf
        eta = f"{left:.0f}s left" if math.isfinite(left) else "starting"
        text = f"{self.label}: {100 * fraction:5.1f}% running val_bpb:{bpb:.4f} {elapsed:.0f}s elapsed, {eta}"
        if not self._terminal:
            return text
        filled = round(BAR_WIDTH * min(1.0, fraction))
        return f"\r[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {text}   "


class Budget:
    """Wall-clock budget: says whether another step like the last one still fits."""

    def __init__(self, budget_seconds: float | None, started: float) -> None:
        self._deadline = math.inf if budget_seconds is None else started + budget_seconds
        self._last = time.monotonic()
        self._longest_recent = 0.0

    def allows_another(self) -> bool:
        """Called after each step. False once the next step, taken to last as long as this one, would end too late."""
        now = time.monotonic()
        self._longest_recent = max(now - self._last, 0.5 * self._longest_recent)
        self._last = now
        return now + self._longest_recent <= self._deadline

    @property
    def spent(self) -> bool:
        return time.monotonic() >= self._deadline
