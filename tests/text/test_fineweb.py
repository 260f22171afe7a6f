import numpy as np
import pytest

from model.text import fineweb
from model.text.shards import DataFolder, write_shard

PUBLISHED = {  # methods.md 7.2
    "sp1024": (1024, False, 62_021_632, 151_080_363),
    "sp1024, the older export of the baseline": (1024, False, 63_779_840, 155_769_746),
    "sp4096": (4096, False, 45_508_608, None),
    "sp4096, the other build": (4096, False, 45_514_752, None),
    "sp8192": (8192, False, 40_540_160, 151_078_222),
    "caseops8192": (8192, True, 47_851_520, 151_074_499),
}


def token_bytes(num_targets: int, num_bytes: int) -> np.ndarray:
    """Bytes that add up over targets 1 to num_targets, with a BOS before and a tail behind."""
    counts = np.full(num_targets + 501, num_bytes // num_targets, np.uint16)
    counts[1 : num_bytes % num_targets + 1] += 1
    return counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sets_are_accepted_and_others_named(name):
    vocab_size, is_caseops, num_targets, num_bytes = PUBLISHED[name]
    counts = token_bytes(num_targets, num_bytes or 3 * num_targets)
    assert fineweb.differences(num_targets + 501, 50_000, vocab_size, is_caseops, counts) == []
    assert fineweb.differences(num_targets + 501, 50_000, None, None, None) == []
    counts[7] += 200
    found = fineweb.differences(num_targets + 501, 50_000, vocab_size, is_caseops, counts)
    if num_bytes is None:
        assert found == []
    else:
        assert f"{num_bytes + 200} bytes credited to {num_targets} targets instead of {num_bytes}" in found[0]
    (found,) = fineweb.differences(num_targets + 2049, 50_000, vocab_size, is_caseops, None)
    assert f"{num_targets + 2048} targets in whole sequences instead of " in found
    assert f"{num_targets} ({name})" in found
    (found,) = fineweb.differences(num_targets + 501, 49_999, vocab_size, is_caseops, None)
    assert found == "49999 documents instead of 50000"


def test_the_exporters_default_is_named():
    found = fineweb.differences(9_600_001, 10_000, 8192, True, None)
    assert "10000 documents instead of 50000: the default of a published CaseOps exporter" in found[0]
    assert "40000 validation documents in the training shards" in found[0]
    assert "9600001 tokens" in found[1]


def test_an_unknown_vocabulary_has_no_published_set():
    assert fineweb.differences(5, 50_000, 333, False, None) == [
        "a tokenizer of 333 pieces has no published validation set"
    ]


def test_only_shards_of_that_name_claim_to_be_fineweb(tmp_path):
    for name, claims in (("fineweb", True), ("text", False)):
        folder = tmp_path / name
        folder.mkdir()
        write_shard(folder / f"{name}_val_000000.bin", np.array([1, 2]))
        assert fineweb.claims_fineweb(DataFolder.open(folder)) is claims
