"""Configuration dataclasses from TOML tables and command-line options, and back to TOML.

Everything here follows from the dataclasses: their fields are the accepted keys and options, their annotations the
accepted types, their `__post_init__` the accepted values.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union

from model.errors import InputError

T = TypeVar("T")
Hints = dict[str, Any]

# TOML has no null: an optional field that is switched off is written as this word.
NONE_WORD = "none"


def nearest(name: str, accepted: Iterable[str]) -> str:
    """` (did you mean X?)` for the accepted name closest to `name`, or nothing when none is close."""
    matches = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def field_hints(cls: type) -> Hints:
    """Field name -> resolved annotation, in declaration order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from a TOML table; `where` names the table in errors.

    Raises:
        InputError: an unknown key, a value of the wrong type, or one that the dataclass rejects.
    """
    hints = field_hints(cls)
    for key in table:
        if key not in hints:
            raise InputError(f"{where}.{key}: unknown key{nearest(key, hints)}")
    values = {key: convert(value, hints[key], f"{where}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError:  # a field without a default
        missing = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and field.name not in values
        ]
        if not missing:
            raise
        raise InputError(f"{where}: missing key {missing[0]}") from None


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` from TOML as the annotation `hint` wants it, or InputError naming `where` and what is accepted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            accepted = ", ".join(str(argument) for argument in arguments)
            raise InputError(
                f"{where}: accepts one of {accepted}; got {value!r}{nearest(str(value), map(str, arguments))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: accepts a list, got {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(convert(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value))
        if len(value) != len(arguments):
            raise InputError(f"{where}: accepts a list of {len(arguments)}, got {len(value)}")
        return tuple(
            convert(item, argument, f"{where}[{index}]")
            for index, (item, argument) in enumerate(zip(value, arguments, strict=True))
        )
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: accepts a table, got {value!r}")
        return build(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    raise InputError(f"{where}: accepts {describe(hint)}, got {value!r}")


def _convert_union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    if type(None) in members and value == NONE_WORD:
        return None
    candidates = [member for member in members if member is not type(None)]
    errors = []
    for candidate in candidates:
        try:
            return convert(value, candidate, where)
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise InputError(f"{where}: accepts {' or '.join(describe(member) for member in members)}, got {value!r}")


def describe(hint: Any) -> str:
    """An annotation in words."""
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): f'"{NONE_WORD}"'}
    return words.get(hint, str(hint))


def to_table(instance: Any) -> dict[str, Any]:
    """All fields of a configuration dataclass as TOML-able values (nested dataclasses as tables)."""
    table = {}
    for name in field_hints(type(instance)):
        value = getattr(instance, name)
        table[name] = to_table(value) if dataclasses.is_dataclass(value) else _plain(value)
    return table


def differences(instance: Any, default: Any = None) -> dict[str, Any]:
    """The fields that differ from `default` (None: the dataclass's defaults), as a table without empty tables."""
    default = type(instance)() if default is None else default
    table = {}
    for name in field_hints(type(instance)):
        value, usual = getattr(instance, name), getattr(default, name)
        if dataclasses.is_dataclass(value):
            if nested := differences(value, usual):
                table[name] = nested
        elif value != usual:
            table[name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def format_toml(table: Mapping[str, Any]) -> str:
    """TOML text of nested tables of text, numbers, booleans, lists and None (written as the word "none")."""
    return "\n".join(_toml_lines(table, ())).strip("\n") + "\n"


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {_toml_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{'.'.join((*path, key))}]"
            yield from _toml_lines(value, (*path, key))


def _toml_value(value: Any) -> str:
    if value is None:
        return f'"{NONE_WORD}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"no TOML form for {type(value).__name__}")


def option_hints(cls: type, prefix: str = "--") -> Hints:
    """Command-line option -> annotation, for every field of `cls` and of the dataclasses it nests."""
    options: Hints = {}
    for name, hint in field_hints(cls).items():
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            options.update(option_hints(typing.cast(type, hint), option + "."))
        else:
            options[option] = hint
    return options


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def split_overrides(cls: type, arguments: list[str]) -> tuple[list[str], list[str]]:
    """(other arguments, override arguments); an override is an option with a dot in its name and its value or values.

    Raises:
        InputError: an option with a dot that no field of `cls` stands behind.
    """
    hints = option_hints(cls)
    others: list[str] = []
    overrides: list[str] = []
    position = 0
    while position < len(arguments):
        option, equals, _ = arguments[position].partition("=")
        if not (option.startswith("--") and "." in option):
            others.append(arguments[position])
            position += 1
            continue
        option = option.replace("_", "-")
        if option not in hints:
            raise InputError(f"{option}: unknown option{nearest(option, hints)}")
        members = _members(hints[option])
        stop = position + 1
        if not equals:
            takes_several = any(typing.get_origin(member) is tuple for member in members)
            limit = len(arguments) if takes_several else min(stop + 1, len(arguments))
            while stop < limit and not arguments[stop].startswith("--"):
                stop += 1
        values = arguments[position + 1 : stop]
        if type(None) in members and values == [NONE_WORD]:
            values = ["None"]  # tyro's word
        overrides += [arguments[position], *values]
        position = stop
    return others, overrides


def override(settings: T, arguments: list[str]) -> T:
    """`settings` with command-line options such as `--model.num-layers 4` applied, typed by the dataclasses.

    Raises:
        InputError: one line naming the option and what it accepts.
    """
    if not arguments:
        return settings
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            return tyro.cli(
                type(settings),
                args=arguments,
                default=settings,
                prog="albatross",
                add_help=False,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
    except SystemExit:
        raise InputError(condense(complaint.getvalue())) from None


def condense(complaint: str) -> str:
    """tyro's boxed message as one line: the paragraph below the title, without borders, help text and colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [line.strip(" │|") for line in text.splitlines()]
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r"[-─╭╮╰╯├┤]+.*[-─╭╮╰╯├┤]+", line):
            if title := line.strip("-─╭╮╰╯├┤ "):
                paragraphs[-1].append(title)
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    filled = [" ".join(paragraph) for paragraph in paragraphs if paragraph]
    message = filled[1] if len(filled) > 1 else " ".join(filled)
    message = re.sub(r"^Error parsing (--)?[\w.-]+: (?=[\w.]+: accepts)", "", message)
    return message.removeprefix("Error parsing ").rstrip(".")
