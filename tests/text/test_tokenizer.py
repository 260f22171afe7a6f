import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.text import caseops
from model.text.tokenizer import BOS_ID, Tokenizer, train_lossless
from tests.text.conftest import PARAGRAPH
from tests.text.strategies import texts


def surfaces(tokenizer: Tokenizer, transformed: str) -> list[tuple[int, str]]:
    """(id, slice of the transformed text) of each token, by SentencePiece's own account of the uncut text."""
    processor = tokenizer._processor
    if hasattr(processor, "encode_as_proto"):  # sentencepiece 0.2.2 and later
        pieces = processor.encode_as_proto(transformed).pieces
    else:
        pieces = processor.encode_as_immutable_proto(transformed).pieces
    return [(piece.id, piece.surface) for piece in pieces]


def expected(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids and bytes by walking each token's slice with the CaseOps decoder's state (methods.md 7.5)."""
    ids, counts, escaped = [], [], False
    for piece_id, surface in surfaces(tokenizer, tokenizer.transform(text)):
        count = 0
        for char in surface:
            if escaped:
                count, escaped = count + 3, False
            elif tokenizer.is_caseops and char in caseops.OPERATORS:
                escaped = char == caseops.ESC
            else:
                count += len(char.encode())
        ids.append(piece_id)
        counts.append(count)
    return ids, counts


@settings(max_examples=300, deadline=None)
@given(text=texts)
@example(text="\x06 ab\x06 c \x06")
@example(text="\u200b \u200b")
@example(text="Where.\u00a0 Here.\u2003\n")
@example(text="a .\u0301 b")
def test_community_tokens_and_bytes_are_those_of_the_library(text, community, community_caseops):
    for tokenizer in (community, community_caseops):
        encoded = tokenizer.encode_text(text)
        ids, token_bytes = expected(tokenizer, text)
        assert encoded.ids.tolist() == ids
        assert encoded.token_bytes.tolist() == token_bytes
        assert encoded.text_bytes == len(text.encode())
        assert sum(token_bytes) + encoded.uncredited_bytes == encoded.text_bytes


@settings(max_examples=300, deadline=None)
@given(text=texts)
@example(text="▁ \ue004▁\ue004\ue0041\ue0040")
@example(text="\n\n  x\t\r\n")
def test_lossless_tokenizers_return_every_text(text, lossless, lossless_caseops):
    for tokenizer in (lossless, lossless_caseops):
        encoded = tokenizer.encode_text(text)
        assert tokenizer.decode(encoded.ids) == text
        assert int(encoded.token_bytes.sum()) == len(text.encode())
        assert (encoded.uncredited_bytes, encoded.changed_bytes) == (0, 0)
        assert encoded.ids.tolist() == list(tokenizer._processor.encode(tokenizer.transform(text)))
        if tokenizer is lossless_caseops:
            assert encoded.token_bytes.tolist() == expected(tokenizer, text)[1]


@settings(max_examples=200, deadline=None)
@given(text=texts)
@example(text="\ue004\ue004A\ue001▁\ue004")
def test_the_byte_table_of_a_lossless_tokenizer_adds_up_to_the_text(text, lossless, lossless_caseops):
    for tokenizer in (lossless, lossless_caseops):
        assert bytes_by_table(tokenizer, tokenizer.encode(text)) == len(text.encode())


@settings(max_examples=200, deadline=None)
@given(text=texts)
@example(text="\ue004\ue004A\ue001 NASA \ue004")
def test_the_byte_table_of_a_community_tokenizer_adds_up_to_the_text_that_comes_back(
    text, community, community_caseops
):
    ids = community.encode(text)
    assert bytes_by_table(community, ids) == len(community.decode(ids).encode())
    ids = community_caseops.encode(text)
    returned = community_caseops._processor.decode(ids.tolist())
    assert bytes_by_table(community_caseops, ids) == int(caseops.original_bytes(returned).sum())


@pytest.mark.parametrize(
    ("text", "returned"),
    [
        ("A\u0301rbol, L'E\u0301cole", "Árbol, L'École"),  # the accent is composed with the operator's letter
        ("don't\x06A", "don'tA"),  # the character that parted two words is deleted
        ("\ue001 NASA\u200bX", "\ue001 NASA X"),
    ],
)
def test_capitals_come_back_where_normalization_moved_their_operators(text, returned, community_caseops):
    assert community_caseops.decode(community_caseops.encode(text)) == returned


@settings(max_examples=200, deadline=None)
@given(text=texts, ids=st.lists(st.integers(0, 419), max_size=30))
@example(text="A\u0301", ids=[])
def test_decoding_never_fails(text, ids, community_caseops, lossless_caseops):
    community_caseops.decode(community_caseops.encode(text))
    community_caseops.decode(np.array(ids, np.int64))
    lossless_caseops.decode(np.array(ids, np.int64))


def bytes_by_table(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    previous = np.concatenate(([BOS_ID], ids[:-1])) if len(ids) else ids
    return int(tokenizer.byte_table().token_bytes(previous, ids).sum())


def test_case_operators_without_a_side_car_are_not_counted_as_text(community_caseops):
    ids, token_bytes = community_caseops.encode_with_bytes("iPhone NASA OpenAI A McDonald's \ue003")
    counted = community_caseops.byte_table().token_bytes(np.array([BOS_ID, *ids[:-1]]), ids)
    assert counted.sum() == token_bytes.sum()
    assert counted.tolist() == token_bytes.tolist()


def test_segments_met_before_give_the_same_tokens(community_caseops):
    text = "The tern, 12 miles off. The TERN\n\nwas \t gone ½ way.  "
    fresh = Tokenizer.from_bytes(community_caseops.serialized)
    assert fresh.boundaries == " \n\t\r"
    first = fresh.encode_text(text)
    again = fresh.encode_text(text)
    assert len(fresh._cache) > 5
    for field in ("ids", "token_bytes", "text_bytes", "uncredited_bytes", "changed_bytes"):
        assert np.array_equal(getattr(first, field), getattr(again, field)), field


@pytest.mark.parametrize(
    ("text", "changed_bytes"),
    [
        ("plain text, one line", 0),
        ("a\nb", 1),  # the line feed comes back as a space
        ("a  b", 1),  # of two spaces one is kept
        ("a \n b", 2),
        ("½", 2),
        ("x ﬁn y", 3),
        ("  edges\n", 3),
        ("e\u0301t", 3),
        ("a\x06b", 1),
    ],
)
def test_lossy_models_say_how_many_bytes_they_change(text, changed_bytes, community, community_caseops):
    assert not community.lossless
    assert not community_caseops.lossless
    assert community.encode_text(text).changed_bytes == changed_bytes
    assert community_caseops.encode_text(text).changed_bytes == changed_bytes
    assert (community.decode(community.encode(text)) == text) == (changed_bytes == 0)


@pytest.mark.parametrize(
    ("text", "token_bytes"),
    [  # methods.md B and B.1
        ("x\n\nbrown fox", [1, 7, 2, 2]),
        ("x½", [1, 0, 0, 0, 0, 2]),
        ("naïve 😀 ﬁ ½", [2, 0, 2, 2, 1, 0, 0, 0, 4, 1, 3, 1, 0, 0, 0, 0, 2]),
        ("\u200bab", [2]),
        ("ab\x06", [3]),
        ("ab \x06", [2]),
        (
            "iPhone NASA OpenAI A McDonald's",
            [1, 0, 5, 1, 0, 3, 1, 1, 0, 4, 0, 1, 0, 1, 1, 0, 1, 1, 0, 2, 0, 6, 1, 1],
        ),
        ("\ue001", [0, 3]),
    ],
)
def test_side_car_of_known_texts(text, token_bytes, community_caseops):
    assert community_caseops.encode_with_bytes(text)[1].tolist() == token_bytes


def test_side_car_sums_of_known_texts(community, community_caseops):
    cases = {"Hello world": (11, 11), "a  b": (3, 4), "word\r\nword": (9, 10), "trailing newline\n\n": (16, 16)}
    for text, (by_rule, by_side_car) in cases.items():
        ids = community.encode(text)
        assert community.byte_table().token_bytes(np.array([BOS_ID, *ids[:-1]]), ids).sum() == by_rule
        assert community_caseops.encode_with_bytes(text)[1].sum() == by_side_car


def test_caseops_vectors(caseops_vectors, community_caseops):
    assert caseops_vectors["tokenizer_sha256"] == community_caseops.sha256
    assert len(caseops_vectors["cases"]) == 25
    for case in caseops_vectors["cases"]:
        ids, token_bytes = community_caseops.encode_with_bytes(case["text"])
        assert ids.tolist() == case["ids"], case["name"]
        assert token_bytes.tolist() == case["piece_bytes"], case["name"]
        assert [community_caseops.model.pieces[piece_id] for piece_id in ids] == case["pieces"], case["name"]


def test_the_line_feed_and_the_escape_are_pieces_of_their_own(lossless):
    assert lossless.lossless
    assert not lossless.is_caseops
    assert lossless.model.pieces[:6] == ("<pad>", "<s>", "</s>", "<unk>", "\ue004", "\n")
    assert lossless.vocab_size == 420
    assert lossless.encode("a\n\nb").tolist().count(5) == 2


def test_decoding_skips_bos_and_replaces_broken_bytes(lossless):
    byte_e2 = lossless.model.pieces.index("<0xE2>")
    text = lossless.decode(np.array([BOS_ID, *lossless.encode("the"), byte_e2, BOS_ID]))
    assert text == "the\ufffd"


def test_training_is_deterministic_and_the_digest_is_the_files(tmp_path):
    texts_ = [PARAGRAPH * 3]
    first, second = train_lossless(texts_, 330), train_lossless(iter(texts_), 330)
    assert first == second
    path = tmp_path / "t.model"
    path.write_bytes(first)
    assert Tokenizer.load(path).sha256 == Tokenizer.from_bytes(first).sha256


def test_training_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="vocabulary 100: accepted are 292 to 65535"):
        train_lossless(["text"], 100)
    with pytest.raises(InputError, match="the text is empty"):
        train_lossless(["", " \n"], 400)
    with pytest.raises(InputError, match=r"training with 5000 pieces failed: .*too high"):
        train_lossless(["too few words for that"], 5000)


def test_a_pickled_tokenizer_encodes_alike(lossless):
    copy = pickle.loads(pickle.dumps(lossless))
    assert copy.encode("the tern").tolist() == lossless.encode("the tern").tolist()


def test_unpaired_surrogates_are_refused(lossless, community):
    for tokenizer in (lossless, community):
        with pytest.raises(InputError, match="unpaired surrogate at character 3"):
            tokenizer.encode("abc\ud800")


def test_a_token_of_more_bytes_than_a_side_car_holds_is_refused(community):
    text = "a" + " " * 70_000 + "b"
    assert community.encode_text(text).token_bytes.max() == 70_001
    with pytest.raises(InputError, match="one token stands for 70001 bytes"):
        community.encode_with_bytes(text)


@pytest.mark.parametrize("content", [b"", b"text", bytes(100), b"\x0a\x05ab", b"\xff" * 30])
def test_files_that_are_no_model_are_refused_by_name(content, tmp_path):
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.model: not a SentencePiece model"):
        Tokenizer.load(path)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.model: cannot read the tokenizer \(No such file"):
        Tokenizer.load(tmp_path / "none.model")
