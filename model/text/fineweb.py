"""What is known of the FineWeb validation sets that the leaderboard is scored on (methods.md 7.2), and the check
against it.

The validation split is the first 50,000 documents of a frozen list. Its size in tokens depends on the tokenizer; the
entries report the targets that are left after cutting the stream to whole sequences, and bits per byte from which the
byte totals follow.
"""

from dataclasses import dataclass

import numpy as np

from model.text.shards import DataFolder

NUM_DOCUMENTS = 50_000
EXPORTER_DEFAULT_DOCUMENTS = 10_000
# The entries cut the stream to sequences of either length; the byte totals come from figures of about eight digits.
_SEQUENCE_TOKENS = (1024, 2048)
_BYTES_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ValidationFacts:
    """One tokenizer's FineWeb validation set: targets in whole sequences, and the bytes credited to them (None:
    unknown).
    """

    name: str
    vocab_size: int
    is_caseops: bool
    num_targets: int
    num_bytes: int | None


FACTS = (
    ValidationFacts("sp1024", 1024, False, 62_021_632, 151_080_363),
    ValidationFacts("sp1024, the older export of the baseline", 1024, False, 63_779_840, 155_769_746),
    ValidationFacts("sp4096", 4096, False, 45_508_608, None),
    ValidationFacts("sp4096, the other build", 4096, False, 45_514_752, None),
    ValidationFacts("sp8192", 8192, False, 40_540_160, 151_078_222),
    ValidationFacts("caseops8192", 8192, True, 47_851_520, 151_074_499),
)


def claims_fineweb(data: DataFolder) -> bool:
    """Whether the shards are named as the FineWeb exports are."""
    return any(path.name.startswith("fineweb") for path in data.val_paths)


def differences(
    num_tokens: int, num_documents: int, vocab_size: int | None, is_caseops: bool | None, token_bytes: np.ndarray | None
) -> list[str]:
    """In what a validation set differs from FineWeb's; empty if in nothing.

    `vocab_size` and `is_caseops` are None where the tokenizer is unknown; `token_bytes` [num_tokens] are the bytes
    credited to each token, None to leave them unchecked.
    """
    found = []
    if num_documents == EXPORTER_DEFAULT_DOCUMENTS:
        found.append(
            f"{num_documents} documents instead of {NUM_DOCUMENTS}: the default of a published CaseOps exporter, which "
            f"leaves the other {NUM_DOCUMENTS - num_documents} validation documents in the training shards"
        )
    elif num_documents != NUM_DOCUMENTS:
        found.append(f"{num_documents} documents instead of {NUM_DOCUMENTS}")
    known = [
        facts for facts in FACTS if vocab_size in (None, facts.vocab_size) and is_caseops in (None, facts.is_caseops)
    ]
    if not known:
        return [
            *found,
            f"a tokenizer of {vocab_size} pieces{' with CaseOps' * bool(is_caseops)} has no published validation set",
        ]
    targets = {max(num_tokens - 1, 0) // length * length for length in _SEQUENCE_TOKENS}
    matching = [facts for facts in known if facts.num_targets in targets]
    if not matching:
        accepted = ", ".join(f"{facts.num_targets} ({facts.name})" for facts in known)
        return [*found, f"{num_tokens} tokens, {max(targets)} targets in whole sequences instead of {accepted}"]
    facts = matching[0]
    if facts.num_bytes is not None and token_bytes is not None:
        num_bytes = int(token_bytes[1 : facts.num_targets + 1].sum(dtype=np.int64))
        if abs(num_bytes - facts.num_bytes) > _BYTES_TOLERANCE * facts.num_bytes:
            found.append(
                f"{num_bytes} bytes credited to {facts.num_targets} targets instead of {facts.num_bytes} ({facts.name})"
            )
    return found
