"""Presets: every one loads, is built at its published size, and says only what the dataclasses know."""

import json
import tomllib

import pytest

from launch.catalogue import count_parameters
from launch.cli import main
from launch.preset import load, load_all, load_file, preset_files
from launch.settings import format_toml
from model.errors import InputError


@pytest.fixture(scope="module")
def presets():
    return load_all()


def test_every_preset_is_listed_with_what_scripts_rely_on(presets, capsys):
    assert main(["presets", "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["id"] for entry in entries] == [preset.id for preset in presets]
    assert len(entries) == len(preset_files())
    for entry in entries:
        assert entry["params"] > 0
        assert {"rank", "id", "params", "params_unused", "published_bpb", "methods"} <= entry.keys()
        assert all(isinstance(method, str) for method in entry["methods"])


def test_ids_and_names_are_unique(presets):
    names = [name for preset in presets for name in {preset.name, preset.id}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", preset_files(), ids=lambda path: path.stem)
def test_preset_is_built_at_its_published_size(path):
    preset = load_file(path)
    if preset.expect.params_total is None:
        assert preset.rank is None
    else:
        assert count_parameters(preset) == preset.expect.params_total - preset.expect.params_unused


def test_baseline_has_exactly_the_published_parameters():
    assert count_parameters(load("rank42")) == 17_059_912


def test_a_preset_is_found_by_name_and_by_id():
    assert load("rank42") == load("naive-baseline")


@pytest.mark.parametrize("path", preset_files(), ids=lambda path: path.stem)
def test_resolved_preset_survives_a_round_trip_through_toml(path, tmp_path):
    preset = load_file(path)
    copy = tmp_path / path.name
    copy.write_text(format_toml(preset.to_table()), encoding="utf-8")
    assert load_file(copy) == preset


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_extends_changes_what_it_states_and_nothing_else(write):
    parent = load("rank42")
    child = load_file(write("child", 'extends = "rank42"\n[training.matrix]\nlearning_rate = 0.03\n'))
    assert child.settings.training.matrix.learning_rate == 0.03
    assert child.settings.training.matrix.momentum == parent.settings.training.matrix.momentum
    assert child.settings.model == parent.settings.model
    assert child.settings.quantization == parent.settings.quantization


def test_figures_and_identity_are_not_inherited(write):
    child = load_file(write("child", 'extends = "rank42"\n'))
    assert (child.id, child.rank, child.methods) == ("child", None, ())
    assert child.expect.published_bpb is None


def test_extends_a_file_beside_it(write):
    write("base", "[training]\nseed = 7\n")
    assert load_file(write("child", 'extends = "base"\n')).settings.training.seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nnum_layer = 3\n", r"model\.num_layer: unknown key \(did you mean num_layers\?\)"),
        ("[modle]\n", r"modle: unknown key \(did you mean model\?\)"),
        ("[training.matrix]\nmomentun = 0.9\n", r"momentun: unknown key \(did you mean momentum\?\)"),
        ("[expect]\nparams = 3\n", r"expect\.params: unknown key"),
        ('[model]\nnum_layers = "3"\n', r"model\.num_layers: accepts an integer, got '3'"),
        ("[model]\nnum_layers = 3.0\n", r"model\.num_layers: accepts an integer, got 3\.0"),
        ("[model]\nunet_skips = 1\n", r"model\.unet_skips: accepts true or false, got 1"),
        ('[model]\nactivation = "gelu"\n', r"model\.activation: accepts one of relu_squared"),
        ("[training.embedding]\nbetas = [0.9]\n", r"betas: accepts a list of 2, got 1"),
        ("[model]\nnum_layers = 0\n", r"model\.num_layers: accepts an integer of at least 1, got 0"),
        ("model = 3\n", r"model: accepts a table, got 3"),
        ('extends = "rank43x"\n', r"unknown preset rank43x \(did you mean rank4"),
        ('extends = ["tiny", "rank42"]\n', r"extends: accepts the name of one preset"),
        ('extends = "child"\n', r"extends this preset in turn"),
        ("[model\n", r"not TOML"),
    ],
)
def test_mistakes_in_a_preset_name_the_field(write, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_file(write("child", text))
    assert "child.toml" in str(caught.value)


def test_show_prints_a_preset_that_loads(capsys, tmp_path):
    assert main(["presets", "show", "naive-baseline"]) == 0
    shown = capsys.readouterr().out
    assert tomllib.loads(shown)["expect"]["params_total"] == 17_059_912
    copy = tmp_path / "rank42.toml"
    copy.write_text(shown, encoding="utf-8")
    assert load_file(copy) == load("rank42")


def test_overrides_are_typed():
    preset = load("tiny").with_overrides(
        ["--model.num-layers", "4", "--training.embedding.betas", "0.8", "0.9", "--model.unet-skips", "False"]
    )
    assert preset.settings.model.num_layers == 4
    assert preset.settings.model.unet_skips is False
    assert preset.settings.training.embedding.betas == (0.8, 0.9)
    assert preset.settings.training.embedding.learning_rate == load("tiny").settings.training.embedding.learning_rate
