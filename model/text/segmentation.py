"""Cutting text where a BPE tokenizer cannot tell the difference, so that each distinct piece of text is encoded once.

SentencePiece BPE merges neighbours by rank alone. If no piece of the vocabulary holds a space after a non-space, no
merge crosses the place before a space, and the encoding of a text is the concatenation of the encodings of its
segments (a run of white space and what follows). Text repeats itself: most segments have been seen before and cost
one dictionary look-up.

The cut must also be invisible to the normalizer, whose rules replace character sequences: a cut is made only after a
printable ASCII character, and only if no rule's left side holds a printable ASCII character followed by white space.
`boundary_characters` checks each condition on the model at hand; where one fails it drops the character, and with
none left texts are encoded whole.
"""

import re
from collections.abc import Callable

import numpy as np

from model.text.escape import SPACE_MARKER
from model.text.sentencepiece_model import PieceType, SentencePieceModel

_CANDIDATES = " \n\t\r"
_TEXT_TYPES = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


def boundary_characters(model: SentencePieceModel, normalize: Callable[[str], str]) -> str:
    """The white-space characters before which text may be cut, possibly none; `normalize` is the model's normalizer."""
    if not model.is_bpe or model.treat_whitespace_as_suffix or not model.escape_whitespaces:
        return ""
    image_of = {}
    for char in _CANDIDATES:
        between = normalize(f".{char}.").removeprefix(SPACE_MARKER)  # a dummy prefix, where the model adds one
        if len(between) == 3 and between[1] in (SPACE_MARKER, char) and not _rule_ends_in(model.charsmap, char):
            image_of[char] = between[1]
    texts = [piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in _TEXT_TYPES]
    while image_of:
        spaces = {*image_of, *image_of.values()}  # user-defined pieces match text as it was before normalization
        crossed = {
            piece[at]
            for piece in texts
            for at in range(1, len(piece))
            if piece[at] in spaces and piece[at - 1] not in spaces
        }
        if not crossed:
            break
        image_of = {char: image for char, image in image_of.items() if crossed.isdisjoint((char, image))}
    return "".join(image_of)


def segment_pattern(boundaries: str) -> re.Pattern[str]:
    """A pattern whose matches, joined, are the text: white space, then text up to a printable ASCII character before
    white space.
    """
    if not boundaries:
        return re.compile(r"(?s).+")
    space = f"[{re.escape(boundaries)}]"
    other = f"[^{re.escape(boundaries)}]"
    return re.compile(f"{space}*{other}+(?:(?<![!-~]){space}+{other}*)*|{space}+")


def _rule_ends_in(charsmap: bytes, char: str) -> bool:
    """Whether some normalization rule has a printable ASCII character followed by `char` on its left side.

    The rules are a double-array trie (darts-clone): a unit holds the label of the edge that leads to it, and an
    offset to the base of its children; the child for byte b lies at base xor b. Every child has its own base, so no
    walk is needed: look at each unit reached by a printable character for a child labelled `char`. Units that are not
    in use can only make the answer a needless yes.
    """
    if not charsmap:
        return False
    blob_bytes = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap[4 : 4 + blob_bytes], "<u4").astype(np.int64)
    labels = units & 0x800000FF  # a leaf has the top bit set and so never equals a byte
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    parents = np.flatnonzero((labels >= 0x21) & (labels <= 0x7E))
    children = parents ^ offsets[parents] ^ ord(char)
    children = children[children < len(units)]
    return bool(np.any(labels[children] == ord(char)))
