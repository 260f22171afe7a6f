"""Checkpoints: everything a run needs to go on, in a folder that either is whole or is not there.

    checkpoints/step_000123/   weights.pt   averages.pt (where weights are averaged)   optimizer.pt   random.pt
                               state.json   manifest.json (length and sha256 of every other file; written last)

A folder is written under a temporary name, synced, and renamed. One without a manifest, or whose files don't match
it, is not a checkpoint. Tensor files are read with `weights_only=True`: loading executes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; tensors on the CPU."""

    weights: dict[str, Tensor]
    averages: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    random: list[Tensor]
    """State of torch's random generator on each rank, uint8."""
    state: dict[str, Any]
    """`step`, `elapsed_seconds`, `clock` (of the last step), `optimizer_steps`."""


def save(folder: Path, step: int, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder/step_NNNNNN` and drop all but the newest `keep` checkpoints.

    Raises:
        OSError: the disk is full or not writable. Earlier checkpoints are untouched and nothing half-written remains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"step_{step:06d}", folder / f".step_{step:06d}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        files = {
            "weights.pt": _tensor_bytes(checkpoint.weights),
            "optimizer.pt": _tensor_bytes(checkpoint.optimizer),
            "random.pt": _tensor_bytes({str(rank): state for rank, state in enumerate(checkpoint.random)}),
            "state.json": json.dumps({"format": FORMAT, **checkpoint.state}, sort_keys=True).encode(),
        }
        if checkpoint.averages is not None:
            files["averages.pt"] = _tensor_bytes(checkpoint.averages)
        manifest = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in sorted(files.items())}
        for name, data in files.items():
            _write_synced(temporary / name, data)
        _write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        _sync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in complete(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def complete(folder: Path) -> list[Path]:
    """The checkpoint folders that were committed, newest first; their contents are not checked."""
    found = [p for p in folder.glob("step_*") if (p / "manifest.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint folder, every file checked against the manifest.

    Raises:
        InputError: a file is missing, cut short or altered; the message names it.
    """
    files = _verified_files(path)
    state = json.loads(files["state.json"])
    if state.get("format") != FORMAT:
        raise InputError(f"{path}: checkpoint format {state.get('format')!r}, this version reads {FORMAT}")
    random = _tensors(files["random.pt"])
    return Checkpoint(
        weights=_tensors(files["weights.pt"]),
        averages=_tensors(files["averages.pt"]) if "averages.pt" in files else None,
        optimizer=_tensors(files["optimizer.pt"]),
        random=[random[str(rank)] for rank in range(len(random))],
        state=state,
    )


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and one line for each newer one that was skipped."""
    skipped = []
    for path in complete(folder):
        try:
            _verified_files(path)
        except InputError as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights to pack, float32: averaged where the run averages, else the live ones.

    Args:
        path: a run folder (its newest valid checkpoint) or a checkpoint folder.

    Raises:
        InputError: there is no valid checkpoint.
    """
    if not (path / "manifest.json").is_file():
        newest, skipped = newest_valid(path / "checkpoints")
        if newest is None:
            raise InputError("; ".join(skipped) if skipped else f"{path}: no checkpoint in there")
        path = newest
    checkpoint = load(path)
    tensors = checkpoint.weights if checkpoint.averages is None else checkpoint.averages
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def _verified_files(path: Path) -> dict[str, bytes]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        files = {name: (path / Path(name).name).read_bytes() for name in manifest}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole checkpoint ({error})") from error
    for name, (length, digest) in manifest.items():
        if len(files[name]) != length or hashlib.sha256(files[name]).hexdigest() != digest:
            raise InputError(f"{path / name}: damaged (its length or sha256 is not the recorded one)")
    return files


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


def _tensors(data: bytes) -> dict[str, Tensor]:
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
