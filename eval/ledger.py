"""The byte ledger: how many bytes of the original UTF-8 text each target stands for, and whether that is proved.

Proved means: for every document, the bytes credited to its tokens by the sidecar equal the bytes of the document's
text as `data prepare` counted them (for a tokenizer that normalizes: at most those, short in all by exactly the bytes
that the manifest states as credited to nobody).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.documents import find_documents
from model.errors import InputError


@dataclass(frozen=True)
class ByteLedger:
    """Bytes credited to each token of the validation stream.

    token_bytes: one entry per token, [N]; BOS tokens are worth 0.
    proved: whether the sums were checked against the text's byte counts, document by document.
    lossless: whether decoding the tokens gives the text back; None if the data folder doesn't say.
    reason: why the ledger is unproved; empty if proved.
    """

    token_bytes: npt.NDArray[np.uint16]
    proved: bool
    lossless: bool | None
    reason: str = ""
    num_changed_bytes: int | None = None
    num_uncredited_bytes: int | None = None

    @property
    def target_bytes(self) -> npt.NDArray[np.uint16]:
        """Bytes of each target: target i is token i + 1. [N - 1]"""
        return self.token_bytes[1:]

    @classmethod
    def open(cls, data: Any, tokenizer: Any, bos_id: int = 1) -> ByteLedger:
        """Builds the ledger of a model.text.shards.DataFolder's validation stream.

        Uses the sidecar if there is one, and the tokenizer's byte table (methods.md 7.6) otherwise. Raises
        InputError if the folder's own figures contradict each other.
        """
        tokens = data.val.read(0, data.val.num_tokens)
        split: Mapping[str, Any] = _validation_entry(data.manifest)
        facts = {
            "lossless": data.lossless,
            "num_changed_bytes": split.get("changed_bytes"),
            "num_uncredited_bytes": split.get("uncredited_bytes"),
        }
        if data.val_token_bytes is None:
            previous = np.concatenate([np.array([bos_id], tokens.dtype), tokens[:-1]])
            counted = np.asarray(tokenizer.byte_table().token_bytes(previous, tokens), dtype=np.uint16)
            reason = "the data folder has no byte sidecar; bytes come from the tokenizer's table"
            return cls(counted, proved=False, reason=reason, **facts)
        token_bytes = np.asarray(data.val_token_bytes)
        if len(token_bytes) != len(tokens):
            raise InputError(f"the byte sidecar has {len(token_bytes)} entries for {len(tokens)} validation tokens")
        if data.val_document_bytes is None:
            reason = "the data folder has no byte counts per document"
            return cls(token_bytes, proved=False, reason=reason, **facts)
        document_bytes = np.asarray(data.val_document_bytes)
        short = int(document_bytes.sum(dtype=np.int64)) - int(token_bytes.sum(dtype=np.int64))
        if data.manifest is None and short > 0:
            prove(tokens, token_bytes, document_bytes, short, bos_id)
            reason = (
                f"{short} bytes of the documents are credited to no token, and there is no manifest to say that the "
                f"tokenizer strips them"
            )
            return cls(token_bytes, proved=False, reason=reason, **facts)
        prove(tokens, token_bytes, document_bytes, split.get("uncredited_bytes"), bos_id)
        return cls(token_bytes, proved=True, **facts)


def prove(
    tokens: npt.NDArray[np.integer],
    token_bytes: npt.NDArray[np.integer],
    document_bytes: npt.NDArray[np.integer],
    num_uncredited_bytes: int | None,
    bos_id: int,
) -> None:
    """Raises InputError naming the first document whose credited bytes don't fit its text's bytes.

    `num_uncredited_bytes`: the bytes, over all documents, that a normalizing tokenizer drops at documents' edges; 0 or
    None demands equality for every document.
    """
    find_documents(tokens, bos_id)  # refuses a stream without documents
    starts = np.flatnonzero(np.asarray(tokens) == bos_id)
    if starts[0] != 0 or len(starts) != len(document_bytes):
        found = f"{len(starts)} documents, the first at token {starts[0]}"
        raise InputError(f"the validation shards hold {found}; the byte counts are for {len(document_bytes)} documents")
    credited = np.add.reduceat(np.asarray(token_bytes, dtype=np.int64), starts)
    missing = np.asarray(document_bytes, dtype=np.int64) - credited
    if bool(np.any(token_bytes[starts] != 0)):
        raise InputError("the byte sidecar credits bytes to a BOS token")
    wrong = missing < 0 if num_uncredited_bytes else missing != 0
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            f"the byte sidecar credits {credited[first]} bytes to validation document {first}, "
            f"whose text has {int(document_bytes[first])}"
        )
    if num_uncredited_bytes and int(missing.sum()) != num_uncredited_bytes:
        raise InputError(
            f"the byte sidecar leaves {int(missing.sum())} bytes uncredited; the manifest says {num_uncredited_bytes}"
        )


def _validation_entry(manifest: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The manifest's figures for the validation split; empty for shards written by others."""
    if manifest is None:
        return {}
    splits = manifest.get("splits", manifest)
    entry = splits.get("val", {})
    return entry if isinstance(entry, Mapping) else {}
