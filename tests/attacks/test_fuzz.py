"""Fuzzing by hand: make fuzz. Uses atheris (coverage-guided) where it is installed, else blind mutations."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks import mutations

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_MUTANTS = 1_000_000

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import atheris
with atheris.instrument_imports(include=["artifact"]):
    from artifact import reader
from tests.attacks import hostile_files, mutations
outcome = mutations.Outcome()
def one_input(data):
    # The hash would hide everything behind it.
    mutations.attack(mutations.with_right_checksums(hostile_files.seal(data)), outcome)
atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
atheris.Fuzz()
"""


@pytest.mark.fuzz
def test_fuzz_with_coverage(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, data in enumerate(mutations.seeds()):
        (corpus / str(index)).write_bytes(data[:-34])
    program = tmp_path / "fuzz.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(REPOSITORY), f"-runs={NUM_MUTANTS}", "-max_len=4000", "-timeout=5"]
    result = subprocess.run([*command, str(corpus)], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.fuzz
def test_fuzz_blindly() -> None:
    generator = random.Random(0)
    seeds = mutations.seeds()
    outcome = mutations.Outcome()
    for data in seeds:
        mutations.attack(data, outcome)
    for _ in range(NUM_MUTANTS):
        mutant = mutations.mutate(generator.choice(seeds), generator)
        mutations.attack(mutations.with_right_checksums(mutant), outcome)
    assert outcome.num_refused > NUM_MUTANTS // 2
