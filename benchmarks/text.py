"""The text half: MB/s per core of each stage of `data prepare`, bytes/token of tokenizers, tokens/s of data orders.

    python benchmarks/text.py --input TRAIN.jsonl.zst --val-input VAL.jsonl.zst [--tokenizer FILE ...] [--megabytes N]

Tokenizers are trained and speeds taken on the first N megabytes of --input; bytes/token is over all of --val-input,
which no tokenizer trained here has seen.

Every stage runs in a process of its own, on one core; speed is text bytes per second of CPU time, so that other work
on the machine disturbs it little. "whole prepare" is the command itself with one worker: reading, transform,
SentencePiece, byte counts, ledger, writing, hashing. "vs bare" divides by the speed of the bare SentencePiece
encoder on the (transformed) text. Encoders remember words: on less text than a few megabytes they are slower.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sentencepiece  # noqa: E402

from launch.data.documents import read_batches  # noqa: E402
from launch.data.prepare import prepare  # noqa: E402
from model.text import caseops  # noqa: E402
from model.text.shards import DataFolder  # noqa: E402
from model.text.tokenizer import Tokenizer, train_lossless  # noqa: E402

Measurement = dict[str, Any]
LOADER_SECONDS = 2.0
COLUMNS = (
    ("megabytes_per_cpu_second", 8, 1),
    ("million_tokens_per_cpu_second", 12, 0),
    ("bytes_per_token", 13, 4),
    ("against_bare", 14, 2),
)
ORDERS = ("sequential", "shuffled", "coprime", "packed")


def read_texts(path: Path, megabytes: float) -> list[str]:
    texts, size = [], 0.0
    for batch in read_batches(path, 1 << 20):
        for text in batch.texts():
            if size > megabytes * 1e6:
                return texts
            texts.append(text)
            size += len(text.encode())
    return texts


def peak_memory_bytes() -> int:
    """Largest resident size of this process since it was executed (getrusage would count what it was forked from)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status does not tell VmHWM")


def measured(work: Callable[[], Any], num_bytes: int) -> Measurement:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - started
    peak = peak_memory_bytes()
    return {"megabytes_per_cpu_second": num_bytes / cpu / 1e6, "wall_seconds": wall, "peak_memory_bytes": peak}


def stage_read(path: Path, megabytes: float) -> Measurement:
    num_bytes = sum(len(text.encode()) for text in read_texts(path, megabytes))
    return measured(lambda: read_texts(path, megabytes), num_bytes)


def stage_train(path: Path, megabytes: float, vocab_size: int) -> Measurement:
    texts = read_texts(path, megabytes)
    return measured(lambda: train_lossless(texts, vocab_size), sum(len(text.encode()) for text in texts))


def stage_transform(path: Path, megabytes: float) -> Measurement:
    texts = read_texts(path, megabytes)
    return measured(lambda: [caseops.encode(text) for text in texts], sum(len(text.encode()) for text in texts))


def stage_counts(path: Path, megabytes: float) -> Measurement:
    texts = [caseops.encode(text) for text in read_texts(path, megabytes)]
    num_bytes = sum(int(caseops.original_bytes(text).sum()) for text in texts)
    return measured(lambda: [caseops.original_bytes(text) for text in texts], num_bytes)


def stage_bare(path: Path, megabytes: float, serialized: bytes) -> Measurement:
    tokenizer = Tokenizer.from_bytes(serialized)
    texts = [tokenizer.transform(text) for text in read_texts(path, megabytes)]
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(serialized)
    return measured(lambda: [processor.encode(text) for text in texts], sum(len(text.encode()) for text in texts))


def stage_encode(path: Path, megabytes: float, serialized: bytes) -> Measurement:
    tokenizer = Tokenizer.from_bytes(serialized)
    texts = read_texts(path, megabytes)
    num_bytes = sum(len(text.encode()) for text in texts)
    return measured(lambda: [tokenizer.encode_text(text) for text in texts], num_bytes)


def stage_validation(path: Path, serialized: bytes) -> Measurement:
    """Text bytes per token over all documents, the BOS of each not counted."""
    tokenizer = Tokenizer.from_bytes(serialized)
    encoded = [tokenizer.encode_text(text) for text in read_texts(path, math.inf)]
    num_bytes = sum(document.text_bytes for document in encoded)
    num_tokens = sum(len(document.ids) for document in encoded)
    return {
        "bytes_per_token": num_bytes / num_tokens,
        "changed_bytes": sum(document.changed_bytes for document in encoded),
        "text_bytes": num_bytes,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def stage_prepare(path: Path, megabytes: float, serialized: bytes) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        model, source = Path(folder, "tokenizer.model"), Path(folder, "in.jsonl")
        model.write_bytes(serialized)
        texts = read_texts(path, megabytes)
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        num_bytes = sum(len(text.encode()) for text in texts)
        out = Path(folder, "out")
        return measured(lambda: prepare(source, model, out, val_documents=1, num_workers=1, quiet=True), num_bytes)


def stage_loader(path: Path, megabytes: float, serialized: bytes, order: str) -> Measurement:
    """Tokens/s of one rank's loader: sequences of 2,048 tokens, 98,304 tokens a micro-batch, from the page cache."""
    import torch

    from trainer.loaders.loader import SampleLoader, make_order
    from trainer.ranks import Ranks

    torch.set_num_threads(1)
    packed = order == "packed"
    length, num_sequences = (98_304, 1) if packed else (2048, 48)
    with tempfile.TemporaryDirectory() as folder:
        model, source = Path(folder, "tokenizer.model"), Path(folder, "in.jsonl")
        model.write_bytes(serialized)
        lines = (json.dumps({"text": text}) + "\n" for text in read_texts(path, megabytes))
        source.write_text("".join(lines), encoding="utf-8")
        prepare(source, model, Path(folder, "out"), val_documents=1, num_workers=1, quiet=True)
        stream = DataFolder.open(Path(folder, "out")).train
        loader = SampleLoader(
            stream,
            make_order(order, stream, length, num_sequences, seed=1),
            Ranks(0, 1, torch.device("cpu")),
            sequence_tokens=length,
            num_sequences=num_sequences,
            micro_batch_sequences=num_sequences,
            longest_segment=2048 if packed else None,
            prefetch=0,
        )
        loader.micro_batch(0, 0)
        started, cpu, step = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - started < LOADER_SECONDS:
            step += 1
            loader.micro_batch(step, 0)
        cpu = time.process_time() - cpu
        peak = peak_memory_bytes()
        return {"million_tokens_per_cpu_second": step * length * num_sequences / cpu / 1e6, "peak_memory_bytes": peak}


def alone(stage: Callable[..., Measurement], *arguments: Any) -> Measurement:
    """Run a stage in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(stage, arguments)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(options: argparse.Namespace, tokenizers: dict[str, bytes]) -> Iterator[tuple[str, str, Measurement]]:
    """(stage, tokenizer, figures) of every row, as they come."""
    common = (options.input, options.megabytes)
    yield "read .jsonl[.zst]", "", alone(stage_read, *common)
    yield "train tokenizer", str(options.vocab_size), alone(stage_train, *common, options.vocab_size)
    yield "CaseOps transform", "", alone(stage_transform, *common)
    yield "CaseOps byte counts", "", alone(stage_counts, *common)
    for name, serialized in tokenizers.items():
        bare = alone(stage_bare, *common, serialized)
        yield "bare SentencePiece", name, bare
        for label, stage in (("encode with bytes", stage_encode), ("whole prepare", stage_prepare)):
            found = alone(stage, *common, serialized)
            found["against_bare"] = found["megabytes_per_cpu_second"] / bare["megabytes_per_cpu_second"]
            yield label, name, found
        yield "validation text", name, alone(stage_validation, options.val_input, serialized)
    for order in ORDERS:
        yield f"loader, {order}", "", alone(stage_loader, *common, next(iter(tokenizers.values())), order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="documents (.jsonl, .jsonl.zst, .txt) to work on"
    )
    parser.add_argument(
        "--val-input", type=Path, required=True, metavar="FILE", help="other documents, for bytes/token"
    )
    parser.add_argument("--tokenizer", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the lossless tokenizer trained here")
    parser.add_argument("--megabytes", type=float, default=8.0, help="text to work on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    texts = read_texts(options.input, options.megabytes)
    tokenizers = {path.stem: path.read_bytes() for path in options.tokenizer}
    for label, case_operators in (("lossless", False), ("lossless CaseOps", True)):
        name = f"{label} {options.vocab_size}, trained here"
        tokenizers[name] = train_lossless(texts, options.vocab_size, case_operators=case_operators)
    heading = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),  # of other work on the machine
        "python": platform.python_version(),
        "sentencepiece": sentencepiece.__version__,
        "text_bytes": sum(len(text.encode()) for text in texts),
    }
    print("; ".join(f"{key} {value}" for key, value in heading.items()))
    titles = f"{'MB/s':>8}{'M tokens/s':>12}{'bytes/token':>13}{'vs bare':>14}{'peak MB':>9}"
    print(f"{'stage':22}{'tokenizer':40}{titles}")
    rows = []
    for stage, name, found in measure(options, tokenizers):
        rows.append({"stage": stage, "tokenizer": name, **found})
        cells = [
            f"{found[key]:{width}.{digits}f}" if key in found else " " * (width - 1) + "-"
            for key, width, digits in COLUMNS
        ]
        print(f"{stage:22}{name:40}{''.join(cells)}{found['peak_memory_bytes'] / 1e6:9.0f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**heading, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
