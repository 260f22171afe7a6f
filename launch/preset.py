"""Presets: TOML data, with at most one `extends` each, that resolve to the configuration of every stage."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.config import EvalConfig
from launch.settings import build, convert, nearest, override, to_table
from model.config import ModelConfig
from model.errors import InputError
from trainer.config import TrainingConfig
from trainer.quantize.config import QuantizationConfig

PRESET_FOLDER = Path(__file__).with_name("presets")
HEADER_TYPES: dict[str, Any] = {"id": str, "rank": int | None, "summary": str, "methods": tuple[str, ...]}


@dataclass(frozen=True)
class Settings:
    """The configuration of every stage; each field is a section of a preset and a prefix of command-line options."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass(frozen=True)
class Expectation:
    """Figures published for a leaderboard entry, and what its preset must come to. None: not published."""

    params_total: int | None = None
    """Parameters as published, the unused ones included."""
    params_unused: int = 0
    """Of those, parameters that the entry allocated and never used; the preset does not build them."""
    published_bpb: float | None = None
    pre_quantization_bpb: float | None = None
    post_quantization_bpb: float | None = None
    post_quantization_sliding_bpb: float | None = None
    post_ttt_bpb: float | None = None
    artifact_bytes: int | None = None
    code_bytes: int | None = None
    num_steps: int | None = None
    step_milliseconds: float | None = None
    hardware: str | None = None


@dataclass(frozen=True)
class Preset:
    """A named configuration. `rank` is the leaderboard rank it expresses, None if it is nobody's entry."""

    name: str
    id: str
    rank: int | None
    summary: str
    methods: tuple[str, ...]
    settings: Settings
    expect: Expectation

    def with_overrides(self, arguments: list[str]) -> "Preset":
        """The preset with options such as `--model.num-layers 4` applied. InputError: one line naming the option."""
        return replace(self, settings=override(self.settings, arguments))

    def to_table(self) -> dict[str, Any]:
        """The resolved preset as a TOML table that `load` reads back."""
        header = {"id": self.id, "rank": self.rank, "summary": self.summary, "methods": list(self.methods)}
        return {**header, **to_table(self.settings), "expect": to_table(self.expect)}


def preset_files() -> list[Path]:
    """The files of the presets that come with Albatross, in name order."""
    return sorted(PRESET_FOLDER.glob("*.toml"))


def load_all() -> list[Preset]:
    """Every preset that comes with Albatross: leaderboard entries by rank, then the others by name."""
    presets = [load_file(path) for path in preset_files()]
    return sorted(presets, key=lambda preset: (preset.rank is None, preset.rank or 0, preset.name))


def load(name: str) -> Preset:
    """The preset called `name`: its name (`rank42`), its id (`naive-baseline`) or the path of a .toml file.

    Raises:
        InputError: no such preset (with the nearest name), unreadable TOML, an unknown key or a value out of range.
    """
    if name.endswith(".toml"):
        return load_file(Path(name))
    names = {path.stem: path for path in preset_files()}
    ids = {_read_toml(path).get("id"): path for path in names.values()}
    path = names.get(name) or ids.get(name)
    if path is None:
        raise InputError(f"unknown preset {name}{nearest(name, [*names, *filter(None, ids)])}")
    return load_file(path)


def load_file(path: Path) -> Preset:
    """The preset in the TOML file `path`, with what it extends resolved. Raises InputError as `load` does."""
    table = _resolve(path, ())
    header = {key: convert(table[key], hint, f"{path}: {key}") for key, hint in HEADER_TYPES.items() if key in table}
    expect = build(Expectation, _section(table, "expect", path), f"{path}: expect")
    sections = {key: value for key, value in table.items() if key not in (*HEADER_TYPES, "expect", "extends")}
    settings = build(Settings, sections, f"{path}: ") if sections else Settings()
    return Preset(
        name=path.stem,
        id=header.get("id", path.stem),
        rank=header.get("rank"),
        summary=header.get("summary", ""),
        methods=header.get("methods", ()),
        settings=settings,
        expect=expect,
    )


def _resolve(path: Path, descendants: tuple[Path, ...]) -> dict[str, Any]:
    """The table of `path` laid over the sections of what it extends. What describes one entry is not inherited."""
    table = _read_toml(path)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise InputError(f"{path}: extends: accepts the name of one preset, got {parent!r}")
    beside = path.with_name(parent if parent.endswith(".toml") else f"{parent}.toml")
    parent_path = beside if beside.is_file() else PRESET_FOLDER / f"{parent}.toml"
    if not parent_path.is_file():
        raise InputError(f"{path}: extends: unknown preset {parent}{nearest(parent, [p.stem for p in preset_files()])}")
    if parent_path in (path, *descendants):
        raise InputError(f"{path}: extends: {parent} extends this preset in turn")
    inherited = _resolve(parent_path, (*descendants, path))
    sections = {key: value for key, value in inherited.items() if key not in (*HEADER_TYPES, "expect")}
    return _merge(sections, table)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _section(table: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, Mapping):
        raise InputError(f"{path}: {name}: accepts a table, got {section!r}")
    return section


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
