"""Models with settings unlike ours and the community's: every one loads and accounts for every byte."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings

from model.errors import InputError
from model.text.sentencepiece_model import PieceType
from model.text.tokenizer import BOS_ID, Tokenizer
from tests.text.conftest import PARAGRAPH
from tests.text.strategies import texts
from tests.text.test_tokenizer import surfaces

UNKNOWN_ID = 3
BASE = {
    "vocab_size": 400,
    "model_type": "bpe",
    "byte_fallback": True,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
}
MODELS = {
    "unigram": {"model_type": "unigram", "vocab_size": 345},
    "dummy_prefix": {"add_dummy_prefix": True},
    "no_byte_fallback": {"byte_fallback": False, "vocab_size": 120},
    "white_space_as_suffix": {"treat_whitespace_as_suffix": True},
    "pieces_across_spaces": {"split_by_whitespace": False},
    "identity": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "user_defined_with_space": {"user_defined_symbols": ["Cape Horn", "asked the"], "vocab_size": 402},
    "user_defined_with_line_feed": {"user_defined_symbols": [".\n"], "vocab_size": 402},
    "lower_case": {"normalization_rule_name": "nmt_nfkc_cf"},
}


def train(**options: object) -> bytes:
    model = io.BytesIO()
    lines = iter(PARAGRAPH.splitlines() * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, minloglevel=2, **{**BASE, **options}
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models() -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_bytes(train(**options)) for name, options in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_tokens_and_bytes_are_those_of_the_library(name, text, models):
    tokenizer = models[name]
    encoded = tokenizer.encode_text(text)
    assert not tokenizer.lossless
    found = surfaces(tokenizer, text)
    assert encoded.ids.tolist() == [piece_id for piece_id, _ in found]
    assert encoded.token_bytes.tolist() == [len(surface.encode()) for _, surface in found]
    assert int(encoded.token_bytes.sum()) + encoded.uncredited_bytes == len(text.encode())


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_the_byte_table_counts_the_text_that_comes_back(name, text, models):
    tokenizer = models[name]
    ids = tokenizer.encode(text)
    if UNKNOWN_ID in ids or not len(ids):
        return  # comes back as another character
    counted = tokenizer.byte_table().token_bytes(np.array([BOS_ID, *ids[:-1]]), ids)
    returned = tokenizer.decode(ids)
    uncounted = int(name == "identity" and returned.startswith(" "))  # by the rule, a space after BOS is nobody's
    assert int(counted.sum()) == len(returned.encode()) - uncounted


def with_unused(serialized: bytes, piece: str) -> bytes:
    """A model in which that normal piece is of the type UNUSED."""
    entry = b"\x0a" + bytes([len(piece.encode())]) + piece.encode() + b"\x15"  # text, then the score of 4 bytes
    at = serialized.index(entry)
    end = at + len(entry) + 4
    changed = serialized[at:end] + b"\x18\x05"
    assert serialized[at - 2 : at] == b"\x0a" + bytes([end - at])
    return serialized[: at - 1] + bytes([len(changed)]) + changed + serialized[end:]


def test_unused_pieces_count_nothing_and_the_text_is_spelled_with_others():
    serialized = train(add_dummy_prefix=False)
    plain, changed = Tokenizer.from_bytes(serialized), Tokenizer.from_bytes(with_unused(serialized, "▁the"))
    piece_id = plain.model.pieces.index("▁the")
    assert changed.model.types[piece_id] == PieceType.UNUSED
    assert piece_id in plain.encode(PARAGRAPH)
    ids = changed.encode(PARAGRAPH)
    assert piece_id not in ids
    assert ids.tolist() == [found for found, _ in surfaces(changed, PARAGRAPH)]
    table = changed.byte_table()
    assert table.is_boundary[piece_id]
    assert table.token_bytes(np.array([300]), np.array([piece_id])).tolist() == [0]
    counted = table.token_bytes(np.array([BOS_ID, *ids[:-1]]), ids)
    assert int(counted.sum()) == len(changed.decode(ids).encode())


def test_only_models_that_cannot_tell_are_cut(models):
    assert [name for name, tokenizer in models.items() if not tokenizer.boundaries] == [
        "unigram",
        "white_space_as_suffix",
        "pieces_across_spaces",
    ]
    assert models["user_defined_with_space"].boundaries == "\n\t\r"
    assert models["user_defined_with_line_feed"].boundaries == " \t\r"


def test_identity_without_the_escape_is_not_called_lossless(models):
    tokenizer = models["identity"]
    assert tokenizer.decode(tokenizer.encode("a  b\n")) == "a  b\n"
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"
    assert tokenizer.encode_text("a▁b").changed_bytes == 3


def test_a_model_whose_piece_1_is_text_is_refused():
    with pytest.raises(InputError, match="piece 1 must be the control piece that begins a document"):
        Tokenizer.from_bytes(train(pad_id=-1, bos_id=-1, eos_id=-1, unk_id=0))


def test_more_pieces_than_16_bits_are_refused():
    serialized = train()
    piece = b"\x0a\x09\x0a\x02ab\x15\x00\x00\x00\x00"
    with pytest.raises(InputError, match="token shards hold 16-bit ids, at most 65535"):
        Tokenizer.from_bytes(serialized + piece * 66_000)


def without_space_piece() -> Tokenizer:
    """A byte-fallback model in which the plain space piece is renamed, so that a lone space is spelled in bytes."""
    serialized = train(add_dummy_prefix=False)
    plain = b"\x0a\x03" + "▁".encode()
    assert serialized.count(plain) == 1
    return Tokenizer.from_bytes(serialized.replace(plain, b"\x0a\x03" + "㊷".encode()))


def test_a_lone_space_spelled_in_bytes_counts_one_byte():
    tokenizer = without_space_piece()
    text = "x ½ ßx y"
    ids = tokenizer.encode(text)
    names = [tokenizer.model.pieces[piece_id] for piece_id in ids]
    assert names.count("<0x96>") >= 2
    table = tokenizer.byte_table()
    counted = table.token_bytes(np.array([BOS_ID, *ids[:-1]]), ids)
    assert int(counted.sum()) == len("x 1⁄2 ßx y".encode())  # the table counts normalized text
    assert tokenizer.encode_text(text).token_bytes.sum() == len(text.encode())
