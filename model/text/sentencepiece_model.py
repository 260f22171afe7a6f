"""What a SentencePiece .model file says about itself: pieces, their types, and the normalizer's settings.

The sentencepiece package hides the piece types and the normalizer from Python, and its generated protobuf module
depends on the protobuf runtime that happens to be installed. The file is a small protobuf message
(sentencepiece_model.proto), so the dozen fields needed are read from the wire format here.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from model.errors import InputError


class PieceType(enum.IntEnum):
    """`ModelProto.SentencePiece.Type` of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """The fields of a .model file that decide how text becomes tokens (defaults as in sentencepiece_model.proto)."""

    pieces: tuple[str, ...]
    types: tuple[PieceType, ...]
    model_type: int = 1  # 1 unigram, 2 BPE, 3 word, 4 char
    byte_fallback: bool = False
    treat_whitespace_as_suffix: bool = False
    charsmap: bytes = b""  # compiled normalization rules; empty means identity
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    @property
    def is_bpe(self) -> bool:
        return self.model_type == 2


def parse(serialized: bytes, name: str = "tokenizer") -> SentencePieceModel:
    """Read a serialized ModelProto. Raises InputError, naming `name`, when it is not one."""
    pieces: list[str] = []
    types: list[PieceType] = []
    settings: dict[str, int | bytes] = {}
    try:
        for field, value in _fields(serialized):
            if field == 1:
                piece, piece_type = _parse_piece(_message(value))
                pieces.append(piece)
                types.append(piece_type)
            elif field == 2:
                settings |= _settings(_message(value), _TRAINER_FIELDS)
            elif field == 3:
                settings |= _settings(_message(value), _NORMALIZER_FIELDS)
    except (ValueError, IndexError) as error:
        raise InputError(f"{name}: not a SentencePiece model ({error})") from None
    if not pieces:
        raise InputError(f"{name}: not a SentencePiece model (it holds no pieces)")
    flags = {key: value if key in ("charsmap", "model_type") else bool(value) for key, value in settings.items()}
    return SentencePieceModel(tuple(pieces), tuple(types), **flags)  # type: ignore[arg-type]


_TRAINER_FIELDS = {3: "model_type", 24: "treat_whitespace_as_suffix", 35: "byte_fallback"}
_NORMALIZER_FIELDS = {2: "charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}


def _parse_piece(message: bytes) -> tuple[str, PieceType]:
    text, piece_type = "", PieceType.NORMAL
    for field, value in _fields(message):
        if field == 1:
            text = _message(value).decode()
        elif field == 3:
            piece_type = PieceType(value if isinstance(value, int) else 0)
    return text, piece_type


def _settings(message: bytes, names: dict[int, str]) -> dict[str, int | bytes]:
    return {names[field]: value for field, value in _fields(message) if field in names}


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should stand")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field on the wire; fixed-width fields come as their bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield field, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if position + length > len(message):
            raise ValueError("cut short")
        yield field, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint longer than 10 bytes")
