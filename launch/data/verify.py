"""Reading a data folder to the last byte: what it holds, whether its ledger is proved, whether its files are the ones
written.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.ledger import ByteLedger
from launch.data.fetch_record import read_fetch_record
from launch.data.progress import Progress
from model.errors import InputError
from model.text import fineweb
from model.text.shards import DataFolder, TokenStream
from model.text.tokenizer import BOS_ID, Tokenizer


@dataclass(frozen=True)
class SplitFacts:
    """One split as read: its documents are counted by their BOS. text_bytes is None where nobody counted them."""

    name: str
    num_shards: int
    num_documents: int
    num_tokens: int
    text_bytes: int | None
    credited_bytes: int | None


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `hashes`: file name -> sha256; `hashes_checked`: against the folder's own record of them."""

    path: Path
    splits: tuple[SplitFacts, ...]
    vocab_size: int | None
    lossless: bool | None
    ledger_proved: bool
    ledger_reason: str
    hashes: Mapping[str, str]
    hashes_checked: bool
    fineweb_differences: tuple[str, ...] | None  # None: the folder does not claim to be FineWeb

    def format(self) -> str:
        """The findings as lines for people."""
        known = {True: "true", False: "false", None: "unknown"}
        lines = [
            f"data folder {self.path}",
            f"{'split':6}{'shards':>8}{'documents':>12}{'tokens':>15}{'text bytes':>15}{'bytes/token':>13}",
        ]
        for split in self.splits:
            text_bytes = split.text_bytes if split.text_bytes is not None else split.credited_bytes
            shown = ("-", "-") if text_bytes is None else (str(text_bytes), f"{text_bytes / split.num_tokens:.4f}")
            lines.append(
                f"{split.name:6}{split.num_shards:>8}{split.num_documents:>12}{split.num_tokens:>15}{shown[0]:>15}{shown[1]:>13}"
            )
        lines.append(f"vocabulary: {self.vocab_size or 'unknown'}   lossless: {known[self.lossless]}")
        lines.append(f"ledger: {'proved' if self.ledger_proved else 'unproved: ' + self.ledger_reason}")
        if self.fineweb_differences is not None:
            verdict = "; ".join(self.fineweb_differences) or "agrees with the published figures"
            lines.append(f"FineWeb validation set: {verdict}")
        lines.append(
            "sha256"
            + (
                " (each as recorded when the folder was made)"
                if self.hashes_checked
                else " (no record to compare with)"
            )
        )
        lines += [f"  {digest}  {name}" for name, digest in sorted(self.hashes.items())]
        return "\n".join(lines)


def verify(path: str | Path, *, tokenizer_path: str | Path | None = None, quiet: bool = False) -> Verification:
    """Read every file of a data folder. InputError naming the first thing that contradicts the format or the folder's
    own records.

    `tokenizer_path` stands in where the folder holds no tokenizer; without one, shards by others have no byte counts.
    """
    data = DataFolder.open(path)
    tokenizer_path = tokenizer_path or data.tokenizer_path
    tokenizer = None if tokenizer_path is None else Tokenizer.load(tokenizer_path)
    _check_tokenizer(data, tokenizer)
    hashes = _hash_files(data, quiet=quiet)
    recorded = _recorded_hashes(data)
    for name, digest in recorded.items():
        if name not in hashes:
            raise InputError(f"{data.path / name}: missing; it was there when the folder was made")
        if hashes[name] != digest:
            raise InputError(
                f"{data.path / name}: sha256 {hashes[name]} is not the recorded {digest}; the file has changed"
            )
    for name in hashes if recorded else ():
        if name not in recorded:
            raise InputError(f"{data.path / name}: not among the files recorded when the folder was made")
    vocab_size = _vocab_size(data, tokenizer)
    ledger = ByteLedger.open(data, tokenizer) if data.val_paths and _can_count(data, tokenizer) else None
    splits = tuple(
        _split_facts(data, name, getattr(data, name), vocab_size, ledger if name == "val" else None)
        for name, paths in (("train", data.train_paths), ("val", data.val_paths))
        if paths
    )
    found = None
    if fineweb.claims_fineweb(data):
        val = next(split for split in splits if split.name == "val")
        found = tuple(
            fineweb.differences(
                val.num_tokens,
                val.num_documents,
                vocab_size,
                None if tokenizer is None else tokenizer.is_caseops,
                _published_bytes(data, tokenizer, ledger),
            )
        )
    reason = "no tokenizer and no byte side-car, so nothing counts the bytes" if ledger is None else ledger.reason
    proved = ledger is not None and ledger.proved
    return Verification(data.path, splits, vocab_size, data.lossless, proved, reason, hashes, bool(recorded), found)


def shard_hashes(path: str | Path) -> dict[str, str]:
    """sha256 of every shard of a data folder: as recorded when it was made, computed where there is no record."""
    data = DataFolder.open(path)
    recorded = _recorded_hashes(data)
    files = (*data.train_paths, *data.val_paths, *data.val_bytes_paths)
    return {file.name: recorded.get(file.name) or _sha256(file) for file in files}


def _published_bytes(data: DataFolder, tokenizer: Tokenizer | None, ledger: ByteLedger | None) -> np.ndarray | None:
    """Bytes of each validation token as the published totals count them: for plain models the byte table's, whatever
    a side-car says.
    """
    if tokenizer is None or tokenizer.is_caseops:
        return None if ledger is None else ledger.token_bytes
    tokens = data.val.read(0, data.val.num_tokens)
    return tokenizer.byte_table().token_bytes(np.append([BOS_ID], tokens[:-1]), tokens)


def _can_count(data: DataFolder, tokenizer: Tokenizer | None) -> bool:
    return data.val_token_bytes is not None or tokenizer is not None


def _check_tokenizer(data: DataFolder, tokenizer: Tokenizer | None) -> None:
    recorded = (data.manifest or {}).get("tokenizer_sha256")
    if tokenizer is not None and recorded not in (None, tokenizer.sha256):
        raise InputError(
            f"{data.path}: made with the tokenizer of sha256 {recorded}, not with the one of {tokenizer.sha256}"
        )


def _vocab_size(data: DataFolder, tokenizer: Tokenizer | None) -> int | None:
    if tokenizer is not None:
        return tokenizer.vocab_size
    return None if data.manifest is None else int(data.manifest["vocab_size"])


def _recorded_hashes(data: DataFolder) -> dict[str, str]:
    if data.manifest is not None:
        files: Mapping[str, Any] = data.manifest.get("files", {})
        return {name: str(facts["sha256"]) for name, facts in files.items()}
    record = read_fetch_record(data.path)
    return {} if record is None else {name: facts.sha256 for name, facts in record.files.items()}


def _hash_files(data: DataFolder, *, quiet: bool) -> dict[str, str]:
    optional = [path for path in (data.val_documents_path, data.tokenizer_path) if path is not None]
    paths = [*data.train_paths, *data.val_paths, *data.val_bytes_paths, *optional]
    hashes, done = {}, 0
    with Progress("data verify", sum(path.stat().st_size for path in paths), "B", quiet=quiet) as progress:
        for path in paths:
            hashes[path.name] = _sha256(path)
            done += path.stat().st_size
            progress.advance_to(done, path.name)
    return hashes


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split_facts(
    data: DataFolder, name: str, stream: TokenStream, vocab_size: int | None, ledger: ByteLedger | None
) -> SplitFacts:
    for path, shard in zip(stream.paths, stream.shards, strict=True):
        if vocab_size is not None and len(shard) and (largest := int(shard.max())) >= vocab_size:
            raise InputError(f"{path}: token {largest} in a vocabulary of {vocab_size}")
    starts = stream.document_starts()
    if not len(starts) or starts[0] != 0:
        raise InputError(f"{stream.paths[0]}: the {name} shards do not begin with a document's BOS (id {BOS_ID})")
    recorded: Mapping[str, Any] = (data.manifest or {}).get("splits", {}).get(name, {})
    for counter, found in (("documents", len(starts)), ("tokens", stream.num_tokens)):
        if recorded.get(counter, found) != found:
            raise InputError(
                f"{data.path}: the {name} shards hold {found} {counter}, the manifest says {recorded[counter]}"
            )
    credited = None if ledger is None else int(np.sum(ledger.token_bytes, dtype=np.int64))
    text_bytes = recorded.get("text_bytes")
    return SplitFacts(name, len(stream.shards), len(starts), stream.num_tokens, text_bytes, credited)
