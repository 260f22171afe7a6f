"""What is written is read back, and the same content gives the same bytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from artifact import artifact_pb2, reader, writer
from artifact.content import Content, PlainTensor, QuantizedTensor, Tensor
from artifact.dequantize import dequantize
from artifact.schema import Codec
from tests.artifact.contents import good_contents, integers

GOOD = good_contents()


def assert_same_tensor(first: Tensor, second: Tensor) -> None:
    assert type(first) is type(second)
    assert first.shape == second.shape
    if isinstance(first, PlainTensor):
        assert isinstance(second, PlainTensor)
        assert first.float_type == second.float_type
        assert first.values.astype(np.float32).tobytes() == second.values.astype(np.float32).tobytes()
        return
    assert isinstance(first, QuantizedTensor)
    assert isinstance(second, QuantizedTensor)
    for name in ("bits", "kind", "group_size", "scale_type"):
        assert getattr(first, name) == getattr(second, name)
    assert np.array_equal(first.symbols, second.symbols)
    assert np.array_equal(first.scales.astype(np.float32).reshape(-1), second.scales.reshape(-1))
    for name in ("zero_points", "row_order"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)
    assert (first.low_rank is None) == (second.low_rank is None)
    if first.low_rank is not None and second.low_rank is not None:
        assert_same_tensor(first.low_rank.left, second.low_rank.left)
        assert_same_tensor(first.low_rank.right, second.low_rank.right)


@pytest.mark.parametrize("name", GOOD)
def test_content_survives(name: str, tmp_path: Path) -> None:
    content = GOOD[name]
    path = tmp_path / "a.albatross"
    ledger = writer.write(path, content)
    artifact = reader.read(path)
    assert artifact.configuration == content.configuration
    assert artifact.tokenizer_sha256 == content.tokenizer_sha256
    assert artifact.code == content.code
    read_back = artifact.content()
    assert read_back.ties == content.ties
    assert set(read_back.tensors) == set(content.tensors)
    for tensor_name, tensor in content.tensors.items():
        assert_same_tensor(tensor, read_back.tensors[tensor_name])
    arrays = artifact.arrays()
    for tensor_name, tensor in content.tensors.items():
        assert arrays[tensor_name].dtype == np.float32
        assert np.array_equal(arrays[tensor_name], dequantize(tensor))
    for tied, target in content.ties.items():
        assert arrays[tied] is arrays[target]
    assert writer.encode(read_back) == path.read_bytes()
    assert ledger.total_bytes == path.stat().st_size == sum(row.coded_bytes for row in ledger.rows)
    assert sum(row.num_weights for row in ledger.rows) >= sum(array.size for array in arrays.values()) - sum(
        arrays[tied].size for tied in content.ties
    )


@pytest.mark.parametrize("name", GOOD)
def test_any_protobuf_tool_reads_it(name: str) -> None:
    content = GOOD[name]
    data = writer.encode(content)
    message = artifact_pb2.Artifact.FromString(data)
    assert message.manifest.tokenizer_sha256.hex() == content.tokenizer_sha256
    assert message.code == content.code
    assert len(message.stream) == len(message.manifest.group)
    assert message.sha256.hex() == reader.parse(data).sha256


def test_order_of_the_mapping_does_not_matter() -> None:
    content = GOOD["layers"]
    reversed_tensors = dict(reversed(list(content.tensors.items())))
    reversed_configuration = dict(reversed(list(content.configuration.items())))
    other = Content(reversed_configuration, content.tokenizer_sha256, reversed_tensors, content.code)
    assert writer.encode(other) == writer.encode(content)


PROGRAM = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from artifact import writer
from tests.artifact.contents import good_contents
contents = good_contents()
names = sorted(contents, reverse=sys.argv[2] == "1")
print(sorted((name, hashlib.sha256(writer.encode(contents[name])).hexdigest()) for name in names))
"""


def outputs_of_processes(num_processes: int, folders: list[Path]) -> set[bytes]:
    """What PROGRAM prints under different hash seeds, thread counts and working directories."""
    repository = Path(__file__).resolve().parents[2]
    return {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(repository), str(seed)],
            env={"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(1 + seed % 2), "PATH": ""},
            cwd=folders[seed % len(folders)],
            check=True,
            capture_output=True,
        ).stdout
        for seed in range(num_processes)
    }


def test_same_bytes_in_other_processes(tmp_path: Path) -> None:
    outputs = outputs_of_processes(3, [tmp_path, Path.cwd()])
    assert len(outputs) == 1
    assert b"layers" in outputs.pop()


@pytest.mark.slow
def test_same_bytes_in_twenty_processes(tmp_path: Path) -> None:
    assert len(outputs_of_processes(20, [tmp_path, Path.cwd(), Path("/")])) == 1


def test_symbols_of_trained_like_matrices_take_less_than_their_bits() -> None:
    rng = np.random.default_rng(0)
    symbols = np.clip(np.rint(rng.normal(size=(512, 256)) * 2.4), -31, 31).astype(np.int8)
    content = Content({}, "00" * 32, {"w": QuantizedTensor(symbols, np.ones(512, np.float16), 6)})
    ledger = reader.parse(writer.encode(content)).ledger()
    # The entropy of the symbols is 3.31 bits.
    assert ledger.rows[0].bits_per_weight is not None
    assert 3.2 < ledger.rows[0].bits_per_weight < 3.6


def test_constant_symbols_keep_within_the_expansion_rule() -> None:
    symbols = np.zeros((1024, 1024), dtype=np.int8)
    content = Content({}, "00" * 32, {"w": QuantizedTensor(symbols, np.ones(1024, np.float16), 6)})
    assert not reader.parse(writer.encode(content)).arrays()["w"].any()


def test_float_formats_of_factors_and_uncorrected_weights_are_left_alone() -> None:
    tensor = integers(9, (12, 32))
    corrected = good_contents()["low_rank"].tensors["asymmetric_factors"]
    assert isinstance(corrected, QuantizedTensor)
    assert corrected.low_rank is not None
    left, right = dequantize(corrected.low_rank.left), dequantize(corrected.low_rank.right)
    base = dequantize(QuantizedTensor(corrected.symbols, corrected.scales, corrected.bits))
    np.testing.assert_allclose(dequantize(corrected), base + left @ right, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(dequantize(corrected), base)
    assert np.array_equal(dequantize(tensor), tensor.symbols * tensor.scales[:, None])


def test_many_narrow_groups_stay_within_the_steps_that_a_file_may_take() -> None:
    """The entropy coder takes a step for each line, however short; files of many such groups must be readable."""
    tensors = {f"w{index}": integers(index, (2000 + index, 20), spread=0.05) for index in range(12)}
    content = Content({}, "00" * 32, tensors)
    artifact = reader.parse(writer.encode(content))
    codecs = {group.parts[0].codec for group in artifact.manifest.groups}
    assert Codec.RANS in codecs
    assert codecs != {Codec.RANS}
    arrays = artifact.arrays()
    assert all(np.array_equal(arrays[name], dequantize(tensor)) for name, tensor in tensors.items())
