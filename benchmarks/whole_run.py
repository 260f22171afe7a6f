"""One whole run on real text: prepare, train, pack, evaluate three ways; one JSON file and one table.

    python benchmarks/whole_run.py --input BOOKS_DIR --tokenizer FILE --preset naive-baseline --out DIR [overrides]

Every step is the command a user would type. Overrides go to the step they belong to (`--training.budget-seconds 180`,
`--quantization.matrix-bits 6`, `--eval.context-tokens 1024`). DIR gets the data folder, the run folder and
whole_run.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout that was not installed will do

from launch.preset import load_file  # noqa: E402
from launch.run_folder import RunFolder  # noqa: E402
from model.cost import training_flops_per_token  # noqa: E402

MODES = ("plain", "sliding", "ttt")
SECTIONS = {
    "pre_quantization": "trained (plain)",
    "post_quantization": "packed, plain",
    "post_quantization_sliding": "packed, sliding window",
    "post_ttt": "packed, test-time training",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="folder of text, validation files named val*")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece model, or train:VOCAB")
    parser.add_argument("--preset", default="naive-baseline")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--num-gpus", default="1")
    options, overrides = parser.parse_known_args()

    data, folder = options.out / "data", RunFolder(options.out / "run")
    seconds: dict[str, float] = {}
    step = Steps(seconds)
    if not data.exists():
        step("prepare", ["data", "prepare", "--input", options.input, "--tokenizer", options.tokenizer, "--out", data])
    train = ["train", options.preset, "--data", data, "--out", folder.path, "--num-gpus", options.num_gpus]
    step("train", [*train, *belonging(overrides, "model", "training")])
    step("pack", ["pack", folder.path, *belonging(overrides, "quantization", "eval")])
    for mode in MODES:
        evaluate = ["evaluate", folder.artifact, "--data", data, "--mode", mode, "--report", folder.report]
        step(f"evaluate {mode}", [*evaluate, *belonging(overrides, "eval")])

    result = {
        "command": "python benchmarks/whole_run.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": seconds,
        "training": training_figures(folder, int(options.num_gpus)),
        "artifact_bytes": folder.artifact.stat().st_size,
        "report": json.loads(folder.report.read_text()),
    }
    (options.out / "whole_run.json").write_text(json.dumps(result, indent=1))
    print(table(result))


class Steps:
    """Runs `albatross` commands and keeps the seconds of each."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def __call__(self, name: str, arguments: list[Any]) -> None:
        words = [str(a) for a in arguments]
        print("\n$ albatross", *words, flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "launch.cli", *words], check=True, cwd=ROOT)
        self.seconds[name] = time.perf_counter() - start


def belonging(overrides: list[str], *sections: str) -> list[str]:
    """The `--section.field value` pairs of these sections."""
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return [word for pair in pairs if pair[0].removeprefix("--").partition(".")[0] in sections for word in pair]


def training_figures(folder: RunFolder, num_gpus: int) -> dict[str, float]:
    """Pace of the run from its metrics.jsonl: medians over the second half of its steps."""
    settings = load_file(folder.config).settings
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    times = [row["train_time_ms"] for row in rows if "train_loss" in row]
    step_ms = [later - earlier for earlier, later in itertools.pairwise(times)]
    median_ms = statistics.median(step_ms[len(step_ms) // 2 :])
    tokens_per_second = settings.training.batch_tokens / median_ms * 1000
    flops = training_flops_per_token(settings.model, settings.training.sequence_tokens)
    figures = {
        "num_steps": len(times),
        "train_seconds": times[-1] / 1000,
        "step_ms_median": median_ms,
        "tokens_per_second": tokens_per_second,
        "training_flops_per_token": flops,
        "tflops_per_gpu": tokens_per_second * flops / num_gpus / 1e12,
    }
    if torch.cuda.is_available():
        figures["matmul_tflops_measured"] = matmul_tflops()
        figures["share_of_measured_matmul"] = figures["tflops_per_gpu"] / figures["matmul_tflops_measured"]
        figures["share_of_989_tflops"] = figures["tflops_per_gpu"] / 989
    return figures


def matmul_tflops(size: int = 8192, repeats: int = 20) -> float:
    """What a large bf16 product reaches on this GPU, on random data: the ceiling to compare with."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * size**3 / statistics.median(times[5:]) / 1e9


def hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()} visible)"
    return f"CPU, {os.cpu_count()} cores"


def table(result: dict[str, Any]) -> str:
    training, report = result["training"], result["report"]
    rows = [
        ("steps; tokens a second", f"{training['num_steps']:.0f}; {training['tokens_per_second']:,.0f}"),
        ("ms a step (median)", f"{training['step_ms_median']:.2f}"),
        ("TFLOP/s a GPU", f"{training['tflops_per_gpu']:.1f}"),
    ]
    if "share_of_989_tflops" in training:
        shares = (training["share_of_989_tflops"], training["share_of_measured_matmul"])
        rows.append(("share of 989 TFLOP/s; of a measured 8192³ product", "{:.1%}; {:.1%}".format(*shares)))
    peaks = {name: report.get(name, {}).get("peak_memory_bytes") for name in SECTIONS}
    rows += [(f"peak memory, GB: {SECTIONS[name]}", f"{peak / 1e9:.2f}") for name, peak in peaks.items() if peak]
    rows += [(f"BPB {title}", f"{report[name]['bpb']:.4f}") for name, title in SECTIONS.items() if name in report]
    rows.append(("artifact bytes", f"{result['artifact_bytes']:,}"))
    rows += [(f"seconds: {name}", f"{value:.1f}") for name, value in result["seconds"].items()]
    head = [f"`{result['command']}`, {result['hardware']}, {result['date']}", "", "| what | measured |", "|---|---|"]
    return "\n".join(head + [f"| {name} | {value} |" for name, value in rows])


if __name__ == "__main__":
    main()
