"""Training SentencePiece BPE models: lossless ones by default, and ones with exactly the challenge's settings."""

import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from model.errors import InputError
from model.text import caseops, escape

NUM_RESERVED_PIECES = 4  # pad, BOS, EOS, unknown
NUM_BYTE_PIECES = 256
# SentencePiece drops training sentences above 4,192 bytes; ours are lines, cut where longer.
_MAX_SENTENCE_CHARACTERS = 1_000
_SENTENCE = re.compile(rf"[^\n]{{1,{_MAX_SENTENCE_CHARACTERS}}}(?=[ \n]|\Z)|[^\n]{{1,{_MAX_SENTENCE_CHARACTERS}}}")


def train_lossless(texts: Iterable[str], vocab_size: int, *, case_operators: bool = False) -> bytes:
    """Train a lossless BPE model (see `model.text.escape`); returns the serialized model.

    Identity normalization, byte fallback, no dummy prefix, all white space kept, digits split, the line feed a piece of
    its own. Ids: pad 0, BOS 1, EOS 2, unknown 3, the escape (with `case_operators` the four operators of CaseOps, on
    whose transform it is trained), the line feed, 256 byte pieces, then the rest. InputError when `vocab_size` is too
    small for the alphabet or too large for the text.
    """
    if case_operators:
        transformed = (caseops.encode(text, escape_marker=True) for text in texts)
    else:
        transformed = (escape.escape(text) for text in texts)
    return _train(
        (line for text in transformed for line in _SENTENCE.findall(text)),
        vocab_size,
        user_defined_symbols=[*(caseops.OPERATORS if case_operators else (escape.ESCAPE,)), "\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentencepiece_length=16,
        hard_vocab_limit=True,
    )


def train_challenge(texts: Iterable[str], vocab_size: int, *, case_operators: bool = False) -> bytes:
    """Train with exactly the settings of the challenge's tokenizers (methods.md 7.3); returns the serialized model.

    The normalizer (nmt_nfkc, white space collapsed) makes such a model lossy. Every document is one training sentence,
    NUL replaced by a space and the ends stripped; SentencePiece leaves out those longer than 4,192 bytes, and gives
    fewer pieces than asked for where the text is too short. `case_operators` trains on the CaseOps transform, with
    its operators as pieces 4 to 7.
    """
    stripped = (text.replace("\0", " ").strip() for text in texts)
    return _train(
        (caseops.encode(text) for text in stripped) if case_operators else stripped,
        vocab_size,
        user_defined_symbols=list(caseops.OPERATORS) if case_operators else [],
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
    )


def _train(sentences: Iterable[str], vocab_size: int, **settings: Any) -> bytes:
    smallest = NUM_RESERVED_PIECES + NUM_BYTE_PIECES + 32
    if not smallest <= vocab_size <= 65_535:
        raise InputError(f"tokenizer vocabulary {vocab_size}: accepted are {smallest} to 65535 pieces")
    model = io.BytesIO()
    nonempty = _nonempty(sentences)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=nonempty,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
            **settings,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"tokenizer training with {vocab_size} pieces failed: {' '.join(str(error).split())}"
        ) from None
    return model.getvalue()


def _nonempty(sentences: Iterable[str]) -> Iterator[str]:
    found = (sentence for sentence in sentences if sentence.strip())
    first = next(found, None)
    if first is None:  # checked before training: SentencePiece hides what its iterator raises
        raise InputError("tokenizer training: the text is empty")
    return itertools.chain((first,), found)
