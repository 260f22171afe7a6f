"""The byte ledger: sums over tokens equal the text's bytes, document by document, or the evaluator stops."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from eval.ledger import ByteLedger
from eval.scoring import TokenArray
from model.errors import InputError

TOKENS = np.array([1, 5, 6, 7, 1, 8, 1, 9, 9], np.uint16)
TOKEN_BYTES = np.array([0, 3, 2, 4, 0, 6, 0, 1, 2], np.uint16)
DOCUMENT_BYTES = np.array([9, 6, 3], np.uint32)


def folder(token_bytes=TOKEN_BYTES, document_bytes=DOCUMENT_BYTES, lossless=True, uncredited=0):
    split = {"documents": 3, "changed_bytes": 0, "uncredited_bytes": uncredited}
    return SimpleNamespace(
        val=TokenArray(TOKENS),
        val_token_bytes=token_bytes,
        val_document_bytes=document_bytes,
        lossless=lossless,
        manifest=None if lossless is None else {"splits": {"val": split}},
    )


def changed(values, index, amount):
    result = values.astype(np.int64)
    result[index] += amount
    return result.astype(values.dtype)


def test_matching_counts_are_a_proof():
    ledger = ByteLedger.open(folder(), tokenizer=None)
    assert ledger.proved
    assert ledger.lossless is True
    assert ledger.target_bytes.tolist() == TOKEN_BYTES[1:].tolist()


@pytest.mark.parametrize("index", [1, 3, 5, 8])
@pytest.mark.parametrize("amount", [1, -1])
def test_one_wrong_byte_is_found(index, amount):
    data = folder(token_bytes=changed(TOKEN_BYTES, index, amount))
    document = int(np.searchsorted([0, 4, 6], index, side="right")) - 1
    with pytest.raises(InputError, match=f"validation document {document}, whose text has"):
        ByteLedger.open(data, tokenizer=None)


def test_a_byte_moved_to_another_document_is_found():
    """The total is right, so only the proof by document can see it."""
    moved = changed(changed(TOKEN_BYTES, 1, 1), 5, -1)
    assert moved.sum() == TOKEN_BYTES.sum()
    with pytest.raises(InputError, match="document 0"):
        ByteLedger.open(folder(token_bytes=moved), tokenizer=None)


def test_bytes_on_a_bos_are_found():
    moved = changed(changed(TOKEN_BYTES, 4, 1), 5, -1)
    with pytest.raises(InputError, match="BOS"):
        ByteLedger.open(folder(token_bytes=moved), tokenizer=None)


def test_a_missing_document_is_found():
    with pytest.raises(InputError, match="3 documents, the first at token 0; the byte counts are for 2 documents"):
        ByteLedger.open(folder(document_bytes=DOCUMENT_BYTES[:2]), tokenizer=None)


def test_a_normalizing_tokenizer_drops_exactly_the_stated_bytes():
    texts = DOCUMENT_BYTES + np.array([0, 2, 1], np.uint32)
    assert ByteLedger.open(folder(document_bytes=texts, lossless=False, uncredited=3), tokenizer=None).proved
    with pytest.raises(InputError, match="leaves 3 bytes uncredited; the manifest says 4"):
        ByteLedger.open(folder(document_bytes=texts, lossless=False, uncredited=4), tokenizer=None)
    with pytest.raises(InputError, match="document 1"):
        ByteLedger.open(folder(document_bytes=texts, lossless=True, uncredited=0), tokenizer=None)


def test_too_many_credited_bytes_are_never_accepted():
    texts = DOCUMENT_BYTES + np.array([4, 0, 0], np.uint32)
    data = folder(token_bytes=changed(TOKEN_BYTES, 8, 1), document_bytes=texts, lossless=False, uncredited=3)
    with pytest.raises(InputError, match="document 2"):
        ByteLedger.open(data, tokenizer=None)


def test_a_sidecar_of_another_length_is_refused():
    with pytest.raises(InputError, match="8 entries for 9 validation tokens"):
        ByteLedger.open(folder(token_bytes=TOKEN_BYTES[:-1]), tokenizer=None)


def test_without_a_manifest_a_normalizing_tokenizers_ledger_is_unproved_but_never_over_credited():
    data = folder(document_bytes=np.array([9, 8, 3], np.uint32), lossless=None)
    ledger = ByteLedger.open(data, tokenizer=None)
    assert not ledger.proved
    assert ledger.reason.startswith("2 bytes of the documents are credited to no token")
    assert ledger.token_bytes.tolist() == TOKEN_BYTES.tolist()
    assert ByteLedger.open(folder(lossless=None), tokenizer=None).proved
    for counts in ([9, 8, 2], [9, 6, 2]):
        with pytest.raises(InputError, match="document 2"):
            ByteLedger.open(folder(document_bytes=np.array(counts, np.uint32), lossless=None), tokenizer=None)
    with pytest.raises(InputError, match="document 1"):
        ByteLedger.open(folder(document_bytes=np.array([9, 8, 3], np.uint32)), tokenizer=None)


def test_without_counts_the_ledger_is_unproved():
    ledger = ByteLedger.open(folder(document_bytes=None, lossless=None), tokenizer=None)
    assert not ledger.proved
    assert ledger.lossless is None
    assert "no byte counts" in ledger.reason


def test_without_a_sidecar_bytes_come_from_the_table_and_are_unproved():
    seen = {}

    class Table:
        def token_bytes(self, previous, ids):
            seen["previous"] = previous.tolist()
            return np.where(ids == 1, 0, ids)

    tokenizer = SimpleNamespace(byte_table=Table)
    ledger = ByteLedger.open(folder(token_bytes=None, lossless=None), tokenizer)
    assert not ledger.proved
    assert ledger.token_bytes.tolist() == [0, 5, 6, 7, 0, 8, 0, 9, 9]
    assert seen["previous"] == [1, *TOKENS[:-1].tolist()]
