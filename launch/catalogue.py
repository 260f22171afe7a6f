"""`albatross presets`: what presets there are, and one of them resolved."""

import json
from typing import Any

from launch.methods import methods_of
from launch.preset import Preset, load, load_all
from launch.settings import format_toml


def count_parameters(preset: Preset) -> int:
    """Parameters of the network that the preset builds (on the meta device, so nothing is allocated)."""
    import torch

    from model.network.gpt import GPT

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(preset.settings.model).parameters())


def describe(preset: Preset) -> dict[str, Any]:
    """One entry of `presets list --json`."""
    return {
        "name": preset.name,
        "rank": preset.rank,
        "id": preset.id,
        "summary": preset.summary,
        "params": count_parameters(preset),
        "params_unused": preset.expect.params_unused,
        "published_bpb": preset.expect.published_bpb,
        "methods": methods_of(preset),
    }


def print_list(*, as_json: bool) -> int:
    """Prints every preset, one line each; returns exit code 0. Methods that all presets use are left out there."""
    entries = [describe(preset) for preset in load_all()]
    if as_json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
        return 0
    common = set.intersection(*(set(entry["methods"]) for entry in entries))
    width = max(len(entry["id"]) for entry in entries)
    print(f"{'rank':>4}  {'id':<{width}} {'parameters':>11} {'published BPB':>13}  methods")
    for entry in entries:
        rank, bpb = entry["rank"], entry["published_bpb"]
        print(
            f"{'-' if rank is None else rank:>4}  {entry['id']:<{width}} {entry['params']:>11,} "
            f"{'-' if bpb is None else f'{bpb:.4f}':>13}  "
            + ", ".join(method for method in entry["methods"] if method not in common)
        )
    return 0


def print_one(name: str, *, as_json: bool) -> int:
    """Prints one preset with everything that it extends filled in; returns exit code 0. InputError if unknown."""
    preset = load(name)
    if as_json:
        print(json.dumps({**describe(preset), **preset.to_table()}, indent=2, ensure_ascii=False))
    else:
        print(format_toml(preset.to_table()), end="")
    return 0
