"""Byte counts per token from the vocabulary alone: the rule that the leaderboard's entries use for plain
SentencePiece models.

For a target y after x (methods.md 7.6): control, unknown and unused pieces count 0 bytes and are boundaries; a byte
piece counts 1; a piece that starts with the space marker counts its remaining UTF-8 bytes, plus 1 unless x is a
boundary; any other piece its UTF-8 bytes. Shards that came without a byte sidecar are scored with it, and their
ledger is then called unproved.

By that rule the operators of a CaseOps model would be text of 3 bytes each. They stand for none of the original's, so
here they count 0, and what follows an escape the 3 bytes of the character that it makes literal.
"""

from dataclasses import dataclass

import numpy as np

from model.text.caseops import OPERATORS
from model.text.escape import ESCAPE, ESCAPE_PIECE_BYTES, SPACE_MARKER
from model.text.sentencepiece_model import PieceType, SentencePieceModel

ESCAPED_BYTES = 3  # UTF-8 bytes of each character that an escape makes literal
_BOUNDARY_TYPES = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.UNUSED)


@dataclass(frozen=True)
class ByteTable:
    """Arrays over the vocabulary, V entries each."""

    base_bytes: np.ndarray  # [V] int32: bytes without the conditional leading space
    has_leading_space: np.ndarray  # [V] bool: one more byte unless the previous token is a boundary
    is_boundary: np.ndarray  # [V] bool
    # A model without a plain space piece spells a lone space as the marker's three byte pieces; their ids, in order.
    spelled_marker: tuple[int, int, int] | None = None
    caseops_escape: int | None = None  # a CaseOps model's escape piece; the token after it stands for 3 bytes

    def token_bytes(self, previous_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Bytes of each token of `ids` [T], given the token before each, `previous_ids` [T]; int32 [T].

        Both must be runs of one token stream (`previous_ids` is `ids` shifted by one) where `spelled_marker` or
        `caseops_escape` is set.
        """
        leading = self.has_leading_space[ids] & ~self.is_boundary[previous_ids]
        counts: np.ndarray = self.base_bytes[ids] + leading
        if self.spelled_marker is not None and len(ids) >= 2:
            first, second, third = self.spelled_marker
            stream = np.concatenate((np.asarray(previous_ids[:1]), np.asarray(ids)))
            ends = np.flatnonzero((stream[:-2] == first) & (stream[1:-1] == second) & (stream[2:] == third)) + 1
            counts[ends - 1] = 0
            counts[ends[ends >= 2] - 2] = 0
        if self.caseops_escape is not None and len(ids):
            literal = -1  # the place of an escape that is itself made literal
            for place in np.flatnonzero(np.append(previous_ids[:1], ids[:-1]) == self.caseops_escape).tolist():
                if place != literal:
                    counts[place] = ESCAPED_BYTES
                    literal = place + 1
        return counts.astype(np.int32)


def build(model: SentencePieceModel, *, lossless: bool, case_operators: bool = False) -> ByteTable:
    """The table of a model. A lossless model keeps its leading spaces, so they count unconditionally; one with
    `case_operators` is given CaseOps text.
    """
    num_pieces = len(model.pieces)
    base_bytes = np.zeros(num_pieces, np.int32)
    has_leading_space = np.zeros(num_pieces, bool)
    is_boundary = np.zeros(num_pieces, bool)
    for piece_id, (piece, piece_type) in enumerate(zip(model.pieces, model.types, strict=True)):
        if piece_type in _BOUNDARY_TYPES:
            is_boundary[piece_id] = True
        elif piece_type == PieceType.BYTE:
            base_bytes[piece_id] = 1
        elif case_operators and piece in OPERATORS:
            base_bytes[piece_id] = 0
        elif lossless and piece == ESCAPE:
            base_bytes[piece_id] = ESCAPE_PIECE_BYTES
        else:
            leading = piece.startswith(SPACE_MARKER) and not lossless
            has_leading_space[piece_id] = leading
            # A marker further inside stands for a space too: text reaches pieces with its own U+2581 replaced or
            # escaped.
            base_bytes[piece_id] = len(piece.replace(SPACE_MARKER, " ").encode()) - leading
    caseops_escape = model.pieces.index(ESCAPE) if case_operators else None
    return ByteTable(base_bytes, has_leading_space, is_boundary, _spelled_marker(model), caseops_escape)


def _spelled_marker(model: SentencePieceModel) -> tuple[int, int, int] | None:
    if not model.byte_fallback or SPACE_MARKER in model.pieces:
        return None
    ids = {piece: piece_id for piece_id, piece in enumerate(model.pieces)}
    first, second, third = (ids[f"<0x{byte:02X}>"] for byte in SPACE_MARKER.encode())
    return first, second, third
