"""What `albatross inspect` and `albatross verify` report about a file."""

import os
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from artifact.content import QuantizedTensor, Tensor
from artifact.ledger import Ledger
from artifact.manifest import part_shapes
from artifact.reader import describe_encoding, read
from artifact.schema import Role

CHALLENGE_BYTES: Final = 16_000_000
"""The cap of the challenge, decimal, code counted."""


@dataclass(frozen=True)
class Verification:
    """Outcome of a full check: everything decoded, nothing refused."""

    sha256: str
    total_bytes: int
    num_tensors: int
    num_weights: int


def verify(path: str | os.PathLike[str]) -> Verification:
    """Read a file, decode every stream and dequantize every tensor. Raises ArtifactError and OSError."""
    artifact = read(path)
    arrays = artifact.arrays()
    stored = set(arrays) - {name for name, _ in artifact.manifest.ties}
    return Verification(
        sha256=artifact.sha256,
        total_bytes=artifact.total_bytes,
        num_tensors=len(stored),
        num_weights=sum(arrays[name].size for name in stored),
    )


def entropy_bits(tensors: list[Tensor]) -> float | None:
    """Order-0 entropy of all symbols of quantized tensors together, in bits; None without any."""
    symbols = [tensor.symbols.reshape(-1) for tensor in tensors if isinstance(tensor, QuantizedTensor)]
    num_symbols = sum(part.size for part in symbols)
    if num_symbols == 0:
        return None
    counts = np.zeros(256, dtype=np.int64)
    for part in symbols:
        counts += np.bincount(part.view(np.uint8), minlength=256)
    used = counts[counts > 0]
    return float(-(used * np.log2(used / num_symbols)).sum())


def inspect(path: str | os.PathLike[str], *, with_entropy: bool = False) -> dict[str, Any]:
    """Plain data about a file: identity, configuration, groups with their parts, byte ledger.

    with_entropy decodes the streams and adds each group's order-0 entropy of symbols, in bytes. Raises ArtifactError
    and OSError.
    """
    artifact = read(path)
    tensors = artifact.tensors() if with_entropy else {}
    groups = []
    for group, row in zip(artifact.manifest.groups, artifact.ledger().rows, strict=False):
        entry: dict[str, Any] = {
            "name": group.label,
            "role": group.role.name.lower(),
            "tensors": [name for name, _ in group.tensors()],
            "shapes": [list(tensor_set.shape) for tensor_set in group.tensor_sets],
            "encoding": describe_encoding(group.encoding),
            "num_weights": group.num_weights,
            "order": group.encoding.order.name.lower(),
            "parts": [
                {
                    "name": shape.name,
                    "codec": part.codec.name.lower(),
                    "num_symbols": shape.num_symbols,
                    "num_bytes": part.num_bytes,
                    "carried_bytes": part.carried_bytes,
                }
                for part, shape in zip(group.parts, part_shapes(group.tensor_sets, group.encoding), strict=True)
            ],
            "coded_bytes": row.coded_bytes,
            "bits_per_weight": row.bits_per_weight,
            "share": row.coded_bytes / artifact.total_bytes,
        }
        if with_entropy:
            bits = entropy_bits([tensors[name] for name in entry["tensors"]]) if group.role == Role.WEIGHT else None
            entry["entropy_bytes"] = None if bits is None else bits / 8
        groups.append(entry)
    return {
        "sha256": artifact.sha256,
        "total_bytes": artifact.total_bytes,
        "tokenizer_sha256": artifact.tokenizer_sha256,
        "configuration": artifact.configuration,
        "code_bytes": len(artifact.code),
        "ties": dict(artifact.manifest.ties),
        "groups": groups,
        "ledger": artifact.ledger().to_json(),
    }


def format_inspection(path: str | os.PathLike[str], *, max_bytes: int = CHALLENGE_BYTES) -> str:
    """Text for a terminal: identity and the byte table, with each group's entropy bound and the headroom under a cap.

    Raises ArtifactError and OSError.
    """
    artifact = read(path)
    tensors = artifact.tensors()
    ledger = artifact.ledger()
    rows = list(ledger.rows)
    for index, group in enumerate(artifact.manifest.groups):
        bits = entropy_bits([tensors[name] for name, _ in group.tensors()]) if group.role == Role.WEIGHT else None
        rows[index] = replace(rows[index], entropy_bytes=None if bits is None else bits / 8)
    lines = [
        f"sha256     {artifact.sha256}",
        f"tokenizer  {artifact.tokenizer_sha256}",
        f"preset     {artifact.configuration.get('preset', '(none)')}",
        "",
        Ledger(tuple(rows), ledger.total_bytes, max_bytes).format_table(),
    ]
    return "\n".join(lines)
