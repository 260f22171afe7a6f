"""What a run tells: console lines in the community's shape, and one JSON object per step in metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO


class Metrics:
    """Writes metrics.jsonl and the console; silent on every rank but the first (pass no folder).

    Args:
        run_dir: gets metrics.jsonl and log.txt, appended to; None: write nothing.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._files: list[TextIO] = []
        self._rows: TextIO | None = None
        self._log: TextIO | None = None
        if run_dir is not None:
            self._rows = open(run_dir / "metrics.jsonl", "a", encoding="utf-8")
            self._log = open(run_dir / "log.txt", "a", encoding="utf-8")

    def line(self, text: str) -> None:
        """A line for people, on the console and in log.txt."""
        if self._log is not None:
            print(text, flush=True)
            print(text, file=self._log, flush=True)

    def row(self, **values: Any) -> None:
        """A row for tools."""
        if self._rows is not None:
            print(json.dumps(values), file=self._rows, flush=True)

    def close(self) -> None:
        for file in (self._rows, self._log):
            if file is not None:
                file.close()
