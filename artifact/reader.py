"""Reading artifacts strictly: whatever breaks a rule of proto/FORMAT.md is refused with that rule's code."""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from artifact import limits, wire
from artifact.content import Content, Float32, LowRank, QuantizedTensor, Tensor
from artifact.dequantize import dequantize
from artifact.errors import ArtifactError, ErrorCode
from artifact.ledger import Ledger, LedgerRow
from artifact.manifest import Encoding, Group, Manifest, from_wire
from artifact.schema import MAGIC, Kind, Role
from artifact.streams import decode_group

_HEADER: Final = b"\x09" + MAGIC
_TRAILER_TAG: Final = b"\x2a\x20"
_TRAILER_BYTES: Final = len(_TRAILER_TAG) + 32
_MIN_FILE_BYTES: Final = len(_HEADER) + _TRAILER_BYTES


class Artifact:
    """A file that has passed every check but those made while decoding its streams."""

    def __init__(self, data: bytes, manifest: Manifest, streams: Sequence[memoryview], code: bytes) -> None:
        self._data = data
        self._streams = streams
        self.manifest = manifest
        self.code = code
        self.sha256 = data[-32:].hex()
        """Hex SHA-256 of the file before its trailer: the identity of the artifact."""

    @property
    def configuration(self) -> dict[str, Any]:
        return self.manifest.configuration

    @property
    def tokenizer_sha256(self) -> str:
        return self.manifest.tokenizer_sha256

    @property
    def total_bytes(self) -> int:
        return len(self._data)

    def ledger(self) -> Ledger:
        """Bytes per group, of the configuration, the code and the container; they add up to the file."""
        rows = [_ledger_row(group) for group in self.manifest.groups]
        rows.append(LedgerRow("configuration", self.manifest.configuration_bytes))
        rows.append(LedgerRow("code", len(self.code)))
        rows.append(LedgerRow("container", self.total_bytes - sum(row.coded_bytes for row in rows)))
        return Ledger(tuple(rows), self.total_bytes)

    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor as its symbols, low-rank corrections attached. Raises ArtifactError."""
        by_role: dict[Role, dict[str, Tensor]] = {role: {} for role in Role}
        for group, stream in zip(self.manifest.groups, self._streams, strict=True):
            names = [name for name, _ in group.tensors()]
            by_role[group.role].update(zip(names, decode_group(group, stream), strict=True))
        result = by_role[Role.WEIGHT]
        right = by_role[Role.LOW_RANK_RIGHT]
        for name, left in by_role[Role.LOW_RANK_LEFT].items():
            tensor = result[name]
            assert isinstance(tensor, QuantizedTensor)
            result[name] = replace(tensor, low_rank=LowRank(left, right[name]))
        return result

    def content(self) -> Content:
        """What was written, so that writing it again gives the same bytes. Raises ArtifactError."""
        return Content(self.configuration, self.tokenizer_sha256, self.tensors(), self.code, dict(self.manifest.ties))

    def arrays(self) -> dict[str, Float32]:
        """Weights by name, float32; tied names share one array. Raises ArtifactError."""
        tensors = self.tensors()
        arrays = {name: dequantize(tensors.pop(name)) for name in sorted(tensors)}
        arrays.update({name: arrays[target] for name, target in self.manifest.ties})
        return arrays


def read(path: str | os.PathLike[str]) -> Artifact:
    """Read and check a file. Raises ArtifactError with the code of the first rule it breaks, and OSError."""
    with open(path, "rb") as file:
        # One byte more than allowed shows a file that is too long, however long it is.
        data = file.read(limits.MAX_FILE_BYTES + 1)
    return parse(data)


def parse(data: bytes) -> Artifact:
    """Check the bytes of a file, in the order of FORMAT.md. Raises ArtifactError."""
    _check_frame(data)
    view = memoryview(data)
    spans = wire.walk(view, wire.ARTIFACT, 0, len(data))
    by_name: dict[str, list[memoryview]] = {"stream": []}
    for span in spans:
        by_name.setdefault(span.field.name, []).append(view[span.start : span.end])
    wire_manifest, streams, code = by_name["manifest"][0], by_name["stream"], by_name["code"][0]
    if len(wire_manifest) > limits.MAX_MANIFEST_BYTES:
        raise ArtifactError(
            ErrorCode.MANIFEST_TOO_LONG, f"manifest of {len(wire_manifest)} bytes, at most {limits.MAX_MANIFEST_BYTES}"
        )
    wire.walk(wire_manifest, wire.MANIFEST, 0, len(wire_manifest))
    manifest = from_wire(wire_manifest, [len(stream) for stream in streams], len(code))
    for group, stream in zip(manifest.groups, streams, strict=True):
        if zlib.crc32(stream) != group.crc32:
            raise ArtifactError(ErrorCode.CRC32, f"{group.label}: the stream does not match its checksum")
    if zlib.crc32(code) != manifest.code_crc32:
        raise ArtifactError(ErrorCode.CRC32, "the code does not match its checksum")
    return Artifact(data, manifest, streams, bytes(code))


def _check_frame(data: bytes) -> None:
    if data[: len(_HEADER)] != _HEADER[: len(data)]:
        raise ArtifactError(ErrorCode.MAGIC, "not an Albatross artifact: the first bytes are not its magic")
    if len(data) < _MIN_FILE_BYTES:
        raise ArtifactError(ErrorCode.FILE_TOO_SHORT, f"{len(data)} bytes, cut short")
    if len(data) > limits.MAX_FILE_BYTES:
        raise ArtifactError(ErrorCode.FILE_TOO_LONG, f"more than {limits.MAX_FILE_BYTES} bytes")
    if data[-_TRAILER_BYTES:-32] != _TRAILER_TAG:
        raise ArtifactError(ErrorCode.TRAILER, "the trailer is missing: the file is cut short or damaged")
    if hashlib.sha256(memoryview(data)[:-_TRAILER_BYTES]).digest() != data[-32:]:
        raise ArtifactError(ErrorCode.SHA256, "the file is damaged: its SHA-256 does not match its trailer")


def _ledger_row(group: Group) -> LedgerRow:
    return LedgerRow(
        name=group.label,
        coded_bytes=group.stream_bytes,
        num_tensors=group.num_tensors,
        num_weights=group.num_weights,
        encoding=describe_encoding(group.encoding),
        codecs="+".join(part.codec.name.lower() for part in group.parts),
    )


def describe_encoding(encoding: Encoding) -> str:
    """Short text for tables: `int6 per row, float16 scales`."""
    float_type = encoding.float_type.name.lower()
    if encoding.kind == Kind.FLOAT:
        return float_type
    prefix = {Kind.SYMMETRIC: f"int{encoding.bits}", Kind.ASYMMETRIC: f"uint{encoding.bits}"}
    unit = "row" if encoding.group_size == 0 else str(encoding.group_size)
    return f"{prefix.get(encoding.kind, encoding.kind.name.lower())} per {unit}, {float_type}"
