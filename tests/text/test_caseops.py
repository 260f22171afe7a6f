import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.text import caseops
from tests.text.strategies import texts

T, A, N, E = caseops.OPERATORS


@pytest.mark.parametrize(
    ("text", "transformed"),
    [
        ("plain", "plain"),
        ("NASA", A + "nasa"),
        ("iPhone", f"i{N}phone"),
        ("OpenAI", f"{T}open{N}a{N}i"),
        ("A", T + "a"),
        ("McDonald's", f"{T}mc{N}donald's"),
        ("x1Y2ZZ", f"x1{T}y2{A}zz"),
        ("\ue001", E + "\ue001"),
        ("Éa", f"É{'a'}"),
        ("ABc", f"{T}a{N}bc"),
    ],
)
def test_known_words(text, transformed):
    assert caseops.encode(text) == transformed
    assert caseops.decode(transformed) == text


def test_vectors(caseops_vectors):
    for case in caseops_vectors["cases"]:
        assert caseops.encode(case["text"]) == case["transformed"], case["name"]
        assert caseops.decode(case["transformed"]) == case["text"], case["name"]
        assert int(caseops.original_bytes(case["transformed"]).sum()) == case["utf8_bytes"], case["name"]


@settings(max_examples=400, deadline=None)
@given(text=texts, escape_marker=st.booleans())
@example(text="\ue004A\ue004\ue004▁1▁", escape_marker=True)
def test_any_text_survives_and_keeps_its_bytes(text, escape_marker):
    transformed = caseops.encode(text, escape_marker=escape_marker)
    assert not any("A" <= char <= "Z" for char in transformed)
    assert not (escape_marker and "▁" in transformed)
    assert caseops.decode(transformed, escape_marker=escape_marker) == text
    counts = caseops.original_bytes(transformed)
    assert len(counts) == len(transformed)
    assert int(counts.sum()) == len(text.encode())


@settings(max_examples=300, deadline=None)
@given(transformed=st.text(st.sampled_from("ab 1\n" + "".join(caseops.OPERATORS)), max_size=12))
def test_the_decoder_accepts_more_than_the_encoder_writes_but_never_loses_letters(transformed):
    try:
        text = caseops.decode(transformed)
    except ValueError:
        return
    escaped = [transformed[i + 1] for i in escape_positions(transformed)]
    assert sum(char in "ab" for char in text.lower()) == sum(char in "ab" for char in transformed)
    assert [char for char in text if char in caseops.OPERATORS] == [c for c in escaped if c in caseops.OPERATORS]


def escape_positions(transformed: str) -> list[int]:
    positions, index = [], 0
    while index < len(transformed):
        if transformed[index] == E:
            positions.append(index)
            index += 1
        index += 1
    return positions


def test_all_caps_ends_at_the_first_non_letter():
    assert caseops.decode(f"{A}ab1c") == "AB1c"
    assert caseops.decode(f"{N}ab") == "Ab"


@pytest.mark.parametrize(
    "transformed",
    [
        f"a{T}b",
        f"a{A}b",
        f"{N}{N}a",
        f"{N}1",
        f"{T} a",
        f"{T}{A}a",
        f"{T}{N}a",
        f"{N}{E}a",
        T,
        A,
        N,
        E,
        f"a{E}",
        f"a{N}",
    ],
)
def test_operators_where_the_encoder_puts_none_are_errors(transformed):
    with pytest.raises(ValueError, match=r"^CaseOps: "):
        caseops.decode(transformed)
    letters = [char for char in caseops.decode(transformed, strict=False).lower() if char not in caseops.OPERATORS]
    assert letters == [char for char in transformed if char not in caseops.OPERATORS]


@settings(max_examples=200, deadline=None)
@given(text=texts, escape_marker=st.booleans())
def test_the_lenient_decoder_agrees_where_nothing_is_wrong(text, escape_marker):
    transformed = caseops.encode(text, escape_marker=escape_marker)
    assert caseops.decode(transformed, escape_marker=escape_marker, strict=False) == text
