"""`make quickstart`: the whole path, from text to bits per byte, with the commands that a user would type.

The text is what every Python installation carries: the language reference's topics and the docstrings of the standard
library. Nothing is downloaded. Everything is written below runs/quickstart.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launch import exit_codes
from launch.data.corpus import python_documentation
from launch.run_folder import RunFolder

PRESET = "tiny"
NUM_PROCESSES = 2
FOLDER = Path("runs/quickstart")
SECTIONS = {
    "pre_quantization": "trained (averaged weights)",
    "post_quantization": "quantized and packed, plain",
    "post_quantization_sliding": "quantized, sliding window",
    "post_ttt": "quantized, test-time training",
}


def main() -> int:
    """Runs every step, stopping at the first that fails; returns the exit code."""
    started = time.monotonic()
    folder = RunFolder(FOLDER)
    shutil.rmtree(folder.path, ignore_errors=True)
    text, data = folder.path / "text", folder.path / "data"
    text.mkdir(parents=True)
    train_texts, val_texts = python_documentation()
    write_jsonl(text / "train.jsonl", train_texts)
    write_jsonl(text / "val.jsonl", val_texts)
    evaluate = ["evaluate", folder.artifact, "--data", data, "--report", folder.report]
    steps = [
        ["data", "prepare", "--input", text, "--tokenizer", "train:1024", "--out", data],
        ["train", PRESET, "--data", data, "--out", folder.path, "--num-gpus", NUM_PROCESSES],
        ["pack", folder.path],
        [*evaluate, "--mode", "plain", "sliding", "ttt", "--num-processes", NUM_PROCESSES],
    ]
    seconds = {}
    for step in steps:
        before = time.monotonic()
        code = run([str(word) for word in step])
        if code != 0:
            return code
        seconds[" ".join(step[: 2 if step[0] == "data" else 1])] = time.monotonic() - before
    print()
    print(summary(json.loads(folder.report.read_text(encoding="utf-8")), folder))
    timing = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"{time.monotonic() - started:.0f} s in all: {timing}")
    return 0


def run(arguments: list[str]) -> int:
    """Runs `albatross ARGUMENTS` in its own process, shown first as a user would type it; its exit code."""
    print(f"\n$ albatross {shlex.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "launch.cli", *arguments], check=False).returncode


def write_jsonl(path: Path, texts: Iterable[str]) -> None:
    """One {"text": ...} a line."""
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def summary(report: dict[str, Any], folder: RunFolder) -> str:
    """The figures of report.json as a table, and what test-time training gained."""
    lines = [f"{'bits per byte of the validation text':<40}{'BPB':>8}"]
    lines += [f"{title:<40}{report[name]['bpb']:>8.4f}" for name, title in SECTIONS.items()]
    gain = report["post_quantization"]["bpb"] - report["post_ttt"]["bpb"]
    verb = "lowers" if gain > 0 else "RAISES"
    lines.append(f"test-time training {verb} BPB by {abs(gain):.4f} against plain scoring of the same file")
    lines.append(
        f"byte ledger: {report['post_ttt']['ledger']}, lossless: {str(report['post_ttt']['lossless']).lower()}"
    )
    lines.append(f"artifact: {folder.artifact} ({folder.artifact.stat().st_size:,} bytes); run folder: {folder.path}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(exit_codes.run(main))
