"""Every hostile file is refused with its code, quickly and without memory; every code has a file."""

import time
import tracemalloc

import pytest

from artifact import reader
from artifact.errors import ArtifactError, ErrorCode
from tests.attacks import hostile_files

HOSTILE = hostile_files.hostile_files()

# Given by writers, or for files too large to build here.
WITHOUT_FILE = {ErrorCode.CONTENT, ErrorCode.OVER_BUDGET, ErrorCode.FILE_TOO_LONG}


def refusal(data: bytes) -> ErrorCode | None:
    """The code with which the whole of a file is refused, None if it is in order."""
    try:
        reader.parse(data).arrays()
    except ArtifactError as error:
        return error.code
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_its_code(name: str) -> None:
    data, code = HOSTILE[name]
    assert refusal(data) == code


def test_every_code_has_a_file() -> None:
    assert {code for _, code in HOSTILE.values()} == set(ErrorCode) - WITHOUT_FILE


def test_file_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hostile_files.good()
    monkeypatch.setattr(reader.limits, "MAX_FILE_BYTES", len(data) - 1)
    assert refusal(data) == ErrorCode.FILE_TOO_LONG


def test_the_model_of_all_hostile_files_is_in_order() -> None:
    assert refusal(hostile_files.good()) is None


@pytest.mark.parametrize("name", hostile_files.variants())
def test_unusual_files_are_read(name: str) -> None:
    assert refusal(hostile_files.variants()[name]) is None


@pytest.mark.parametrize("name", hostile_files.bombs())
def test_bombs_cost_nothing(name: str) -> None:
    data, code = hostile_files.bombs()[name]
    assert len(data) < 1500
    refusal(data)  # imports and tables of the first call
    tracemalloc.start()
    try:
        assert refusal(data) == code
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        refusal(data)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


def test_the_most_tensors_that_a_small_file_may_name_cost_little() -> None:
    group = hostile_files.GroupParts(
        tensors=hostile_files.tensor_set(pattern=b"a.#", count=8192, shape=(0,)),
        encoding=hostile_files.encoding(kind=1, bits=0),
        parts=hostile_files.part(0, 0),
        stream=b"",
    )
    data = hostile_files.File(groups=(group,)).bytes()
    assert len(data) < 200
    tracemalloc.start()
    try:
        assert len(reader.parse(data).arrays()) == 8192
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8_000_000
