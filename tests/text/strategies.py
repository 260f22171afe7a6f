"""Texts that break tokenizers."""

from hypothesis import strategies as st

# Spaces of all kinds, controls, ligatures, fractions, combining marks, digraphs, dotless i, sharp s, the operators
# and the space marker, emoji sequences, right-to-left marks, CRLF, digits and cased words.
PIECES = [
    *" \t\n\r\x00\x06\x7f\x0b\x0c\u00a0\u1680\u2003\u200b\u200d\u2028\u202f\u3000\ufeff\ufffd\ufffe",
    *"\u2581\ue000\ue001\ue002\ue003\ue004\ue005",
    *"ﬁ½ßẞıİǅǆéñ日本ا\u0301\u0308\u0327",
    *"aAbZ.,'01",
    "  ",
    "\r\n",
    "\n\n",
    "👩‍🚀",
    "🇫🇷",
    "e\u0301",
    "NASA",
    "iPhone",
    "The",
    "mcDONALD",
    "water",
    "off Cape Horn asked the",
    "saw it.\n",
    " the ",
    "don't",
    "<s>",
    "<0x41>",
    "<unk>",
]

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
hard_text = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
texts = st.one_of(hard_text, st.lists(st.one_of(hard_text, any_text), max_size=4).map(" ".join))
