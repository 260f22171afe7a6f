"""How a run's settings differ from its preset's, and the preset's from its parent's."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.preset import Preset, Settings, load, preset_files
from launch.report.recorded import Run
from launch.settings import to_table
from model.errors import InputError

SECTIONS = ("model", "training", "quantization", "eval")
ABSENT = "(none)"


@dataclass(frozen=True)
class Differences:
    """Settings that differ, as (name, value here, value there); `against` says from what."""

    against: str
    rows: tuple[tuple[str, Any, Any], ...]


def of_run(run: Run) -> list[Differences]:
    """From the preset that the run started from, and from that preset's parent; only the second if it is unknown."""
    if not run.config:
        return []
    defaults = flat(to_table(Settings()))
    settings = {**defaults, **flat(run.config)}  # a run of an older version lacks what has become a setting since
    try:
        preset = load(run.preset)
    except InputError:
        return [Differences("the defaults", _differing(settings, defaults))]
    return [
        Differences(f"preset {preset.id}", _differing(settings, flat(to_table(preset.settings)))),
        of_preset(preset),
    ]


def of_preset(preset: Preset) -> Differences:
    """From the preset that it extends, or from the defaults if it extends none."""
    path = next(path for path in preset_files() if path.stem == preset.name)
    parent = tomllib.loads(path.read_text(encoding="utf-8")).get("extends")
    base = Settings() if parent is None else load(parent).settings
    against = "the defaults" if parent is None else f"preset {parent}"
    return Differences(
        f"{against} (of preset {preset.id})", _differing(flat(to_table(preset.settings)), flat(to_table(base)))
    )


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model.num_layers": 9, ...}` of nested tables; at the top, the sections of settings alone."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if not prefix and key not in SECTIONS:
            continue
        if isinstance(value, Mapping):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = "none" if value is None else value
    return values


def _differing(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    names = [*here, *(name for name in there if name not in here)]
    return tuple(
        (name, here.get(name, ABSENT), there.get(name, ABSENT))
        for name in names
        if here.get(name, ABSENT) != there.get(name, ABSENT)
    )
