"""Installation into clean environments: each extra brings what it says, and what is missing is named with its extra."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".venv", ".git", ".gpu", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources, as a fresh clone would hold them."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("fresh") / "albatross", ignore=NOT_COPIED))


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def install(checkout: Path, folder: Path, extra: str) -> Path:
    """A new virtual environment with `albatross` and one extra; returns its bin folder."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--constraint", checkout / "constraints.txt"]
    subprocess.run([*pip, f"{checkout}{extra}"], check=True, env=clean_environment(), cwd=folder)
    return folder / "bin"


def call(binary: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [str(binary / "albatross"), *map(str, arguments)]
    # Not in the checkout: its packages must not be found by accident.
    return subprocess.run(command, capture_output=True, text=True, cwd=binary, env=clean_environment())


@pytest.fixture
def artifact(run) -> Path:
    assert main(["pack", str(run)]) == 0
    return run / "artifact.albatross"


def test_the_artifact_tools_need_light_dependencies_only(checkout, artifact, data, tmp_path):
    binary = install(checkout, tmp_path / "venv", "")
    installed = subprocess.run(
        [binary / "python", "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" not in installed
    assert "sentencepiece" not in installed
    assert "sound" in call(binary, "verify", artifact).stdout
    assert "embedding.weight" in call(binary, "inspect", artifact, "--bytes").stdout
    for arguments, extra in (
        (["evaluate", artifact, "--data", data], "albatross[eval]"),
        (["train", "tiny", "--data", data, "--out", tmp_path / "out"], "albatross[train]"),
        (["train", "tiny", "--dry-run"], "albatross[train]"),
        (["report", artifact.parent, "--out", tmp_path / "out"], "albatross[train]"),
        (
            ["data", "prepare", "--input", data, "--tokenizer", "train:300", "--out", tmp_path / "out"],
            "albatross[eval]",
        ),
    ):
        done = call(binary, *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("albatross: error: ")
        assert done.stderr.count("\n") == 1
        assert extra in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_extra_eval_evaluates(checkout, artifact, data, tmp_path):
    binary = install(checkout, tmp_path / "venv", "[eval]")
    done = call(binary, "evaluate", artifact, "--data", data, "--report", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "val_bpb:" in done.stdout
    missing = call(binary, "train", "tiny", "--data", data, "--out", tmp_path / "out")
    assert missing.returncode == 2
    assert "albatross[train]" in missing.stderr


def test_make_sets_up_an_environment_that_trains(checkout, data, tmp_path):
    subprocess.run(["make", "venv", f"PYTHON={sys.executable}"], cwd=checkout, check=True, env=clean_environment())
    binary = checkout / ".venv/bin"
    small = ["--model.vocab-size", 300, "--model.num-layers", 2, "--training.max-steps", 2]
    done = call(binary, "train", "tiny", "--data", data, "--out", tmp_path / "out", "--num-gpus", 2, *small)
    assert done.returncode == 0, done.stderr
    assert "step:2/2" in done.stdout
    drawn = call(binary, "report", tmp_path / "out", "--out", tmp_path / "report.html")
    assert drawn.returncode == 0, drawn.stderr
    assert "vegaEmbed" in (tmp_path / "report.html").read_text()
