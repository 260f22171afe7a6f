"""SentencePiece tokenizers with exact byte accounting.

Four kinds of model load here, told apart by what the model file says of itself:

- *lossless*: identity normalization, byte fallback and the escape piece of `model.text.escape`; `decode(encode(text))
  == text`;
- *lossless CaseOps*: the same after the transform of `model.text.caseops`;
- *CaseOps* with the community's normalization, and any other SentencePiece model: lossy, and said to be.

Every token stands for a slice of the original text, and `encode_with_bytes` counts that slice's UTF-8 bytes
(methods.md 7.5, "byte side-car"): where one character becomes several tokens the last one takes all its bytes, white
space that normalization collapses belongs to the token that it stands before, and white space stripped from a
document's ends belongs to nobody.
"""

import hashlib
import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from model.errors import InputError
from model.text import byte_table, caseops, escape, segmentation, sentencepiece_model
from model.text.sentencepiece_model import PieceType, SentencePieceModel
from model.text.tokenizer_training import train_lossless

__all__ = ["BOS_ID", "EncodedText", "Tokenizer", "train_lossless"]

BOS_ID = 1
MAX_VOCAB_SIZE = 65_535
MAX_TOKEN_BYTES = 65_535  # a side-car entry is a uint16
_SEPARATOR = "\ud800"  # an unpaired surrogate: in no text, and the transforms leave it alone
_MAX_CACHED_SEGMENTS = 400_000


@dataclass(frozen=True)
class EncodedText:
    """One text (a document without its BOS) as tokens. T tokens."""

    ids: np.ndarray  # [T] uint16
    token_bytes: np.ndarray  # [T] uint32: original UTF-8 bytes each token stands for
    text_bytes: int  # UTF-8 bytes of the text
    uncredited_bytes: int  # bytes that normalization stripped from the ends; text_bytes - token_bytes.sum()
    changed_bytes: int  # bytes that decode(ids) does not give back, the uncredited ones included


class Tokenizer:
    """A SentencePiece model. Pickles as its serialized bytes, so it can be sent to worker processes."""

    def __init__(self, serialized: bytes, name: str = "tokenizer") -> None:
        self.serialized = serialized
        self.sha256 = hashlib.sha256(serialized).hexdigest()
        self.model: SentencePieceModel = sentencepiece_model.parse(serialized, name)
        self.vocab_size = len(self.model.pieces)
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise InputError(
                f"{name}: {self.vocab_size} pieces; token shards hold 16-bit ids, at most {MAX_VOCAB_SIZE}"
            )
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(serialized)
        except (RuntimeError, OSError, TypeError) as error:
            raise InputError(f"{name}: not a SentencePiece model ({_one_line(error)})") from None
        if self.vocab_size <= BOS_ID or self.model.types[BOS_ID] != PieceType.CONTROL:
            raise InputError(f"{name}: piece {BOS_ID} must be the control piece that begins a document (BOS)")
        special = {piece for piece, kind in zip(self.model.pieces, self.model.types, strict=True) if kind == 4}
        self.is_caseops = special.issuperset(caseops.OPERATORS)
        self.lossless: bool = (
            not self.model.charsmap
            and self.model.byte_fallback
            and self.model.escape_whitespaces
            and not self.model.add_dummy_prefix
            and not self.model.remove_extra_whitespaces
            and escape.ESCAPE in special
        )
        self._cache: dict[str, bytes] = {}  # records of the inner segments met so far

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a .model file. InputError if it is missing or is no SentencePiece model."""
        try:
            serialized = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot read the tokenizer ({error.strerror})") from None
        return cls(serialized, str(path))

    @classmethod
    def from_bytes(cls, serialized: bytes) -> "Tokenizer":
        return cls(serialized)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.serialized,)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of `text` without BOS, uint16 [T]."""
        return self.encode_text(text).ids

    def encode_with_bytes(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(tokens uint16 [T], original UTF-8 bytes of each uint16 [T]). InputError if a token stands for more than
        65,535 bytes.
        """
        encoded = self.encode_text(text)
        if len(encoded.token_bytes) and encoded.token_bytes.max() > MAX_TOKEN_BYTES:
            raise InputError(
                f"one token stands for {encoded.token_bytes.max()} bytes of text; an entry holds {MAX_TOKEN_BYTES}"
            )
        return encoded.ids, encoded.token_bytes.astype(np.uint16)

    def encode_text(self, text: str) -> EncodedText:
        """Tokens of `text` with the account of its bytes. InputError if `text` holds an unpaired surrogate."""
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds an unpaired surrogate at character {error.start}") from None
        if len(self._cache) > _MAX_CACHED_SEGMENTS:
            self._cache.clear()
        segments = self._segment_pattern.findall(text)
        if "".join(segments) != text:
            raise AssertionError("the segments of a text are not the text")
        records, uncredited_bytes = self._encode_segments(segments)
        ids = records[:, 0].astype(np.uint16)
        token_bytes = records[:, 1].copy()
        changed_bytes = int(records[:, 2].sum()) + uncredited_bytes
        return EncodedText(ids, token_bytes, len(utf8), uncredited_bytes, changed_bytes)

    def decode(self, ids: np.ndarray) -> str:
        """The text of `ids`; control tokens give nothing, byte pieces that are no UTF-8 give U+FFFD, and case operators
        out of place what they can.
        """
        if not self.lossless:
            text: str = self._processor.decode(np.asarray(ids).tolist())
            return caseops.decode(text, strict=False) if self.is_caseops else text
        text = self._bytes_of(np.asarray(ids)).decode("utf-8", "replace")
        return caseops.decode(text, escape_marker=True, strict=False) if self.is_caseops else escape.unescape(text)

    def byte_table(self) -> byte_table.ByteTable:
        """Byte counts from the vocabulary alone (see `model.text.byte_table`)."""
        return byte_table.build(self.model, lossless=self.lossless, case_operators=self.is_caseops)

    def transform(self, text: str) -> str:
        """What SentencePiece is given for `text`."""
        if self.is_caseops:
            return caseops.encode(text, escape_marker=self.lossless)
        return escape.escape(text) if self.lossless else text

    @cached_property
    def boundaries(self) -> str:
        """White-space characters before which text is cut into independently encoded segments; "" if none is safe."""
        return segmentation.boundary_characters(self.model, lambda text: self._normalize(text)[0])

    @cached_property
    def _segment_pattern(self) -> re.Pattern[str]:
        return segmentation.segment_pattern(self.boundaries)

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        """UTF-8 bytes of each piece in normalized text, spaces as U+2581; byte pieces are one byte, control pieces
        none.
        """
        return [
            bytes([int(piece[3:5], 16)])
            if kind == PieceType.BYTE
            else b""
            if kind in (PieceType.CONTROL, PieceType.UNKNOWN)
            else piece.encode()
            for piece, kind in zip(self.model.pieces, self.model.types, strict=True)
        ]

    @cached_property
    def _piece_lengths(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._piece_bytes], np.int64)

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        """Transformed text that a lossless model's `ids` spell."""
        return b"".join(map(self._piece_bytes.__getitem__, ids.tolist())).replace(escape.SPACE_MARKER.encode(), b" ")

    def _normalize(self, text: str) -> tuple[str, np.ndarray]:
        """(normalized text, for each of its characters and its end the position in `text` where it begins)."""
        if self.lossless:
            return text.replace(" ", escape.SPACE_MARKER), np.arange(len(text) + 1)
        normalized, origins = self._processor.normalize(text, with_offsets=True)
        return normalized, np.array(origins, np.int64)

    def _encode_segments(self, segments: list[str]) -> tuple[np.ndarray, int]:
        """Records (id, token bytes, changed bytes) [T, 3] uint32, and the uncredited bytes at the two ends.

        The first and the last segment and those never met before go through SentencePiece as one shorter text; it may
        be cut at the same places. The ends are not cached: what normalization does there, it does to no inner
        segment.
        """
        if not segments:
            return _records(b""), 0
        inner = segments[1:-1]
        found = list(map(self._cache.get, inner))
        holes = [at for at, records in enumerate(found) if records is None]
        missing = list(dict.fromkeys(inner[at] for at in holes))
        parts = [segments[0], *missing, segments[-1]] if len(segments) > 1 else segments
        if self.is_caseops or self.lossless:
            parts = self.transform(_SEPARATOR.join(parts)).split(_SEPARATOR)
        encoded, uncredited_bytes = self._encode_parts(parts)
        self._cache.update(zip(missing, encoded[1:-1], strict=False))
        for at in holes:
            found[at] = self._cache[inner[at]]
        last = encoded[-1] if len(segments) > 1 else b""
        return _records(b"".join((encoded[0], *found, last))), uncredited_bytes  # type: ignore[arg-type]  # no holes

    def _encode_parts(self, parts: list[str]) -> tuple[list[bytes], int]:
        """Packed records of each part of a transformed text, and the bytes that normalization stripped from the
        text's ends.
        """
        transformed = "".join(parts)
        ids = np.array(self._processor.encode(transformed), np.int64)
        if self.lossless and self._bytes_of(ids) != transformed.encode():
            raise AssertionError(f"a lossless tokenizer changed {transformed[:80]!r}")
        normalized, origins = self._normalize(transformed)
        character_starts = _starts(caseops.utf8_lengths(caseops.code_points(normalized)))  # in bytes of normalized text
        token_ends = np.cumsum(self._token_lengths(ids, transformed))
        if (token_ends[-1] if len(ids) else 0) != character_starts[-1]:
            raise AssertionError(f"the pieces of {transformed[:80]!r} do not cover its normalized form")
        # A token that ends inside a character (a byte piece) ends where that character begins: the last piece takes
        # it all.
        end_characters = np.searchsorted(character_starts, token_ends, side="right") - 1
        credit = _starts(self._original_bytes(transformed))
        token_credit = credit[np.concatenate((origins[:1], origins[end_characters]))]

        records = np.zeros((len(ids), 3), np.uint32)
        records[:, 0] = ids
        records[:, 1] = np.diff(token_credit)
        part_starts = _starts(np.array([len(part) for part in parts]))
        first_characters = np.searchsorted(origins[:-1], part_starts)
        first_tokens = np.searchsorted(token_ends, character_starts[first_characters], side="right")
        first_tokens[0], first_tokens[-1] = 0, len(ids)
        if not np.array_equal(
            _starts(np.diff(token_ends, prepend=0))[first_tokens[1:-1]], character_starts[first_characters[1:-1]]
        ):
            raise AssertionError(f"a token of {transformed[:80]!r} reaches over a cut")
        if not self.lossless:
            self._count_changes(records, first_tokens, part_starts, transformed, normalized, origins, credit)
        uncredited_bytes = int(credit[origins[0]] + credit[-1] - credit[origins[-1]])
        packed, width = records.tobytes(), records.strides[0]
        ends = (first_tokens * width).tolist()
        return [packed[start:end] for start, end in itertools.pairwise(ends)], uncredited_bytes

    def _count_changes(
        self,
        records: np.ndarray,
        first_tokens: np.ndarray,
        part_starts: np.ndarray,
        transformed: str,
        normalized: str,
        origins: np.ndarray,
        credit: np.ndarray,
    ) -> None:
        """Write the bytes that normalization changes, without those it strips from the ends, to each part's last
        token.
        """
        changed = np.diff(credit)
        changed[: origins[0]] = 0
        changed[origins[-1] :] = 0
        changed[_kept_characters(transformed, normalized, origins)] = 0
        totals = np.diff(_starts(changed)[part_starts])
        for part in np.flatnonzero(totals).tolist():
            records[first_tokens[part + 1] - 1, 2] = totals[part]

    def _token_lengths(self, ids: np.ndarray, transformed: str) -> np.ndarray:
        """Bytes of normalized text per token."""
        if self.model.byte_fallback:
            return np.take(self._piece_lengths, ids)
        pieces = self._processor.encode(transformed, out_type=str)  # an unknown piece is as long as what it replaces
        return np.array([len(piece.encode()) for piece in pieces], np.int64)

    def _original_bytes(self, transformed: str) -> np.ndarray:
        """Bytes of the original text per character of the transformed text, int64."""
        if self.is_caseops:
            return caseops.original_bytes(transformed)
        counts = caseops.utf8_lengths(caseops.code_points(transformed))
        if self.lossless and escape.ESCAPE in transformed:
            counts[caseops.code_points(transformed) == ord(escape.ESCAPE)] = escape.ESCAPE_PIECE_BYTES
        return counts


def _records(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.uint32).reshape(-1, 3)


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where each of consecutive spans begins, and the end of the last."""
    return np.concatenate(([0], np.cumsum(lengths)))


def _kept_characters(transformed: str, normalized: str, origins: np.ndarray) -> np.ndarray:
    """Positions of the characters that normalization leaves as they are, spaces written as U+2581 included."""
    source = caseops.code_points(transformed)
    result = caseops.code_points(normalized.replace(escape.SPACE_MARKER, " "))
    widths = np.diff(origins)
    single = np.flatnonzero(widths == 1)
    kept = origins[single[source[origins[single]] == result[single]]].tolist()
    for index in np.flatnonzero(widths > 1).tolist():  # a collapsed or composed run keeps at most one of its characters
        start, end = int(origins[index]), int(origins[index + 1])
        kept.extend((start + np.flatnonzero(source[start:end] == result[index])[:1]).tolist())
    return np.array(kept, np.int64)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
