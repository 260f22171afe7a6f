"""Writing one split's shards, and proving its byte ledger document by document on the way."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model.text.shards import HEADER_BYTES, shard_header
from model.text.tokenizer import BOS_ID


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents in order, concatenated; each begins with its BOS, which stands for 0 bytes. T tokens, N documents."""

    ids: np.ndarray  # [T] uint16
    token_bytes: np.ndarray  # [T] uint16
    document_tokens: np.ndarray  # [N] int64
    text_bytes: np.ndarray  # [N] int64
    uncredited_bytes: np.ndarray  # [N] int64
    changed_bytes: np.ndarray  # [N] int64
    num_empty: int  # documents without text, not among the N

    def __len__(self) -> int:
        return len(self.document_tokens)

    def take(self, start: int, end: int) -> "EncodedDocuments":
        """Documents [start, end); the count of empty ones goes with the part that begins at 0."""
        edges = np.concatenate(([0], np.cumsum(self.document_tokens)))
        tokens, documents = slice(int(edges[start]), int(edges[end])), slice(start, end)
        return EncodedDocuments(
            self.ids[tokens],
            self.token_bytes[tokens],
            self.document_tokens[documents],
            self.text_bytes[documents],
            self.uncredited_bytes[documents],
            self.changed_bytes[documents],
            self.num_empty if start == 0 else 0,
        )


class SplitWriter:
    """Shards `NAME_SPLIT_%06d.bin` of `shard_tokens` tokens each, with `NAME_SPLIT_bytes_%06d.bin` beside them if
    `with_bytes`.

    Documents may straddle shards. `totals` are the split's row of the manifest.
    """

    def __init__(
        self, folder: Path, name: str, split: str, shard_tokens: int, *, lossless: bool, with_bytes: bool
    ) -> None:
        self._folder, self._name, self._split, self._shard_tokens = folder, name, split, shard_tokens
        self._lossless, self._with_bytes = lossless, with_bytes
        self._files: list[BinaryIO] = []
        self._shard_fill = 0
        self.document_bytes: list[np.ndarray] = []
        self.paths: list[Path] = []
        counters = ("documents", "empty_documents", "tokens", "text_bytes", "uncredited_bytes", "changed_bytes")
        self.totals = dict.fromkeys(counters, 0)

    def write(self, documents: EncodedDocuments) -> None:
        """Append documents. RuntimeError, before any of them is written, if some document's bytes do not add up."""
        self.totals["empty_documents"] += documents.num_empty
        if not len(documents):
            return
        self._prove(documents)
        position = 0
        while position < len(documents.ids):
            if not self._files:
                self._open_shard()
            part = slice(position, position + self._shard_tokens - self._shard_fill)
            for file, column in zip(self._files, (documents.ids, documents.token_bytes), strict=False):
                file.write(column[part].astype("<u2").tobytes())
            self._shard_fill += len(documents.ids[part])
            position = part.stop
            if self._shard_fill == self._shard_tokens:
                self._close_shard()
        self.totals["documents"] += len(documents)
        self.totals["tokens"] += len(documents.ids)
        for counter in ("text_bytes", "uncredited_bytes", "changed_bytes"):
            self.totals[counter] += int(getattr(documents, counter).sum())
        self.document_bytes.append(documents.text_bytes.astype(np.uint32))

    def close(self) -> None:
        """Finish the last shard; every file is synced."""
        self._close_shard()

    def abandon(self) -> None:
        """Close the files as they are."""
        for file in self._files:
            file.close()

    def _prove(self, documents: EncodedDocuments) -> None:
        """The bytes credited to each document's tokens, and those credited to none, are its text's bytes."""
        starts = np.concatenate(([0], np.cumsum(documents.document_tokens)))
        credited = np.add.reduceat(documents.token_bytes.astype(np.int64), starts[:-1])
        wrong = np.flatnonzero(credited + documents.uncredited_bytes != documents.text_bytes)
        if not len(wrong) and self._lossless:
            wrong = np.flatnonzero(documents.uncredited_bytes + documents.changed_bytes)
        if len(wrong):
            index = int(wrong[0])
            raise RuntimeError(
                f"{self._split} document {self.totals['documents'] + index}: {credited[index]} bytes credited, "
                f"{documents.uncredited_bytes[index]} stripped, but its text has {documents.text_bytes[index]}"
            )
        if int((documents.ids == BOS_ID).sum()) != len(documents) or np.any(documents.ids[starts[:-1]] != BOS_ID):
            raise RuntimeError(f"{self._split} documents do not begin with one BOS each")

    def _open_shard(self) -> None:
        kinds = (self._split, f"{self._split}_bytes") if self._with_bytes else (self._split,)
        number = len(self.paths) // len(kinds)
        for kind in kinds:
            path = self._folder / f"{self._name}_{kind}_{number:06d}.bin"
            file = open(path, "xb")  # noqa: SIM115 - closed by _close_shard or abandon
            self._files.append(file)
            self.paths.append(path)
            file.write(bytes(HEADER_BYTES))

    def _close_shard(self) -> None:
        for file in self._files:
            file.seek(0)
            file.write(shard_header(self._shard_fill))
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._files = []
        self._shard_fill = 0
