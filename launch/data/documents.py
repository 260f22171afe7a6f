"""Reading documents: text files, JSON lines (plain or zstd), or a directory of them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from model.errors import InputError

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst")
_VALIDATION_NAME = re.compile(r"val(id(ation)?)?(?![A-Za-z])", re.IGNORECASE)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class RawBatch:
    """Documents as they stand in one file, not yet parsed: whole files of text, or JSON lines."""

    path: Path
    first_line: int  # 1-based number of the first JSON line; 0 for a text file
    payloads: tuple[bytes, ...]
    file_bytes_read: int  # of the file, compressed, up to the end of this batch; for progress

    def texts(self) -> list[str]:
        """The documents. InputError naming file and line where one is not UTF-8, not JSON or has no "text"."""
        if not self.first_line:
            return [_decode(payload, str(self.path)) for payload in self.payloads]
        return [
            _parse_line(payload, self.path, line)
            for line, payload in enumerate(self.payloads, self.first_line)
            if payload.strip()
        ]


def find_files(source: Path) -> list[Path]:
    """The document files of a path: itself, or those below a directory in order of their names."""
    if source.is_file():
        if not source.name.endswith(SUFFIXES):
            raise InputError(f"{source}: unknown kind of document file; accepted are {', '.join(SUFFIXES)}")
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: no such file or directory")
    below = (path for path in source.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    files = sorted(path for path in below if not any(part.startswith(".") for part in path.relative_to(source).parts))
    if not files:
        raise InputError(f"{source}: no documents ({', '.join(SUFFIXES)}) in this directory")
    return files


def is_validation(path: Path, source: Path) -> bool:
    """Whether a file below `source`, or a directory that it lies in, is named val, valid or validation (val_00.jsonl,
    val/a.txt).
    """
    if path == source:
        return False
    return any(_VALIDATION_NAME.match(part) for part in path.relative_to(source).parts)


def read_batches(path: Path, batch_bytes: int) -> Iterator[RawBatch]:
    """The documents of one file in batches of about `batch_bytes`."""
    try:
        with open(path, "rb") as file:
            if not path.name.endswith((".jsonl", ".jsonl.zst")):
                payload = file.read()
                yield RawBatch(path, 0, (payload,), len(payload))
                return
            chunks = (
                _zstd_chunks(file, path) if path.name.endswith(".zst") else iter(lambda: file.read(_READ_BYTES), b"")
            )
            yield from _line_batches(chunks, file, path, batch_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from None


def _line_batches(chunks: Iterator[bytes], file: BinaryIO, path: Path, batch_bytes: int) -> Iterator[RawBatch]:
    lines: list[bytes] = []
    first_line, held_bytes = 1, 0
    rest: list[bytes] = []  # pieces of a line that has not ended yet
    for chunk in chunks:
        *ended, tail = chunk.split(b"\n")
        if ended:
            ended[0] = b"".join(rest) + ended[0]
            rest = []
            lines += ended
            held_bytes += sum(map(len, ended))
        rest.append(tail)
        if held_bytes >= batch_bytes:
            yield RawBatch(path, first_line, tuple(lines), file.tell())
            first_line += len(lines)
            lines, held_bytes = [], 0
    if last := b"".join(rest):
        lines.append(last)
    if lines:
        yield RawBatch(path, first_line, tuple(lines), file.tell())


def _zstd_chunks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Decompressed chunks of one or more frames. The library's stream reader takes a cut file for a finished one;
    this does not.
    """
    decompressor = None
    try:
        while data := file.read(_READ_BYTES):
            while data:
                if decompressor is None:
                    decompressor = zstandard.ZstdDecompressor().decompressobj()
                if chunk := decompressor.decompress(data):
                    yield chunk
                data = decompressor.unused_data if decompressor.eof else b""
                if decompressor.eof:
                    decompressor = None
    except zstandard.ZstdError as error:
        raise InputError(f"{path}: not a zstd file ({error})") from None
    if decompressor is not None:
        raise InputError(f"{path}: the zstd file is cut short")


def _parse_line(payload: bytes, path: Path, line: int) -> str:
    text = _decode(payload, f"{path} line {line}")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} line {line}: not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise InputError(f'{path} line {line}: not an object with a string "text"')
    return str(record["text"])


def _decode(payload: bytes, where: str) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at offset {error.start})"
        ) from None
