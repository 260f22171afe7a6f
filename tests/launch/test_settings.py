"""Dataclasses to and from TOML tables and command-line options."""

import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.settings import build, condense, differences, format_toml, override, split_overrides, to_table
from model.errors import InputError


@dataclass(frozen=True)
class Inner:
    size: int = 3
    kind: Literal["plain", "none"] = "plain"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=lambda: Inner(size=5))
    rate: float | None = 0.5
    names: tuple[str, ...] = ("a",)


def test_differences_are_taken_from_the_owners_default_not_the_nested_class():
    assert differences(Outer()) == {}
    assert differences(Outer(inner=Inner())) == {"inner": {"size": 3}}
    assert differences(Outer(names=(), rate=None)) == {"rate": None, "names": []}


def test_none_is_a_word_for_optional_fields_only():
    assert build(Outer, {"rate": "none"}, "x").rate is None
    assert build(Outer, {"inner": {"kind": "none"}}, "x").inner.kind == "none"
    with pytest.raises(InputError, match=r"x\.inner\.size: accepts an integer"):
        build(Outer, {"inner": {"size": "none"}}, "x")


def test_override_of_an_optional_field_with_none():
    others, overrides = split_overrides(Holder, ["run", "--outer.rate", "none", "--outer.inner.kind", "none", "--flag"])
    assert others == ["run", "--flag"]
    settings = override(Holder(), overrides)
    assert settings.outer.rate is None
    assert settings.outer.inner.kind == "none"


@dataclass(frozen=True)
class Holder:
    outer: Outer = field(default_factory=Outer)


def test_a_scalar_override_takes_one_value_and_a_list_as_many_as_follow():
    others, overrides = split_overrides(Holder, ["--outer.inner.size", "4", "preset", "--outer.names", "a", "b", "--x"])
    assert others == ["preset", "--x"]
    assert override(Holder(), overrides).outer == Outer(inner=Inner(size=4), names=("a", "b"))


def test_equals_sign_and_negative_numbers():
    others, overrides = split_overrides(Holder, ["--outer.rate=-2.5", "p", "--outer.inner.size", "-1"])
    assert others == ["p"]
    assert override(Holder(), overrides).outer.rate == -2.5
    assert override(Holder(), overrides).outer.inner.size == -1


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3),
    max_leaves=5,
)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def with_none_as_a_word(value):
    if isinstance(value, dict):
        return {key: with_none_as_a_word(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_none_as_a_word(item) for item in value]
    return "none" if value is None else value


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=4))
def test_toml_reads_back_as_written(table):
    assert tomllib.loads(format_toml(table)) == with_none_as_a_word(table)


def test_to_table_holds_every_field():
    assert to_table(Outer()) == {"inner": {"size": 5, "kind": "plain"}, "rate": 0.5, "names": ["a"]}


def test_condense_keeps_the_complaint_and_drops_frame_and_help():
    boxed = "\x1b[31m╭─ Value error ──╮\x1b[0m\n│ Error parsing --a.b: no\n│ number │\n├──────┤\n│ For help, see x │\n"
    assert condense(boxed) == "--a.b: no number"
