"""Tokenizers and texts that several tests of the text half use."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.text.tokenizer import Tokenizer, train_lossless

VECTORS = Path(__file__).parent.parent / "vectors"

PARAGRAPH = (
    "The tern crossed the bay in 1931, low over the water; nobody aboard the Northern Light saw it.\n"
    "It had flown 12,000 miles since August, and it would fly as many again before the year was out.\n\n"
    "    def distance(a, b):\n        return abs(a - b)\n\n"
    '"Where are we?" asked the captain. "Off Cape Horn," said the mate, \'or NEAR it.\' Café, naïve, coöperate.\n'
)


@pytest.fixture(scope="session")
def lossless() -> Tokenizer:
    return Tokenizer.from_bytes(train_lossless([PARAGRAPH * 20], 420))


@pytest.fixture(scope="session")
def lossless_caseops() -> Tokenizer:
    return Tokenizer.from_bytes(train_lossless([PARAGRAPH * 20], 420, case_operators=True))


@pytest.fixture(scope="session")
def community() -> Tokenizer:
    """The leaderboard's 8,192-piece model: NFKC, white space collapsed."""
    return Tokenizer.load(VECTORS / "tokenizers" / "fineweb_8192_bpe.model")


@pytest.fixture(scope="session")
def community_caseops() -> Tokenizer:
    return Tokenizer.load(VECTORS / "tokenizers" / "fineweb_8192_bpe_caseops.model")


@pytest.fixture(scope="session")
def caseops_vectors() -> dict[str, Any]:
    return json.loads((VECTORS / "caseops.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def byte_table_vectors() -> dict[str, Any]:
    return json.loads((VECTORS / "byte_table.json").read_text(encoding="utf-8"))
