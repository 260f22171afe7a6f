"""Files appear whole or not at all; the byte cap; content that the format cannot hold."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from artifact import reader, writer
from artifact.content import Content, LowRank, PlainTensor, QuantizedTensor
from artifact.errors import ArtifactError, ErrorCode
from artifact.schema import FloatType, Kind
from tests.artifact.contents import good_contents

CONTENT = good_contents()["layers"]
OTHER = good_contents()["large"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    writer.write(tmp_path / "a", CONTENT)
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_leaves_the_previous_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.albatross"
    writer.write(path, CONTENT)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        real_fdopen = os.fdopen

        def fdopen(*arguments: Any) -> Any:
            return _HalfFile(real_fdopen(*arguments, buffering=0))

        monkeypatch.setattr(os, "fdopen", fdopen)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        writer.write(path, OTHER)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.albatross"]


class _HalfFile:
    """A file whose disk fills up in the middle of a write."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    writer.write(path, CONTENT)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            writer.write(path, OTHER)
        except OSError as error:
            os._exit(3 if error.errno == errno.EFBIG else 4)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.albatross"]


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from artifact import writer
from tests.artifact.contents import good_contents
step, path = int(sys.argv[2]), sys.argv[3]
calls = 0
def dying(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == step:
            os._exit(9)
        return real(*arguments, **options)
    return call
for name in ("fsync", "replace", "chmod", "fdopen", "open"):
    setattr(os, name, dying(getattr(os, name)))
writer.write(path, good_contents()["large"])
"""


def test_death_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    old, new = writer.encode(CONTENT), writer.encode(OTHER)
    seen = set()
    for step in range(1, 9):
        path.write_bytes(old)
        repository = str(Path(__file__).resolve().parents[2])
        result = subprocess.run([sys.executable, "-c", KILLED, repository, str(step), str(path)], check=False)
        assert result.returncode in (0, 9)
        assert path.read_bytes() in (old, new)
        seen.add((result.returncode, path.read_bytes() == new))
        if result.returncode == 0:
            break
    assert seen == {(9, False), (9, True), (0, True)}


def test_over_the_cap_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.albatross"
    size = len(writer.encode(CONTENT))
    with pytest.raises(ArtifactError) as caught:
        writer.write(path, CONTENT, max_bytes=size - 1)
    assert caught.value.code == ErrorCode.OVER_BUDGET
    lines = str(caught.value).splitlines()
    assert f"{size:,} bytes" in lines[0]
    assert "blocks.#.q.weight" in str(caught.value)
    assert "headroom -1 bytes" in lines[-1]
    assert list(tmp_path.iterdir()) == []
    ledger = writer.write(path, CONTENT, max_bytes=size)
    assert ledger.headroom_bytes == 0
    assert reader.read(path).total_bytes == size


def quantized(**changes: Any) -> QuantizedTensor:
    arguments: dict[str, Any] = {
        "symbols": np.zeros((2, 4), np.int8),
        "scales": np.ones(2, np.float16),
        "bits": 4,
        **changes,
    }
    return QuantizedTensor(**arguments)


BAD_TENSORS: dict[str, Any] = {
    "bits": lambda: quantized(bits=9),
    "symbol range": lambda: quantized(symbols=np.full((2, 4), 8, np.int8)),
    "symbol type": lambda: quantized(symbols=np.zeros((2, 4), np.int32)),
    "binary zero": lambda: quantized(kind=Kind.BINARY, bits=0),
    "ternary two": lambda: quantized(kind=Kind.TERNARY, bits=0, symbols=np.full((2, 4), 2, np.int8)),
    "number of scales": lambda: quantized(scales=np.ones(3, np.float16)),
    "zero points missing": lambda: quantized(kind=Kind.ASYMMETRIC, symbols=np.zeros((2, 4), np.uint8)),
    "zero points unasked": lambda: quantized(zero_points=np.zeros(2, np.uint8)),
    "row order": lambda: quantized(row_order=np.array([0, 0])),
    "integers as plain": lambda: PlainTensor(np.zeros(3, np.int32)),  # type: ignore[arg-type]
    "log8 values": lambda: PlainTensor(np.zeros(3, np.float32), FloatType.LOG8),
    "dimensions": lambda: PlainTensor(np.zeros((1,) * 9, np.float32)),
    "factor shapes": lambda: LowRank(
        PlainTensor(np.zeros((2, 3), np.float32)), PlainTensor(np.zeros((2, 4), np.float32))
    ),
    "correction shape": lambda: quantized(
        low_rank=LowRank(PlainTensor(np.zeros((3, 1), np.float32)), PlainTensor(np.zeros((1, 4), np.float32)))
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_impossible_tensors(name: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        BAD_TENSORS[name]()
    assert caught.value.code == ErrorCode.CONTENT


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": {"a": float("nan")}},
        {"configuration": {"a": {1, 2}}},
        {"configuration": {"a": "x" * 70_000}},
        {"tokenizer_sha256": "abc"},
        {"tensors": {"../../etc/passwd\n": quantized()}},
        {"tensors": {"w": PlainTensor(np.array([np.inf], np.float32))}},
        {"tensors": {"w": PlainTensor(np.array([1.001], np.float32), FloatType.BFLOAT16)}},
        {"tensors": {"w": quantized(scales=np.array([1.0, 0.1], np.float32))}},
        {"ties": {"head": "nothing"}},
    ],
)
def test_impossible_contents(changes: dict[str, Any]) -> None:
    arguments = {"configuration": {}, "tokenizer_sha256": "00" * 32, "tensors": {}, **changes}
    with pytest.raises(ArtifactError) as caught:
        writer.encode(Content(**arguments))
    assert caught.value.code == ErrorCode.CONTENT
