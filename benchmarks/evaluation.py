"""The evaluator: seconds, tokens/s, peak memory and BPB of every mode on one artifact; one table, one JSON file.

    python benchmarks/evaluation.py FILE --data DIR [--num-processes N] [--device D] [--json FILE] [--eval.NAME VALUE]

Each mode is the command a user would type, in a process of its own: `python -m eval FILE --data DIR --mode MODE`.
"start" is everything before and after scoring: starting Python, importing PyTorch, reading and decoding the artifact.
Settings are the artifact's own, and overrides apply to all modes. CPU seconds are those of the whole command, so that
other work on the machine disturbs them little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODES: dict[str, tuple[str, list[str]]] = {
    "plain": ("plain", []),
    "sliding": ("sliding", []),
    "ttt, adapters": ("ttt", ["--eval.ttt.method", "lora"]),
    "ttt, phased": ("ttt", ["--eval.ttt.method", "phased"]),
    "ttt, full weights": ("ttt", ["--eval.ttt.method", "full"]),
}
SECTIONS = {"plain": "post_quantization", "sliding": "post_quantization_sliding", "ttt": "post_ttt"}


def measure(command: list[str], mode: str) -> dict[str, Any]:
    """Runs one evaluation; returns its section of the report with the command's own times added."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "--report", str(report)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        section: dict[str, Any] = json.loads(report.read_text())[SECTIONS[mode]]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return section | {"command_seconds": wall, "cpu_seconds": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=list(MODES))
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options, overrides = parser.parse_known_args()
    rows: dict[str, dict[str, Any]] = {}
    for name in options.modes:
        mode, settings = MODES[name]
        command = [sys.executable, "-m", "eval", str(options.artifact.resolve()), "--data", str(options.data.resolve())]
        command += ["--mode", mode, "--num-processes", str(options.num_processes), *settings, *overrides]
        command += ["--device", options.device] if options.device else []
        rows[name] = measure(command, mode)
    any_row = next(iter(rows.values()))
    hardware = (
        any_row["hardware"].get("gpu") or f"{os.cpu_count()} CPU cores, {any_row['hardware']['num_threads']} threads"
    )
    heading = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", "benchmarks/evaluation.py", *sys.argv[1:]]),
        "hardware": hardware,
        "num_processes": options.num_processes,
        "torch": any_row["software"]["torch"],
        "preset": any_row["preset"],
        "targets": any_row["num_targets"],
    }
    print("; ".join(f"{key} {value}" for key, value in heading.items()))
    columns = f"{'seconds':>9}{'tokens/s':>11}{'start s':>9}{'CPU s':>8}{'peak MB':>9}{'BPB':>10}{'against plain':>15}"
    print(f"{'mode':20}{columns}")
    plain = rows.get("plain", {}).get("bpb")
    for name, row in rows.items():
        against = f"{row['bpb'] - plain:+.4f}" if plain is not None else "-"
        print(
            f"{name:20}{row['seconds']:>9.1f}{row['tokens_per_second']:>11,.0f}"
            f"{row['command_seconds'] - row['seconds']:>9.1f}{row['cpu_seconds']:>8.1f}"
            f"{row['peak_memory_bytes'] / 1e6:>9,.0f}{row['bpb']:>10.5f}{against:>15}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**heading, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
