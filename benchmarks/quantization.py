"""Quantization methods on one trained network: bytes, BPB before and after, seconds; one table.

    python benchmarks/quantization.py --run RUN_DIR --data DATA_DIR
    python benchmarks/quantization.py --weights FILE.npz --preset naive-baseline --model.vocab-size 8192 --data DATA_DIR

Weights come from a run folder, or from an .npz of arrays by parameter name together with a preset for the network.
Every row quantizes with the settings of a published entry (all with the same calibration tokens); the last ones
allocate steps by rate and distortion, fitted to the bytes of rank 1's recipe. BPB is of plain scoring of the validation
tokens, or of the first `--max-targets` of them. On a GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout that was not installed will do

from artifact import reader, writer  # noqa: E402
from artifact.content import Content, Tensor  # noqa: E402
from artifact.dequantize import dequantize  # noqa: E402
from eval.ledger import ByteLedger  # noqa: E402
from eval.scoring import score_plain  # noqa: E402
from launch import code_archive  # noqa: E402
from launch.preset import Settings, load, load_file  # noqa: E402
from launch.run_folder import RunFolder  # noqa: E402
from launch.settings import differences  # noqa: E402
from model.network import gpt  # noqa: E402
from model.text.shards import DataFolder  # noqa: E402
from model.text.tokenizer import Tokenizer  # noqa: E402
from trainer.checkpoint import load_weights  # noqa: E402
from trainer.quantize.calibrate import calibrate  # noqa: E402
from trainer.quantize.config import AllocationConfig, CalibrationConfig, QuantizationConfig  # noqa: E402
from trainer.quantize.fit import fit  # noqa: E402
from trainer.quantize.quantizer import Quantizer  # noqa: E402
from trainer.ranks import Ranks  # noqa: E402

PUBLISHED = {
    "rank42": "round to nearest, int8",
    "rank32": "round to nearest, int6, fp16 embedding",
    "rank24": "GPTQ-lite clip search, int6",
    "rank22": "GPTQ with clip search, int6",
    "rank21": "GPTQ, int6 and int5 by trace",
    "rank10": "GPTQ, SDClip 12.85, int8 embedding",
    "rank16": "the same, Hessian-aware clip",
    "rank04": "GPTQ, SDClip 13 and 12, int7 embedding",
    "rank02": "the same with LQER",
    "rank01": "rank 1's recipe",
}
REFERENCE = "rank01"


@dataclass(frozen=True)
class Row:
    """One method's figures; `gap` is BPB after minus BPB before."""

    method: str
    file_bytes: int
    bpb: float
    gap: float
    quantize_seconds: float
    encode_seconds: float


class Bench:
    def __init__(self, options: argparse.Namespace, settings: Settings, weights: Mapping[str, np.ndarray]) -> None:
        self.options, self.settings, self.weights = options, settings, weights
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.data = DataFolder.open(options.data)
        tokenizer = Tokenizer.load(options.tokenizer or self.data.tokenizer_path)
        self.ledger = ByteLedger.open(self.data, tokenizer)
        self.sha256 = tokenizer.sha256
        self.code = code_archive.build()
        self.bpb_before = self.bpb(weights)
        self.quantizer, self.calibration_seconds = self._calibrated()

    def bpb(self, arrays: Mapping[str, np.ndarray]) -> float:
        model = gpt.load(self.settings.model, arrays, device=self.device, activation_dtype=self.dtype)
        context = self.settings.eval.context_tokens
        windows = self.options.batch_windows or (64 if self.device.type == "cuda" else 2)
        tally = score_plain(
            model, self.data.val, self.ledger, context, windows, self.device, max_targets=self.options.max_targets
        )
        return tally.bpb

    def _calibrated(self) -> tuple[Quantizer, float]:
        rows = self.options.calibration_tokens // self.options.calibration_row_tokens
        calibration = CalibrationConfig(
            "training",
            num_batches=rows,
            batch_tokens=self.options.calibration_row_tokens,
            sequence_tokens=self.options.calibration_row_tokens,
        )
        allocation = AllocationConfig(True, importance_tokens=self.options.importance_tokens)
        config = QuantizationConfig(method="gptq", calibration=calibration, allocation=allocation)
        self.calibration_config = calibration
        model = gpt.load(self.settings.model, self.weights, device=self.device, activation_dtype=self.dtype)
        start = time.perf_counter()
        found = calibrate(model, config, self.data.train, Ranks(0, 1, self.device), print)
        self._wait()
        return Quantizer(self.weights, found), time.perf_counter() - start

    def published(self, name: str) -> QuantizationConfig:
        config = load(name).settings.quantization
        if config.mixed_precision.num_fine:
            # The entry's share of its 67 matrices; always-fine layers belong to its recurrence.
            num_matrices = sum(name.startswith("blocks.") and a.ndim == 2 for name, a in self.weights.items())
            mixed = replace(config.mixed_precision, num_fine=num_matrices * 32 // 67, always_fine_layers=())
            config = replace(config, mixed_precision=mixed)
        return replace(config, calibration=self.calibration_config) if config.needs_hessians else config

    def encode(self, tensors: Mapping[str, Tensor]) -> bytes:
        configuration = {"model": differences(self.settings.model)}
        return writer.encode(Content(configuration, self.sha256, tensors, self.code))

    def row(self, method: str, config: QuantizationConfig, max_bytes: int | None = None) -> Row:
        start = time.perf_counter()
        if max_bytes is None:
            tensors = self.quantizer.quantize(config)
        else:
            tensors = fit(self.quantizer, config, max_bytes, lambda found: len(self.encode(found)), print).tensors
        self._wait()
        quantized = time.perf_counter()
        data = self.encode(tensors)
        encoded = time.perf_counter()
        arrays = reader.parse(data).arrays()
        assert all(np.array_equal(arrays[name], dequantize(tensor)) for name, tensor in tensors.items())
        bpb = self.bpb(arrays)
        row = Row(method, len(data), bpb, bpb - self.bpb_before, quantized - start, encoded - quantized)
        print(json.dumps(asdict(row)), flush=True)
        return row

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder or checkpoint")
    parser.add_argument("--weights", type=Path, help=".npz of arrays by parameter name")
    parser.add_argument("--preset", help="of the network, with --weights")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--methods", nargs="*", default=[*PUBLISHED, "allocation", "allocation-round"])
    parser.add_argument("--max-targets", type=int, help="validation tokens to score (default: all)")
    parser.add_argument("--batch-windows", type=int)
    parser.add_argument("--calibration-tokens", type=int, default=16 * 98_304)
    parser.add_argument("--calibration-row-tokens", type=int, default=2048)
    parser.add_argument("--importance-tokens", type=int, default=131_072)
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    options, overrides = parser.parse_known_args()
    if options.run:
        settings, weights = load_file(RunFolder(options.run).config).settings, load_weights(options.run)
    elif options.weights and options.preset:
        settings = load(options.preset).with_overrides(overrides).settings
        weights = {name: array.astype(np.float32) for name, array in np.load(options.weights).items()}
    else:
        parser.error("either --run, or --weights and --preset")
    bench = Bench(options, settings, weights)
    rows = run(bench, options.methods)
    result = {
        "command": "python benchmarks/quantization.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "bpb_before": bench.bpb_before,
        "calibration_seconds": bench.calibration_seconds,
        "rows": [asdict(row) for row in rows],
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    print(table(result))


def run(bench: Bench, methods: list[str]) -> list[Row]:
    rows = {name: bench.row(PUBLISHED[name], bench.published(name)) for name in methods if name in PUBLISHED}
    if "allocation" in methods or "allocation-round" in methods:
        cap = rows[REFERENCE].file_bytes if REFERENCE in rows else None
        base = replace(
            bench.published(REFERENCE),
            scale_dtype="log8",
            low_rank=load("rank42").settings.quantization.low_rank,
            allocation=AllocationConfig(True),
        )
        if "allocation" in methods:
            rows["allocation"] = bench.row("allocation by rate and distortion, GPTQ", base, cap)
        if "allocation-round" in methods:
            embedding = replace(base.embedding, method="round")
            rounded = replace(base, method="round", embedding=embedding)
            rows["allocation-round"] = bench.row("allocation by rate and distortion, rounding", rounded, cap)
    return list(rows.values())


def table(result: dict[str, object]) -> str:
    lines = [
        f"`{result['command']}`, {result['hardware']}, {result['date']}",
        f"BPB before {result['bpb_before']:.4f}; calibration {result['calibration_seconds']:.1f} s",
        "",
        "| method | bytes | BPB after | gap | quantize s | encode s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['method']} | {row['file_bytes']:,} | {row['bpb']:.4f} | {row['gap']:+.4f} | "
        f"{row['quantize_seconds']:.1f} | {row['encode_seconds']:.1f} |"
        for row in result["rows"]  # type: ignore[attr-defined]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
