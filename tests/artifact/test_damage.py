"""Every single flipped bit and every truncation of a file is noticed."""

import pytest

from artifact import reader, writer
from artifact.errors import ArtifactError
from tests.artifact.contents import good_contents

DATA = writer.encode(good_contents()["scale_types"])


def test_every_flipped_bit() -> None:
    damaged = bytearray(DATA)
    for position in range(len(DATA)):
        for bit in range(8):
            damaged[position] ^= 1 << bit
            with pytest.raises(ArtifactError):
                reader.parse(bytes(damaged))
            damaged[position] ^= 1 << bit
    reader.parse(bytes(damaged))


def test_every_truncation() -> None:
    for length in range(len(DATA)):
        with pytest.raises(ArtifactError):
            reader.parse(DATA[:length])


def test_every_flipped_bit_of_the_streams_is_noticed_by_their_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """CRC alone, for readers that walk the file without hashing it."""
    monkeypatch.setattr(reader, "_check_frame", lambda data: None)
    start = DATA.index(b"\x1a")
    artifact = reader.parse(DATA)
    first = DATA.index(bytes(artifact._streams[0]), start)
    damaged = bytearray(DATA)
    for position in range(first, first + len(artifact._streams[0])):
        damaged[position] ^= 4
        with pytest.raises(ArtifactError, match="crc32"):
            reader.parse(bytes(damaged))
        damaged[position] ^= 4
