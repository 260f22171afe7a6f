"""Token shards in the community's `.bin` format, and the folder that holds them.

A shard is 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros) and then that many
little-endian uint16 token ids. Names: `NAME_train_%06d.bin`, `NAME_val_%06d.bin` and, with the same layout,
`NAME_val_bytes_%06d.bin`, whose entry i is the number of original UTF-8 bytes credited to validation token i.
`albatross data prepare` adds `tokenizer.model`, `NAME_val_documents.npy` (uint32 text bytes of each validation
document) and the manifest `data.json`.
"""

import bisect
import itertools
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.text.tokenizer import BOS_ID

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4
MANIFEST_NAME = "data.json"
TOKENIZER_NAME = "tokenizer.model"
_SHARD_NAME = re.compile(r"(?P<name>.+)_(?P<kind>train|val|val_bytes)_(?P<number>\d{6})\.bin")


def shard_header(num_tokens: int) -> bytes:
    """The 1,024 bytes before the tokens."""
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, VERSION, num_tokens
    return header.tobytes()


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Write `tokens` (one dimension of integers that fit uint16) as a shard: a temporary name, synced, renamed."""
    path = Path(path)
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (len(tokens) and (tokens.min() < 0 or tokens.max() > 0xFFFF)):
        raise ValueError("tokens: accepted is one dimension of integers from 0 to 65535")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(shard_header(len(tokens)))
            file.write(tokens.astype("<u2").tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_shard(path: str | Path) -> np.ndarray:
    """The tokens of a shard, memory-mapped read-only uint16 [num_tokens]. InputError if the file breaks the format."""
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot read the shard ({error.strerror})") from None
    if len(header) < HEADER_BYTES:
        raise InputError(f"{path}: {size_bytes} bytes, too short for a shard's header of {HEADER_BYTES}")
    magic, version, num_tokens = np.frombuffer(header, "<i4", 3).tolist()
    if magic != MAGIC:
        raise InputError(f"{path}: magic number {magic} is not a token shard's {MAGIC}")
    if version != VERSION:
        raise InputError(f"{path}: shard version {version}, accepted is {VERSION}")
    if num_tokens < 0:
        raise InputError(f"{path}: header announces {num_tokens} tokens")
    expected_bytes = HEADER_BYTES + 2 * num_tokens
    if size_bytes != expected_bytes:
        what = "cut short" if size_bytes < expected_bytes else "too long"
        raise InputError(f"{path}: {what}: {num_tokens} tokens need {expected_bytes} bytes, the file has {size_bytes}")
    if num_tokens == 0:
        return np.zeros(0, "<u2")
    return np.memmap(path, "<u2", "r", HEADER_BYTES, (num_tokens,))


class TokenStream:
    """Shards read as one run of tokens. Every shard is validated once, when the stream is made."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = list(paths)
        self.shards = [open_shard(path) for path in self.paths]
        self.shard_starts = [0, *itertools.accumulate(len(shard) for shard in self.shards)]
        self.num_tokens: int = self.shard_starts[-1]

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), uint16; a view where they lie in one shard. ValueError outside the stream."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise ValueError(f"tokens {start} to {start + count} of a stream of {self.num_tokens}")
        if count == 0:
            return np.zeros(0, "<u2")
        index = bisect.bisect_right(self.shard_starts, start) - 1
        parts = []
        while count:
            offset = start - self.shard_starts[index]
            part = self.shards[index][offset : offset + count]
            parts.append(part)
            start, count, index = start + len(part), count - len(part), index + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def document_starts(self) -> np.ndarray:
        """Positions of the BOS tokens, int64, ascending."""
        found = [
            np.flatnonzero(shard == BOS_ID) + start
            for shard, start in zip(self.shards, self.shard_starts, strict=False)
        ]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def first_bos(self) -> list[int]:
        """Position of each shard's first BOS within the shard, 0 where it has none."""
        return [_first_bos(shard) for shard in self.shards]


def _first_bos(shard: np.ndarray) -> int:
    for start in range(0, len(shard), 1 << 16):  # it is near the start; a shard need not be read whole
        found = np.flatnonzero(shard[start : start + (1 << 16)] == BOS_ID)
        if len(found):
            return start + int(found[0])
    return 0


@dataclass(frozen=True)
class DataFolder:
    """A folder of shards, ours or the community's. Streams are opened, and so validated, when first asked for."""

    path: Path
    train_paths: tuple[Path, ...]
    val_paths: tuple[Path, ...]
    val_bytes_paths: tuple[Path, ...]
    val_documents_path: Path | None
    tokenizer_path: Path | None
    manifest: dict[str, Any] | None  # None for shards made by others

    @classmethod
    def open(cls, path: str | Path) -> "DataFolder":
        """List a folder's shards. InputError if it is missing, holds no shards, or its shard names or manifest make
        no sense.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such data folder")
        found: dict[str, list[Path]] = {"train": [], "val": [], "val_bytes": []}
        names = set()
        for file in sorted(folder.iterdir()):
            if match := _SHARD_NAME.fullmatch(file.name):
                found[match["kind"]].append(file)
                names.add(match["name"])
        if not found["train"] and not found["val"]:
            raise InputError(f"{folder}: no token shards (*_train_NNNNNN.bin, *_val_NNNNNN.bin) in this data folder")
        if len(names) > 1:
            raise InputError(f"{folder}: shards of several data sets in one folder: {', '.join(sorted(names))}")
        manifest = _read_manifest(folder / MANIFEST_NAME)
        _check_complete(folder, found, manifest)
        documents_path = folder / f"{names.pop()}_val_documents.npy"
        tokenizer_path = folder / TOKENIZER_NAME
        return cls(
            folder,
            tuple(found["train"]),
            tuple(found["val"]),
            tuple(found["val_bytes"]),
            documents_path if documents_path.is_file() else None,
            tokenizer_path if tokenizer_path.is_file() else None,
            manifest,
        )

    @property
    def lossless(self) -> bool | None:
        """Whether the tokenizer keeps every text, None if unknown (shards made by others)."""
        return None if self.manifest is None else bool(self.manifest["lossless"])

    @cached_property
    def train(self) -> TokenStream:
        return self._stream("train", self.train_paths)

    @cached_property
    def val(self) -> TokenStream:
        return self._stream("val", self.val_paths)

    @cached_property
    def val_token_bytes(self) -> np.ndarray | None:
        """Original UTF-8 bytes of each validation token, uint16 [val.num_tokens]; None without a side-car."""
        if not self.val_bytes_paths:
            return None
        stream = TokenStream(list(self.val_bytes_paths))
        lengths, wanted = [len(shard) for shard in stream.shards], [len(shard) for shard in self.val.shards]
        if lengths != wanted:
            raise InputError(
                f"{self.path}: the val_bytes shards hold {lengths} entries, the val shards {wanted} tokens"
            )
        return stream.read(0, stream.num_tokens)

    @cached_property
    def val_document_bytes(self) -> np.ndarray | None:
        """UTF-8 bytes of the text of each validation document, uint32; None for shards made by others."""
        if self.val_documents_path is None:
            return None
        try:
            counts: np.ndarray = np.load(self.val_documents_path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.val_documents_path}: not a NumPy array file ({error})") from None
        if counts.ndim != 1 or counts.dtype != np.uint32:
            raise InputError(f"{self.val_documents_path}: expected uint32 counts, found {counts.dtype} {counts.shape}")
        return counts

    def _stream(self, split: str, paths: tuple[Path, ...]) -> TokenStream:
        if not paths:
            raise InputError(f"{self.path}: no *_{split}_NNNNNN.bin shards in this data folder")
        stream = TokenStream(list(paths))
        if stream.num_tokens == 0:
            raise InputError(f"{self.path}: the {split} shards hold no tokens")
        return stream


def _check_complete(folder: Path, found: dict[str, list[Path]], manifest: dict[str, Any] | None) -> None:
    """InputError if a shard is missing between others, or a file that the manifest lists."""
    for name in (manifest or {}).get("files", {}):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing; it was there when the folder was made")
    for paths in found.values():
        for before, after in itertools.pairwise(paths):
            if int(after.stem[-6:]) != int(before.stem[-6:]) + 1:
                raise InputError(f"{folder}: shards are missing between {before.name} and {after.name}")


def _read_manifest(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON manifest ({error})") from None
    missing = {"tokenizer", "vocab_size", "lossless", "splits"} - set(manifest if isinstance(manifest, dict) else ())
    if missing:
        raise InputError(f"{path}: the manifest lacks {', '.join(sorted(missing))}")
    return dict(manifest)
