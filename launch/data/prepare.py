"""From documents to a data folder: tokenizer, shards, byte side-car, per-document byte counts, manifest.

The folder appears at its name complete or not at all: it is built beside that name and renamed. The byte ledger is
proved for every document while it is written (`launch.data.split_writer`).
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.data.documents import find_files, is_validation, read_batches
from launch.data.encoding import encode_batches
from launch.data.progress import Progress
from launch.data.split_writer import SplitWriter
from model.errors import InputError
from model.text.shards import MANIFEST_NAME, TOKENIZER_NAME
from model.text.tokenizer import Tokenizer
from model.text.tokenizer_training import train_challenge, train_lossless

SHARD_TOKENS = 100_000_000
TOKENIZER_SAMPLE_BYTES = 16_000_000
MANIFEST_VERSION = 1
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class _Source:
    """Where each split's documents come from."""

    train_files: tuple[Path, ...]
    val_files: tuple[Path, ...]
    num_val_documents: int  # of the first training files, if there are no validation files

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in (*self.val_files, *self.train_files))


def prepare(
    input: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    val_input: str | Path | None = None,
    val_documents: int | None = None,
    num_workers: int | None = None,
    case_operators: bool = False,
    challenge: bool = False,
    name: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    tokenizer_sample_bytes: int = TOKENIZER_SAMPLE_BYTES,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Tokenize `input` (a text file, .jsonl, .jsonl.zst, or a directory of them) into the new data folder `out`.

    `tokenizer` is a SentencePiece .model file or "train:VOCAB": a lossless one, or with `challenge` one with the
    challenge's settings, trained on up to `tokenizer_sample_bytes` of the training text. `case_operators` asks for a
    CaseOps tokenizer: to train one, or that the file be one. The validation split is `val_input`, or the first
    `val_documents` documents, or the files of the directory `input` that are named val*; one of the three must give
    documents. Returns the manifest, which also lies in the folder. InputError, and no folder, when something in the
    input is wrong.
    """
    out = Path(out)
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: already exists")
    if shard_tokens < 1:
        raise InputError(f"shard tokens {shard_tokens}: accepted are 1 and more")
    if not name or name.startswith(".") or "/" in name:
        raise InputError(f"data name {name!r}: accepted is part of a file name")
    source = _find_source(Path(input), None if val_input is None else Path(val_input), val_documents)
    started = time.monotonic()
    if str(tokenizer).startswith("train:"):
        train = train_challenge if challenge else train_lossless
        sample = _TokenizerSample(source, tokenizer_sample_bytes, quiet)
        model = _train_tokenizer(str(tokenizer), functools.partial(train, case_operators=case_operators), sample)
    else:
        model = _load_tokenizer(tokenizer, case_operators=case_operators, challenge=challenge)
    with _folder_in_place(out) as folder:
        manifest = _write_folder(folder, source, model, name, shard_tokens, _num_workers(num_workers), quiet=quiet)
    if not quiet:
        _report(out, manifest, time.monotonic() - started)
    return manifest


def _write_folder(
    folder: Path, source: _Source, model: Tokenizer, name: str, shard_tokens: int, num_workers: int, *, quiet: bool
) -> dict[str, Any]:
    writers = {
        split: SplitWriter(folder, name, split, shard_tokens, lossless=model.lossless, with_bytes=split == "val")
        for split in ("val", "train")
    }
    try:
        with Progress("data prepare", source.total_bytes, "B", quiet=quiet) as progress:
            _encode_splits(source, model, writers, num_workers, progress)
        for split, writer in writers.items():
            if not writer.totals["documents"]:
                raise InputError(f"no {_SPLIT_WORD[split]} documents: {_WHERE_FROM[split]}")
            writer.close()
    finally:
        for writer in writers.values():
            writer.abandon()
    tokenizer_path, counts_path = folder / TOKENIZER_NAME, folder / f"{name}_val_documents.npy"
    _write_synced(tokenizer_path, model.serialized)
    counts = io.BytesIO()
    np.save(counts, np.concatenate(writers["val"].document_bytes))
    _write_synced(counts_path, counts.getvalue())
    paths = [*writers["train"].paths, *writers["val"].paths, counts_path, tokenizer_path]
    manifest: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "name": name,
        "tokenizer": "caseops" if model.is_caseops else "sentencepiece",
        "tokenizer_sha256": model.sha256,
        "vocab_size": model.vocab_size,
        "lossless": model.lossless,
        "splits": {split: writers[split].totals for split in ("train", "val")},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths},
    }
    _write_synced(folder / MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


_SPLIT_WORD = {"train": "training", "val": "validation"}
_WHERE_FROM = {
    "train": "every document of the input went to validation or was empty",
    "val": "name some (--val-input, --val-documents, or files named val* in the input directory)",
}


def _find_source(input_path: Path, val_input: Path | None, num_val_documents: int | None) -> _Source:
    files = find_files(input_path)
    if val_input is not None and num_val_documents is not None:
        raise InputError("--val-input and --val-documents exclude each other")
    if num_val_documents is not None and num_val_documents < 1:
        raise InputError(f"--val-documents {num_val_documents}: accepted are 1 and more")
    if val_input is not None:
        val_files = find_files(val_input)
        return _Source(tuple(path for path in files if path not in val_files), tuple(val_files), 0)
    if num_val_documents is not None:
        return _Source(tuple(files), (), num_val_documents)
    val_files = [path for path in files if is_validation(path, input_path)]
    if not val_files:
        raise InputError(f"{input_path}: no {_SPLIT_WORD['val']} documents: {_WHERE_FROM['val']}")
    return _Source(tuple(path for path in files if path not in val_files), tuple(val_files), 0)


def _load_tokenizer(path: str | Path, *, case_operators: bool, challenge: bool) -> Tokenizer:
    model = Tokenizer.load(path)
    if case_operators and not model.is_caseops:
        raise InputError(f"{path}: --caseops needs a tokenizer with the four CaseOps operators as pieces")
    if challenge:
        raise InputError(f"--challenge is a way to train a tokenizer (train:VOCAB), but {path} is given")
    return model


@dataclass(frozen=True)
class _TokenizerSample:
    source: _Source
    sample_bytes: int
    quiet: bool


def _train_tokenizer(wanted: str, train: Callable[[Iterable[str], int], bytes], sample: _TokenizerSample) -> Tokenizer:
    digits = wanted.removeprefix("train:")
    if not digits.isascii() or not digits.isdigit():
        raise InputError(f"tokenizer {wanted!r}: after 'train:' comes the number of pieces, for example train:1024")
    texts = _sample(_training_texts(sample.source), sample.sample_bytes)
    if not sample.quiet:
        print(
            f"training a tokenizer of {digits} pieces on {sum(map(len, texts)) / 1e6:.1f} M characters", file=sys.stderr
        )
    return Tokenizer.from_bytes(train(texts, int(digits)))


def _training_texts(source: _Source) -> Iterator[str]:
    texts = (
        text
        for path in source.train_files
        for batch in read_batches(path, _BATCH_BYTES)
        for text in batch.texts()
        if text
    )
    return itertools.islice(texts, source.num_val_documents, None)


def _sample(texts: Iterable[str], sample_bytes: int) -> list[str]:
    """Every k-th text, k the smallest power of two that keeps them within `sample_bytes` (counted as characters)."""
    kept: list[str] = []
    stride, kept_characters = 1, 0
    for index, text in enumerate(texts):
        if index % stride:
            continue
        kept.append(text)
        kept_characters += len(text)
        while kept_characters > sample_bytes and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
            kept_characters = sum(map(len, kept))
    if kept_characters > sample_bytes:
        kept = [text[:sample_bytes] for text in kept]
    return kept


def _encode_splits(
    source: _Source, model: Tokenizer, writers: dict[str, SplitWriter], num_workers: int, progress: Progress
) -> None:
    """Encode every document, in order, and hand it to its split's writer."""
    files_before = dict(
        zip(
            (*source.val_files, *source.train_files),
            itertools.accumulate((path.stat().st_size for path in (*source.val_files, *source.train_files)), initial=0),
            strict=False,
        )
    )
    val_left = source.num_val_documents
    batches = (
        (split, batch)
        for split, files in (("val", source.val_files), ("train", source.train_files))
        for path in files
        for batch in read_batches(path, _BATCH_BYTES)
    )
    with contextlib.closing(encode_batches(batches, model, num_workers)) as results:
        for split, batch, documents in results:
            num_val = min(val_left, len(documents)) if split == "train" else len(documents)
            if num_val:
                writers["val"].write(documents.take(0, num_val))
            if num_val < len(documents) or not len(documents):
                writers[split].write(documents.take(num_val, len(documents)))
            val_left -= num_val if split == "train" else 0
            num_tokens = sum(writer.totals["tokens"] for writer in writers.values())
            progress.advance_to(files_before[batch.path] + batch.file_bytes_read, f"{num_tokens / 1e6:.1f} M tokens")


@contextlib.contextmanager
def _folder_in_place(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its name at the end of the block; removed if the block fails.

    What a killed run left there is cleared. A run that is still writing holds a lock on the folder: InputError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    temporary.mkdir(exist_ok=True)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        _lock(descriptor, temporary, out)
        for left_over in temporary.iterdir():
            left_over.unlink()
        try:
            yield temporary
            _rename(temporary, out)
        except OSError as error:
            if error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(out)) from error  # fsync and write name no file
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = folder.exists() and os.fstat(descriptor).st_ino == folder.stat().st_ino  # not renamed away meanwhile
    except BlockingIOError:
        held = False
    if not held:
        raise InputError(f"{out}: another data prepare is writing it")


def _rename(temporary: Path, out: Path) -> None:
    if out.exists():
        replaced = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        os.replace(out, replaced)
        os.replace(temporary, out)
        shutil.rmtree(replaced)
    else:
        os.replace(temporary, out)
    directory = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _num_workers(requested: int | None) -> int:
    if requested is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if requested < 1:
        raise InputError(f"workers {requested}: accepted are 1 and more")
    return requested


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report(out: Path, manifest: dict[str, Any], seconds: float) -> None:
    total_bytes = 0
    for split, totals in manifest["splits"].items():
        total_bytes += totals["text_bytes"]
        bytes_per_token = totals["text_bytes"] / totals["tokens"]
        print(
            f"{split}: {totals['documents']} documents ({totals['empty_documents']} empty ones skipped), "
            f"{totals['tokens']} tokens, {totals['text_bytes']} text bytes, {bytes_per_token:.4f} bytes/token, "
            f"{totals['changed_bytes']} bytes changed ({totals['uncredited_bytes']} of them stripped), ledger proved"
        )
    print(f"lossless: {str(manifest['lossless']).lower()}; {total_bytes / 1e6 / seconds:.1f} MB/s; data folder {out}")
