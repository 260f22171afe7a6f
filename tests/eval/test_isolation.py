"""The evaluator runs where neither deepspeed nor the trainer is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BLOCKED_RUN = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("deepspeed", "trainer", "launch", "tyro", "transformer_engine", "triton"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = ["eval", *sys.argv[1:]]
runpy.run_module("eval", run_name="__main__", alter_sys=True)
"""

ISOLATED_RUN = """
import runpy, sys

sys.path[:0] = [sys.argv[1], sys.argv[2]]
for name in ("deepspeed", "trainer", "launch"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported here, so this proves nothing")
sys.argv = ["eval", *sys.argv[3:]]
runpy.run_module("eval", run_name="__main__", alter_sys=True)
"""


def check(completed: subprocess.CompletedProcess[str], report: Path) -> None:
    assert completed.returncode == 0, completed.stderr
    merged = json.loads(report.read_text())
    sections = [merged[name] for name in ("post_quantization", "post_quantization_sliding", "post_ttt")]
    assert len({(section["num_scored_targets"], section["num_bytes"]) for section in sections}) == 1
    assert all(section["ledger"] == "proved" and not section["partial"] for section in sections)


def test_it_runs_with_deepspeed_and_trainer_blocked(evaluation_folder, tmp_path):
    artifact, data = evaluation_folder / "a.albatross", evaluation_folder / "data"
    report = tmp_path / "report.json"
    arguments = [artifact, "--data", data, "--mode", "plain", "sliding", "ttt", "--report", report, "--device", "cpu"]
    completed = subprocess.run(
        [sys.executable, "-c", BLOCKED_RUN, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    check(completed, report)


@pytest.mark.slow
def test_it_runs_from_a_folder_with_only_its_own_packages(evaluation_folder, tmp_path):
    """An interpreter without site-packages, given three of our packages and third parties without deepspeed."""
    artifact, data = evaluation_folder / "a.albatross", evaluation_folder / "data"
    ours, theirs, empty = tmp_path / "ours", tmp_path / "theirs", tmp_path / "empty"
    empty.mkdir()
    for package in ("artifact", "eval", "model"):
        shutil.copytree(ROOT / package, ours / package, ignore=shutil.ignore_patterns("__pycache__"))
    theirs.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.lower().startswith(("deepspeed", "albatross", "__editable__")) and entry.suffix != ".pth":
            (theirs / entry.name).symlink_to(entry)
    report = tmp_path / "report.json"
    arguments = [artifact, "--data", data, "--mode", "plain", "sliding", "ttt", "--report", report, "--device", "cpu"]
    completed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ISOLATED_RUN, str(ours), str(theirs), *map(str, arguments)],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    check(completed, report)
