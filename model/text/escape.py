"""The reversible escape that lets a SentencePiece model with identity normalization carry any text.

SentencePiece writes every space as U+2581, so a literal U+2581 in the text would come back as a space. We rewrite it
before encoding, with U+E004 (the escape operator of CaseOps, a private-use character) as escape:

    U+2581 -> U+E004 '1'        U+E004 -> U+E004 '0'

Both images are 4 UTF-8 bytes for 3 bytes of text. The escape piece is therefore counted as 2 bytes and the digit as 1,
so a plain per-piece table counts the original bytes exactly (`model.text.byte_table`).
"""

import re

SPACE_MARKER = "\u2581"
ESCAPE = "\ue004"
ESCAPE_PIECE_BYTES = 2
MARKER_CODE = "1"
ESCAPE_CODE = "0"

_NEEDS_ESCAPE = re.compile(f"[{SPACE_MARKER}{ESCAPE}]")
_ESCAPED = re.compile(f"{ESCAPE}([{MARKER_CODE}{ESCAPE_CODE}])")
_CODE_OF = {SPACE_MARKER: ESCAPE + MARKER_CODE, ESCAPE: ESCAPE + ESCAPE_CODE}
_CHARACTER_OF = {MARKER_CODE: SPACE_MARKER, ESCAPE_CODE: ESCAPE}


def escape(text: str) -> str:
    """Rewrite every U+2581 and U+E004 of `text`; the result holds no U+2581."""
    if SPACE_MARKER not in text and ESCAPE not in text:
        return text
    return _NEEDS_ESCAPE.sub(lambda match: _CODE_OF[match.group()], text)


def unescape(text: str) -> str:
    """Undo `escape`. An escape that `escape` never writes (a model may generate one) stands for itself."""
    if ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda match: _CHARACTER_OF[match.group(1)], text)
