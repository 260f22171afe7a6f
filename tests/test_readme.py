"""What README.md says is so: the tree, the commands, the make targets."""

import re
import shlex

import numpy as np
import pytest

from artifact.content import Content, PlainTensor
from artifact.writer import write
from launch.arguments import check_names, root_parser
from launch.preset import Settings, load
from launch.settings import split_overrides
from tests.readme_tree import (
    BEGIN_PRESETS,
    END_PRESETS,
    README,
    ROOT,
    describe,
    files,
    in_readme,
    render,
    render_presets,
)

TEXT = README.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}(albatross (?:.*\\\n)*.*)$", TEXT, re.MULTILINE)


def test_tree_is_that_of_the_disk():
    assert in_readme() == render(), "run `make readme`"


def test_presets_are_those_of_the_disk():
    assert in_readme(BEGIN_PRESETS, END_PRESETS) == render_presets(), "run `make readme`"


def test_every_file_says_what_it_is():
    assert not [
        path
        for folder in ("artifact", "eval", "launch", "model", "trainer")
        for path in files(folder)
        if not describe(path)
    ]


def test_readme_shows_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_readme_are_accepted(command):
    """Parsed as the command line parses them, presets and overrides included; tests in tests/launch run them."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)[1:]
    if words[0] == "evaluate":
        from eval.command import build_parser

        build_parser().parse_args(words[1:])
        return
    words, overrides = split_overrides(Settings, words)
    check_names(root_parser(), words)
    options = root_parser().parse_args(words)
    if options.command == "train":
        load(options.preset).with_overrides(overrides)


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`?make ([a-z][a-z-]*)", TEXT))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On a small artifact, in the place of the quickstart's."""
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    artifact = tmp_path / "runs/quickstart/artifact.albatross"
    artifact.parent.mkdir(parents=True)
    weights = {"embedding.weight": PlainTensor(np.ones((3, 2), np.float16))}
    write(artifact, Content({"preset": "tiny"}, "0" * 64, weights))
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    output = capsys.readouterr().out
    assert "{'preset': 'tiny'}" in output
    assert "(3, 2)" in output


def test_files_that_the_readme_links_to_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
