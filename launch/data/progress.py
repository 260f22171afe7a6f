"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

import tqdm

_LINE_INTERVAL_SECONDS = 10.0


class Progress:
    """Counts `unit` up to `total`. `quiet` shows nothing."""

    def __init__(self, label: str, total: int, unit: str, *, quiet: bool = False) -> None:
        self._label, self._total, self._unit, self._quiet = label, total, unit, quiet
        self.done = 0
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if not quiet and sys.stderr.isatty():
            tqdm.tqdm.monitor_interval = 0  # no thread of tqdm's own: `data prepare` forks
            self._bar = tqdm.tqdm(desc=label, total=total, unit=unit, unit_scale=True, unit_divisor=1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int, note: str = "") -> None:
        """Add to the count."""
        self.advance_to(self.done + count, note)

    def advance_to(self, done: int, note: str = "") -> None:
        """Set the count; `note` stands at the end of the bar or line."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        if self._bar is None and not self._quiet and now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            percent = 100 * done / self._total if self._total else 100.0
            print(
                f"{self._label}: {percent:.0f}% after {now - self._started:.0f} s {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )
