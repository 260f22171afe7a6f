import itertools
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.text.shards import DataFolder, TokenStream, open_shard, write_shard


def test_the_format_byte_for_byte(tmp_path):
    path = tmp_path / "x_train_000000.bin"
    write_shard(path, np.array([1, 2, 65535]))
    expected = struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 1, 2, 65535)
    assert path.read_bytes() == expected
    tokens = open_shard(path)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [1, 2, 65535]
    assert not tokens.flags.writeable


@pytest.mark.parametrize("tokens", [[-1], [65536], [[1, 2]]])
def test_writer_refuses_what_16_bits_do_not_hold(tokens, tmp_path):
    with pytest.raises(ValueError, match="from 0 to 65535"):
        write_shard(tmp_path / "s.bin", np.array(tokens))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_shard(tmp_path, monkeypatch):
    path = tmp_path / "s.bin"
    write_shard(path, np.array([7]))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(path, np.array([8, 9]))
    assert open_shard(path).tolist() == [7]
    assert [file.name for file in tmp_path.iterdir()] == ["s.bin"]


def header(magic: int = 20240520, version: int = 1, num_tokens: int = 4) -> bytes:
    return struct.pack("<256i", magic, version, num_tokens, *[0] * 253)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, too short for a shard's header of 1024"),
        (header()[:1023], "1023 bytes, too short"),
        (header(magic=20240521) + bytes(8), "magic number 20240521 is not a token shard's 20240520"),
        (header(version=2) + bytes(8), "shard version 2, accepted is 1"),
        (header(num_tokens=-1), "header announces -1 tokens"),
        (header() + bytes(7), "cut short: 4 tokens need 1032 bytes, the file has 1031"),
        (header(), "cut short: 4 tokens need 1032 bytes, the file has 1024"),
        (header() + bytes(10), "too long: 4 tokens need 1032 bytes, the file has 1034"),
        (header(num_tokens=5) + bytes(8), "cut short: 5 tokens need 1034 bytes, the file has 1032"),
    ],
)
def test_broken_shards_are_refused_by_name(content, message, tmp_path):
    path = tmp_path / "bad_train_000000.bin"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        open_shard(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    with pytest.raises(InputError, match="bad_train_000000"):
        DataFolder.open(tmp_path).train  # noqa: B018


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    picks=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=10),
)
def test_a_stream_reads_as_its_shards_joined(lengths, picks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    whole = np.arange(sum(lengths), dtype=np.uint16)
    edges = np.cumsum([0, *lengths])
    paths = []
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        paths.append(folder / f"x_train_{number:06d}.bin")
        write_shard(paths[-1], whole[start:end])
    stream = TokenStream(paths)
    assert stream.num_tokens == len(whole)
    for start, count in picks:
        if start + count <= len(whole):
            assert stream.read(start, count).tolist() == whole[start : start + count].tolist()
        else:
            with pytest.raises(ValueError, match="of a stream of"):
                stream.read(start, count)
    assert stream.document_starts().tolist() == [position for position in range(len(whole)) if whole[position] == 1]


def community_folder(folder) -> None:
    """As the hosted exports look: no manifest, no tokenizer."""
    write_shard(folder / "fineweb_train_000000.bin", np.array([1, 5, 6, 1, 7]))
    write_shard(folder / "fineweb_val_000000.bin", np.array([1, 5]))
    write_shard(folder / "fineweb_val_000001.bin", np.array([6, 1, 8]))


def test_shards_by_others_are_read_unchanged(tmp_path):
    community_folder(tmp_path)
    data = DataFolder.open(tmp_path)
    assert data.train.read(0, 5).tolist() == [1, 5, 6, 1, 7]
    assert data.val.read(0, 5).tolist() == [1, 5, 6, 1, 8]
    assert (data.manifest, data.lossless, data.tokenizer_path) == (None, None, None)
    assert data.val_token_bytes is None
    assert data.val_document_bytes is None


def test_the_side_car_is_not_taken_for_validation_tokens(tmp_path):
    community_folder(tmp_path)
    write_shard(tmp_path / "fineweb_val_bytes_000000.bin", np.array([0, 9]))
    write_shard(tmp_path / "fineweb_val_bytes_000001.bin", np.array([9, 0, 9]))
    data = DataFolder.open(tmp_path)
    assert data.val.num_tokens == 5
    assert data.val_token_bytes.tolist() == [0, 9, 9, 0, 9]


@pytest.mark.parametrize("entries", [[[0, 9]], [[0, 9], [9, 0]], [[0, 9, 9, 0, 9]]])
def test_a_side_car_of_another_length_is_refused(entries, tmp_path):
    community_folder(tmp_path)
    for number, values in enumerate(entries):
        write_shard(tmp_path / f"fineweb_val_bytes_{number:06d}.bin", np.array(values))
    with pytest.raises(InputError, match="val_bytes shards hold"):
        DataFolder.open(tmp_path).val_token_bytes  # noqa: B018


def test_folders_without_data_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such data folder"):
        DataFolder.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no token shards"):
        DataFolder.open(tmp_path)
    write_shard(tmp_path / "a_train_000000.bin", np.zeros(0, np.uint16))
    data = DataFolder.open(tmp_path)
    with pytest.raises(InputError, match="the train shards hold no tokens"):
        data.train  # noqa: B018
    with pytest.raises(InputError, match=r"no \*_val_NNNNNN.bin shards"):
        data.val  # noqa: B018
    write_shard(tmp_path / "b_train_000000.bin", np.array([1]))
    with pytest.raises(InputError, match="several data sets in one folder: a, b"):
        DataFolder.open(tmp_path)


def test_a_gap_between_shards_is_refused(tmp_path):
    for number in (3, 4, 6):
        write_shard(tmp_path / f"x_train_{number:06d}.bin", np.array([1]))
    with pytest.raises(InputError, match=r"missing between x_train_000004\.bin and x_train_000006\.bin"):
        DataFolder.open(tmp_path)
    (tmp_path / "x_train_000006.bin").unlink()
    assert DataFolder.open(tmp_path).train.num_tokens == 2


@pytest.mark.parametrize(
    ("manifest", "message"),
    [("{", "not a JSON manifest"), ("[]", "the manifest lacks lossless, splits"), ('{"splits": {}}', "lacks lossless")],
)
def test_a_broken_manifest_is_refused(manifest, message, tmp_path):
    community_folder(tmp_path)
    (tmp_path / "data.json").write_text(manifest)
    with pytest.raises(InputError, match=message):
        DataFolder.open(tmp_path)


def test_per_document_counts_must_be_counts(tmp_path):
    community_folder(tmp_path)
    (tmp_path / "data.json").write_text(
        json.dumps({"tokenizer": "x", "tokenizer_sha256": "0", "vocab_size": 9, "lossless": True, "splits": {}})
    )
    path = tmp_path / "fineweb_val_documents.npy"
    np.save(path, np.array([1.5, 2.5]))
    with pytest.raises(InputError, match="expected uint32 counts, found float64"):
        DataFolder.open(tmp_path).val_document_bytes  # noqa: B018
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a NumPy array file"):
        DataFolder.open(tmp_path).val_document_bytes  # noqa: B018
    np.save(path, np.array([3, 4], np.uint32))
    assert DataFolder.open(tmp_path).val_document_bytes.tolist() == [3, 4]
