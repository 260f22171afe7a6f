"""What the benchmarks share: running a command measured, and a table with hardware, date and command above it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout that was not installed will do

from launch.run_folder import git_commit, hardware, package_version  # noqa: E402


@dataclass(frozen=True)
class Cost:
    """What a command took: wall and CPU seconds of all its processes, and the peak memory of the largest of them."""

    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


def run(command: Sequence[object]) -> tuple[Cost, str]:
    """Runs a command in a process that does nothing else, so that peak memory is its own; (cost, standard output)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_and_tell([str(word) for word in command], writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = json.loads(pipe.read())
    os.waitpid(child, 0)
    if told["code"] != 0:
        raise SystemExit(f"{' '.join(str(word) for word in command)}: exit code {told['code']}\n{told['output']}")
    return Cost(**told["cost"]), told["output"]


def _run_and_tell(command: list[str], writing: int) -> None:
    """In the forked child: runs the command and writes what it took to the pipe; never returns."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall_seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = Cost(wall_seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(json.dumps({"code": done.returncode, "output": done.stdout, "cost": cost.__dict__}).encode())
    os._exit(0)


def albatross(*arguments: object) -> list[object]:
    """The command line that runs `albatross ARGUMENTS` with this Python."""
    return [sys.executable, "-m", "launch.cli", *arguments]


def publish(name: str, rows: list[dict[str, Any]], json_path: Path | None) -> None:
    """Prints the rows as a markdown table under hardware, date and command, and writes all of it as JSON."""
    facts = hardware()
    machine = ", ".join(facts["gpus"]) or f"{facts['num_cpus']} cores of {facts['cpu']}"
    heading = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
        "hardware": f"{machine}, {facts['memory_bytes'] / 1e9:.0f} GB",
        "torch": package_version("torch"),
        "git_commit": git_commit(),
    }
    print("\n".join(f"{key}: {value}" for key, value in heading.items()), end="\n\n")
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row[column]) for column in columns)} |")
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({**heading, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
