"""CaseOps: a reversible rewriting of ASCII capitals as operators in front of lower-case words
(`lossless_caps_caseops_v1`).

Four private-use characters are the operators. A word is a maximal run of ASCII letters (methods.md 7.5):

    all lower case                    -> itself
    two or more letters, all capitals -> ALLCAPS word
    capital, then only lower case     -> TITLE word          (at least two letters)
    anything else                     -> (TITLE if the first is a capital) word, each later capital as CAPNEXT letter
    an operator in the text itself    -> ESC operator

`encode` followed by `decode` is the identity on every text; what a tokenizer with a lossy normalizer does afterwards
is not. Our lossless CaseOps tokenizers also escape a literal U+2581 (`escape_marker=True`), as ESC '1': see
`model.text.escape`.
"""

import re

import numpy as np

from model.text.escape import ESCAPE, MARKER_CODE, SPACE_MARKER

TITLE = "\ue001"
ALLCAPS = "\ue002"
CAPNEXT = "\ue003"
ESC = ESCAPE
OPERATORS = (TITLE, ALLCAPS, CAPNEXT, ESC)

_CASED_OR_OPERATOR = re.compile(r"[a-z]*[A-Z][A-Za-z]*|[\ue001-\ue004]")
_CASED_OPERATOR_OR_MARKER = re.compile(r"[a-z]*[A-Z][A-Za-z]*|[\ue001-\ue004\u2581]")
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def encode(text: str, *, escape_marker: bool = False) -> str:
    """Transform `text`; the result holds no ASCII capital."""
    pattern = _CASED_OPERATOR_OR_MARKER if escape_marker else _CASED_OR_OPERATOR
    return pattern.sub(_rewrite, text)


def _rewrite(match: re.Match[str]) -> str:
    word = match.group()
    if word in OPERATORS:
        return ESC + word
    if word == SPACE_MARKER:
        return ESC + MARKER_CODE
    lower = word.lower()
    if len(word) >= 2 and word.isupper():
        return ALLCAPS + lower
    rest = word[1:]
    if rest == lower[1:]:  # the first letter is the only capital
        return TITLE + lower
    first = TITLE + lower[0] if word[0] != lower[0] else lower[0]
    return first + "".join(low if low == char else CAPNEXT + low for char, low in zip(rest, lower[1:], strict=True))


def decode(transformed: str, *, escape_marker: bool = False, strict: bool = True) -> str:
    """Undo `encode`. Raises ValueError where the operators are not as the encoder could have placed them.

    TITLE and ALLCAPS stand only outside a word and directly before a letter, CAPNEXT directly before a letter; ESC
    makes the next character literal.

    `strict=False` is for text that a normalizer or a model has been at, and never raises: an operator acts on the one
    character after it, whatever that is (a letter that was composed with its accent), and one before another operator
    or the end on none.
    """
    out: list[str] = []
    pending = ""  # the operator that waits for its letter
    escaped = inside_word = all_caps = False
    for position, char in enumerate(transformed):
        if escaped:
            escaped = False
            out.append(SPACE_MARKER if escape_marker and char == MARKER_CODE else char)
            if char not in _LETTERS:
                inside_word = all_caps = False
        elif char in _LETTERS:
            if pending == ALLCAPS:
                all_caps = True
            out.append(char.upper() if pending or all_caps else char)
            pending, inside_word = "", True
        elif pending and strict:
            raise ValueError(
                f"CaseOps: operator U+{ord(pending):04X} before position {position} has no letter to act on"
            )
        elif char == ESC:
            escaped, pending = True, ""
        elif char == CAPNEXT:
            pending = char
        elif char in (TITLE, ALLCAPS):
            if inside_word and strict:
                raise ValueError(f"CaseOps: operator U+{ord(char):04X} at position {position} stands inside a word")
            pending, inside_word, all_caps = char, False, False
        else:
            out.append(char.upper() if pending else char)
            pending, inside_word, all_caps = "", False, False
    if (pending or escaped) and strict:
        raise ValueError(f"CaseOps: the text ends with a dangling operator U+{ord(pending or ESC):04X}")
    return "".join(out)


def original_bytes(transformed: str) -> np.ndarray:
    """UTF-8 bytes of the original text that each character of `encode`'s result stands for; int64 [len(transformed)].

    Operators count 0, an escaped character the 3 bytes of what it stands for, anything else its own length. The
    operators before a letter need no state here: a letter is one byte in either case.
    """
    points = code_points(transformed)
    counts = utf8_lengths(points)
    if ESC in transformed:
        position = transformed.find(ESC)
        while position >= 0:
            counts[position] = 0
            counts[position + 1 : position + 2] = 3
            position = transformed.find(ESC, position + 2)
        escaped = np.zeros(len(points), bool)
        escaped[1:] = (counts[1:] == 3) & (counts[:-1] == 0)
    else:
        escaped = np.zeros(len(points), bool)
    operators = (points >= ord(TITLE)) & (points <= ord(CAPNEXT)) & ~escaped
    counts[operators] = 0
    return counts


def code_points(text: str) -> np.ndarray:
    """The characters of `text` as uint32 [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def utf8_lengths(points: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of each code point, int64, same shape."""
    return 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
