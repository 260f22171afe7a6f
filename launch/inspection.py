"""`albatross inspect` and `albatross verify`: what an artifact holds, and whether all of it is sound."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from artifact import inspection
from artifact.errors import ArtifactError
from model.errors import InputError

T = TypeVar("T")


def _checked(examine: Callable[[Path], T], path: Path) -> T:
    """`examine(path)`, with the file's name in front of what is wrong with it."""
    try:
        return examine(path)
    except ArtifactError as error:
        raise InputError(f"{path}: {error}") from None


def inspect(path: Path, *, show_bytes: bool, as_json: bool) -> int:
    """Prints an artifact's identity, configuration and groups (`show_bytes`: its byte ledger); returns exit code 0."""
    facts = _checked(inspection.inspect, path)
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif show_bytes:
        print(inspection.format_inspection(path))
    else:
        for name in ("sha256", "total_bytes", "code_bytes", "tokenizer_sha256"):
            print(f"{name}: {facts[name]}")
        print(f"configuration: {json.dumps(facts['configuration'], ensure_ascii=False)}")
        for group in facts["groups"]:
            print(f"group {group['name']}: {len(group['tensors'])} tensors {group['shapes']}, {group['encoding']}")
    return 0


def verify(path: Path) -> int:
    """Reads every byte of an artifact by the strict rules and decodes every tensor; returns 0."""
    found = _checked(inspection.verify, path)
    print(f"{path}: sound; {found.num_tensors} tensors, {found.num_weights:,} weights, sha256 {found.sha256}")
    return 0
