"""The configuration has one text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact import canonical_json
from artifact.errors import ArtifactError, ErrorCode

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_roundtrip(value: dict[str, Any]) -> None:
    data = canonical_json.encode(value)
    decoded = canonical_json.decode(data)
    assert decoded == value
    assert canonical_json.encode(decoded) == data


def test_integers_and_floats_stay_what_they_are() -> None:
    data = canonical_json.encode({"b": 1.0, "a": 1, "c": 1e-5, "d": 10**30})
    assert data == b'{"a":1,"b":1.0,"c":1e-05,"d":1000000000000000000000000000000}'
    assert isinstance(canonical_json.decode(data)["b"], float)
    assert isinstance(canonical_json.decode(data)["a"], int)


@pytest.mark.parametrize(
    "text", [b"", b"null", b'"a"', b"{", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":[1,]}', b'{"a":tru}']
)
def test_what_is_not_an_object(text: bytes) -> None:
    with pytest.raises(ArtifactError) as caught:
        canonical_json.decode(text)
    assert caught.value.code == ErrorCode.CONFIGURATION


@pytest.mark.parametrize(
    "value", [{"a": object()}, {1: 2, "b": 3}, {"a": float("inf")}, {"a": "\ud800"}, {10: 0, 9: 0}]
)
def test_what_cannot_be_written(value: dict[Any, Any]) -> None:
    with pytest.raises(ArtifactError) as caught:
        canonical_json.encode(value)
    assert caught.value.code == ErrorCode.CONTENT
