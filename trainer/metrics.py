"""What a run tells: console lines in the community's shape, and one JSON object per step in metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Metrics:
    """Appends to metrics.jsonl and log.txt in the run folder, and prints; files are closed after every line.

    Args:
        run_dir: None writes and prints nothing (every rank but the first).
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._run_dir = run_dir
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []

    def listen(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """From now on give every row to `listener` too, where rows are written."""
        self._listeners.append(listener)

    def line(self, text: str) -> None:
        """A line for people, on the console and in log.txt."""
        if self._run_dir is not None:
            print(text, flush=True)
            _append(self._run_dir / "log.txt", text)

    def row(self, **values: Any) -> None:
        """A row for tools, in metrics.jsonl."""
        if self._run_dir is not None:
            _append(self._run_dir / "metrics.jsonl", json.dumps(values))
            for listener in self._listeners:
                listener(values)


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        print(line, file=file)
