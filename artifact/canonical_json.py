"""The one JSON text of a configuration (proto/FORMAT.md section 4).

No white space, keys in ascending order of code points and unique, the shortest escapes, an object at the top. Numbers
keep their spelling: writers give integers without a fraction and other numbers as the shortest decimal that reads back
as the same binary64 value; readers check the grammar and that the value is finite.
"""

import json
import math
import re
from typing import Any, Final

from artifact.errors import ArtifactError, ErrorCode
from artifact.limits import MAX_CONFIGURATION_BYTES, MAX_CONFIGURATION_DEPTH

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]*')
_MAX_NUMBER_CHARACTERS: Final = 40
_SHORT_ESCAPES: Final = {'"': '"', "\\": "\\", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS: Final[tuple[tuple[str, object], ...]] = (("true", True), ("false", False), ("null", None))


def encode(value: dict[str, Any]) -> bytes:
    """Canonical bytes of a JSON object. Raises ArtifactError(CONTENT) for what does not fit JSON or the limits."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode()
        decode(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(ErrorCode.CONTENT, f"configuration is not JSON: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(ErrorCode.CONTENT, str(error)) from error
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Parse canonical bytes. Raises ArtifactError(CONFIGURATION) for anything else."""
    if len(data) > MAX_CONFIGURATION_BYTES:
        raise _error(f"is {len(data)} bytes long, more than {MAX_CONFIGURATION_BYTES}")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _error("is not UTF-8") from None
    if not text.startswith("{"):
        raise _error("is not a JSON object")
    value, end = _value(text, 0, 0)
    if end != len(text):
        raise _error(f"has text after its end, at character {end}")
    assert isinstance(value, dict)
    return value


def _error(what: str) -> ArtifactError:
    return ArtifactError(ErrorCode.CONFIGURATION, f"the configuration {what}")


def _value(text: str, position: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_CONFIGURATION_DEPTH:
        raise _error(f"is nested deeper than {MAX_CONFIGURATION_DEPTH}")
    first = text[position : position + 1]
    if first == "{":
        return _object(text, position + 1, depth)
    if first == "[":
        return _array(text, position + 1, depth)
    if first == '"':
        return _string(text, position + 1)
    for word, value in _WORDS:
        if text.startswith(word, position):
            return value, position + len(word)
    return _number(text, position)


def _object(text: str, position: int, depth: int) -> tuple[dict[str, Any], int]:
    result: dict[str, Any] = {}
    previous: str | None = None
    if text.startswith("}", position):
        return result, position + 1
    while True:
        if not text.startswith('"', position):
            raise _error(f"lacks a key at character {position}")
        key, position = _string(text, position + 1)
        if previous is not None and key <= previous:
            raise _error(f"has the key {key!r} out of order or twice")
        previous = key
        if not text.startswith(":", position):
            raise _error(f"lacks a colon at character {position}")
        result[key], position = _value(text, position + 1, depth + 1)
        if text.startswith("}", position):
            return result, position + 1
        if not text.startswith(",", position):
            raise _error(f"lacks a comma or brace at character {position}")
        position += 1


def _array(text: str, position: int, depth: int) -> tuple[list[Any], int]:
    result: list[Any] = []
    if text.startswith("]", position):
        return result, position + 1
    while True:
        value, position = _value(text, position, depth + 1)
        result.append(value)
        if text.startswith("]", position):
            return result, position + 1
        if not text.startswith(",", position):
            raise _error(f"lacks a comma or bracket at character {position}")
        position += 1


def _string(text: str, position: int) -> tuple[str, int]:
    pieces: list[str] = []
    while True:
        match = _PLAIN.match(text, position)
        assert match is not None
        pieces.append(match.group())
        position = match.end()
        if text.startswith('"', position):
            return "".join(pieces), position + 1
        if not text.startswith("\\", position):
            raise _error(f"has an open string or a control character at character {position}")
        short = _SHORT_ESCAPES.get(text[position + 1 : position + 2])
        if short is not None:
            pieces.append(short)
            position += 2
            continue
        digits = text[position + 2 : position + 6]
        # Only control characters without a short escape are written \u00xx, in lower case.
        if text[position + 1 : position + 2] != "u" or not re.fullmatch(r"00[01][0-9a-f]", digits):
            raise _error(f"has a needless or bad escape at character {position}")
        character = chr(int(digits, 16))
        if character in _SHORT_ESCAPES.values():
            raise _error(f"has a needless or bad escape at character {position}")
        pieces.append(character)
        position += 6


def _number(text: str, position: int) -> tuple[int | float, int]:
    match = _NUMBER.match(text, position)
    if match is None or len(match.group()) > _MAX_NUMBER_CHARACTERS:
        raise _error(f"has no value, or too long a number, at character {position}")
    if match.group(1) is None and match.group(2) is None:
        return int(match.group()), match.end()
    value = float(match.group())
    if not math.isfinite(value):
        raise _error(f"has a number out of range at character {position}")
    return value, match.end()
