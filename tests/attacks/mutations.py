"""Random damage to artifacts, its hashes put right so that it gets past them, and what a reader may do about it."""

import random
import resource
import time
import zlib
from dataclasses import dataclass

from artifact import artifact_pb2, reader, writer
from artifact.errors import ArtifactError
from tests.artifact.contents import good_contents
from tests.attacks import hostile_files

MAX_SECONDS = 1.0
# Twice the declared size and 8 MB.
ALLOWED_BYTES = 8_000_000
ALLOWED_FACTOR = 2


@dataclass
class Outcome:
    """What became of some mutants."""

    num_read: int = 0
    num_refused: int = 0
    slowest_seconds: float = 0.0
    codes: frozenset[str] = frozenset()


def seeds() -> list[bytes]:
    """Small files of every kind to mutate."""
    good = [writer.encode(content) for content in good_contents().values()]
    hostile = [data for data, _ in hostile_files.hostile_files().values() if 43 < len(data) < 5000]
    return sorted({data for data in [*good, *hostile_files.variants().values(), *hostile] if len(data) < 20_000})


def mutate(data: bytes, generator: random.Random) -> bytes:
    """A mutant of a file. Usually its SHA-256 is put right again, often its checksums too."""
    body = bytearray(data[:-34])
    for _ in range(generator.choice((1, 1, 1, 2, 3, 8))):
        position = generator.randrange(len(body)) if body else 0
        kind = generator.randrange(6)
        if kind == 0 and body:
            body[position] ^= 1 << generator.randrange(8)
        elif kind == 1 and body:
            body[position] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        elif kind == 2:
            body[position:position] = generator.randbytes(generator.randint(1, 5))
        elif kind == 3:
            del body[position : position + generator.randint(1, 8)]
        elif kind == 4:
            length = generator.randint(1, 40)
            body[position:position] = body[generator.randrange(len(body) + 1) :][:length]
        else:
            del body[position:]
    if generator.random() < 0.05:
        return bytes(body) + data[-34:]
    return hostile_files.seal(bytes(body))


def with_right_checksums(data: bytes) -> bytes:
    """Put stream checksums right where the manifest can still be found, so that damage reaches the codecs."""
    try:
        reader.parse(data)
    except ArtifactError as error:
        if error.code != "crc32":
            return data
    else:
        return data
    body = data[:-34]
    for old, new in _checksums(data):
        if old != new and body.count(old) == 1:
            body = body.replace(old, new)
    return hostile_files.seal(body)


def _checksums(data: bytes) -> list[tuple[bytes, bytes]]:
    """(stored, right) CRC-32 of every stream, as they stand in the manifest."""
    message = artifact_pb2.Artifact.FromString(data)
    pairs = []
    for group, stream in zip(message.manifest.group, message.stream, strict=True):
        pairs.append((b"\x2d" + group.crc32.to_bytes(4, "little"), b"\x2d" + zlib.crc32(stream).to_bytes(4, "little")))
    return pairs


def attack(data: bytes, outcome: Outcome) -> None:
    """Read a mutant completely. Raises AssertionError for a hang or too much memory; what the reader raises passes."""
    start = time.perf_counter()
    declared_bytes = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        artifact = reader.parse(data)
        declared_bytes = 4 * sum(group.num_weights for group in artifact.manifest.groups)
        artifact.arrays()
        outcome.num_read += 1
    except ArtifactError as error:
        outcome.num_refused += 1
        outcome.codes |= {error.code.value}
    seconds = time.perf_counter() - start
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    outcome.slowest_seconds = max(outcome.slowest_seconds, seconds)
    assert seconds < MAX_SECONDS, f"{seconds:.2f} s for {data.hex()[:400]}"
    assert growth <= ALLOWED_BYTES + ALLOWED_FACTOR * declared_bytes, f"{growth} bytes for {data.hex()[:400]}"
