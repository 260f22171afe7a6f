"""Mutants of good and hostile files: nothing but ArtifactError, no hang, no memory out of proportion."""

import random

import pytest

from tests.attacks import mutations


def run(num_mutants: int, seed: int) -> mutations.Outcome:
    generator = random.Random(seed)
    seeds = mutations.seeds()
    outcome = mutations.Outcome()
    for data in seeds:  # first reading of everything, so that lazy tables are not counted as growth
        mutations.attack(data, outcome)
    for _ in range(num_mutants):
        mutant = mutations.mutate(generator.choice(seeds), generator)
        mutations.attack(mutations.with_right_checksums(mutant), outcome)
    return outcome


def test_some_mutants() -> None:
    outcome = run(300, seed=1)
    assert outcome.num_refused > 200


@pytest.mark.slow
def test_ten_thousand_mutants() -> None:
    outcome = run(10_000, seed=2)
    assert outcome.num_refused > 7000
    # The damage must reach every stage: frame, wire, manifest, codecs.
    assert {"sha256", "unknown_field", "stream_length", "crc32", "rans_stream", "rans_table"} <= outcome.codes
