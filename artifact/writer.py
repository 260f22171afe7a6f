"""Writing artifacts: the same content gives the same bytes, and a file appears whole or not at all."""

import hashlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifact import artifact_pb2, canonical_json
from artifact.codecs.rans import StepBudget
from artifact.content import Content
from artifact.errors import ArtifactError, ErrorCode
from artifact.grouping import GroupedTensors, group_tensors
from artifact.ledger import Ledger
from artifact.manifest import TensorSet
from artifact.reader import parse
from artifact.schema import MAGIC, VERSION
from artifact.streams import CodedGroup, encode_group


def write(path: str | os.PathLike[str], content: Content, *, max_bytes: int | None = None) -> Ledger:
    """Write an artifact and return its byte ledger.

    The file is written under a temporary name in the same folder, synced, and renamed: a crash or a full disk leaves
    the previous file, or none. Raises ArtifactError(OVER_BUDGET) with the byte table, and writes nothing, when the file
    would be larger than `max_bytes`; ArtifactError(CONTENT) for content that the format cannot hold; OSError from the
    file system.
    """
    data = encode(content)
    ledger = replace(parse(data).ledger(), max_bytes=max_bytes)
    if max_bytes is not None and len(data) > max_bytes:
        raise ArtifactError(
            ErrorCode.OVER_BUDGET,
            f"the artifact takes {len(data):,} bytes, {len(data) - max_bytes:,} more than the cap of {max_bytes:,}",
            ledger.format_table(),
        )
    _write_atomically(Path(path), data)
    return ledger


def encode(content: Content) -> bytes:
    """Bytes of the artifact that holds `content`. Raises ArtifactError(CONTENT)."""
    grouped = group_tensors(content.tensors)
    steps = StepBudget()
    coded = [encode_group(group, steps) for group in grouped]
    manifest = _manifest(content, grouped, coded).SerializeToString(deterministic=True)
    pieces = [b"\x09" + MAGIC, _field(2, manifest), *(_field(3, group.stream) for group in coded)]
    pieces.append(_field(4, content.code))
    body = b"".join(pieces)
    data = body + _field(5, hashlib.sha256(body).digest())
    _check_readable(data)
    return data


def _check_readable(data: bytes) -> None:
    """The reader's rules are the limits of what may be written."""
    try:
        parse(data)
    except ArtifactError as error:
        raise ArtifactError(ErrorCode.CONTENT, f"the content breaks a rule of the format: {error}") from error


def _manifest(content: Content, grouped: Sequence[GroupedTensors], coded: Sequence[CodedGroup]) -> Any:
    message = artifact_pb2.Manifest(
        version=VERSION,
        tokenizer_sha256=bytes.fromhex(content.tokenizer_sha256),
        configuration=canonical_json.encode(dict(content.configuration)),
        code_bytes=len(content.code),
        code_crc32=zlib.crc32(content.code),
    )
    for tensors, result in zip(grouped, coded, strict=True):
        encoding = result.encoding
        message.group.add(
            tensors=[_tensor_set(tensor_set) for tensor_set in tensors.tensor_sets],
            role=int(tensors.role),
            encoding=artifact_pb2.Encoding(
                kind=int(encoding.kind),
                float_type=int(encoding.float_type),
                bits=encoding.bits,
                group_size=encoding.group_size,
                scale_exponent=encoding.scale_exponent,
                order=int(encoding.order),
                permuted=encoding.permuted,
            ),
            part=[
                artifact_pb2.Part(
                    codec=int(part.codec),
                    num_bytes=part.num_bytes,
                    carried_bytes=part.carried_bytes,
                    lanes=part.lanes,
                )
                for part in result.parts
            ],
            crc32=zlib.crc32(result.stream),
        )
    for name, target in sorted(content.ties.items()):
        message.tie.add(name=name, target=target)
    return message


def _tensor_set(tensor_set: TensorSet) -> Any:
    layers = tensor_set.layers
    is_run_from_zero = tuple(layers) == tuple(range(len(layers)))
    return artifact_pb2.TensorSet(
        pattern=tensor_set.pattern,
        count=len(layers) if is_run_from_zero else 0,
        indices=() if is_run_from_zero else layers,
        shape=tensor_set.shape,
    )


def _field(number: int, data: bytes) -> bytes:
    length, header = len(data), bytearray([number << 3 | 2])
    while length >= 0x80:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header) + data


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
