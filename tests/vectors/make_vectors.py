"""Write the artifact vectors: python -m tests.vectors.make_vectors

good/NAME.albatross with NAME.json (shape and SHA-256 of the float32 bytes of every tensor), bad/CODE--NAME.albatross.
The JSON also names the version of the zstd library, on which the bytes of good files depend.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import zstandard

from artifact import reader, writer
from tests.artifact.contents import good_contents
from tests.attacks.hostile_files import hostile_files, variants

FOLDER = Path(__file__).parent
# Larger hostile files are only built in memory.
MAX_VECTOR_BYTES = 20_000


def zstd_version() -> str:
    return ".".join(map(str, zstandard.ZSTD_VERSION))


def describe(data: bytes) -> dict[str, Any]:
    """Shape and SHA-256 of the little-endian float32 bytes of every tensor of a file."""
    return {
        name: {"shape": list(array.shape), "sha256": hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()}
        for name, array in reader.parse(data).arrays().items()
    }


def good_files() -> dict[str, bytes]:
    return {**{name: writer.encode(content) for name, content in good_contents().items()}, **variants()}


def bad_files() -> dict[str, bytes]:
    return {f"{code}--{name}": data for name, (data, code) in hostile_files().items() if len(data) <= MAX_VECTOR_BYTES}


def main() -> None:
    for kind, files in (("good", good_files()), ("bad", bad_files())):
        folder = FOLDER / kind
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for name, data in files.items():
            (folder / f"{name}.albatross").write_bytes(data)
            if kind == "good":
                expected = {"zstd": zstd_version(), "tensors": describe(data)}
                (folder / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
