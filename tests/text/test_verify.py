import hashlib
import json
import shutil

import numpy as np
import pytest

from launch.data.prepare import prepare
from launch.data.verify import shard_hashes, verify
from model.errors import InputError
from model.text import fineweb
from model.text.shards import DataFolder, write_shard
from model.text.tokenizer import Tokenizer
from tests.text.test_prepare import CASEOPS, COMMUNITY, TEXTS, json_lines

VOCAB = 420


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "in.jsonl").write_bytes(json_lines(TEXTS))
    prepare(
        folder / "in.jsonl",
        f"train:{VOCAB}",
        folder / "out",
        val_documents=5,
        shard_tokens=900,
        num_workers=1,
        quiet=True,
    )
    return folder / "out"


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy to damage."""
    return shutil.copytree(prepared, tmp_path / "data")


def test_a_prepared_folder_is_proved(prepared):
    found = verify(prepared, quiet=True)
    assert found.ledger_proved
    assert found.lossless is True
    assert found.vocab_size == VOCAB
    assert found.hashes_checked
    assert found.fineweb_differences is None
    train, val = found.splits
    assert (train.num_documents, val.num_documents) == (len(TEXTS) - 5, 5)
    assert val.text_bytes == val.credited_bytes == sum(len(text.encode()) for text in TEXTS[:5])
    assert train.num_shards > 3
    text = found.format()
    assert "ledger: proved" in text
    assert "lossless: true" in text
    assert all(f"  {digest}  {name}" in text for name, digest in found.hashes.items())
    assert len(found.hashes) == train.num_shards + 2 * val.num_shards + 2


def test_shards_by_others_are_unproved(tmp_path, community):
    ids = community.encode("The tern crossed the bay.")
    write_shard(tmp_path / "fineweb_train_000000.bin", np.array([1, *ids, 1, *ids]))
    write_shard(tmp_path / "fineweb_val_000000.bin", np.array([1, *ids]))
    found = verify(tmp_path, quiet=True)
    assert (found.ledger_proved, found.lossless, found.vocab_size, found.hashes_checked) == (False, None, None, False)
    assert "unproved: no tokenizer and no byte side-car" in found.format()
    found = verify(tmp_path, tokenizer_path=COMMUNITY, quiet=True)
    assert found.vocab_size == 8192
    assert found.splits[1].credited_bytes == len("The tern crossed the bay.")
    assert not found.ledger_proved
    assert found.fineweb_differences[0] == "1 documents instead of 50000"
    assert "FineWeb validation set: 1 documents instead of 50000" in found.format()
    assert shard_hashes(tmp_path) == {name: found.hashes[name] for name in found.hashes}


@pytest.mark.parametrize("tokenizer_path", [COMMUNITY, CASEOPS])
def test_fineweb_prepared_anew_is_held_against_the_bytes_as_published(tokenizer_path, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_bytes(json_lines([*TEXTS, *TEXTS]))
    prepare(
        tmp_path / "in.jsonl",
        tokenizer_path,
        tmp_path / "out",
        val_documents=40,
        name="fineweb",
        num_workers=1,
        quiet=True,
    )
    data, tokenizer = DataFolder.open(tmp_path / "out"), Tokenizer.load(tokenizer_path)
    num_targets = (data.val.num_tokens - 1) // 1024 * 1024
    assert num_targets
    tokens = data.val.read(0, num_targets + 1)
    by_rule = int(tokenizer.byte_table().token_bytes(tokens[:-1], tokens[1:]).sum())
    by_side_car = int(data.val_token_bytes[1 : num_targets + 1].sum(dtype=np.int64))
    assert by_rule < by_side_car  # line breaks
    num_bytes = by_side_car if tokenizer.is_caseops else by_rule
    monkeypatch.setattr(fineweb, "NUM_DOCUMENTS", 40)
    monkeypatch.setattr(
        fineweb, "FACTS", (fineweb.ValidationFacts("x", 8192, tokenizer.is_caseops, num_targets, num_bytes),)
    )
    found = verify(tmp_path / "out", quiet=True)
    assert found.fineweb_differences == ()
    assert "FineWeb validation set: agrees with the published figures" in found.format()


def test_hashes_of_shards_come_from_the_record(prepared):
    recorded = json.loads((prepared / "data.json").read_text())["files"]
    hashes = shard_hashes(prepared)
    assert hashes == {name: recorded[name]["sha256"] for name in recorded if name.endswith(".bin")}
    name = next(iter(hashes))
    assert hashes[name] == hashlib.sha256((prepared / name).read_bytes()).hexdigest()


def test_a_flipped_bit_is_named(folder):
    for path in sorted(folder.iterdir()):
        if path.name == "data.json":
            continue
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=path.name if path.suffix == ".bin" else "tokenizer|documents"):
            verify(folder, quiet=True)
        content[-1] ^= 1
        path.write_bytes(content)
    assert verify(folder, quiet=True).ledger_proved


def rewrite_manifest(folder, change):
    manifest = json.loads((folder / "data.json").read_text())
    change(manifest)
    (folder / "data.json").write_text(json.dumps(manifest))


def test_a_missing_file_is_named(folder):
    (folder / "text_train_000002.bin").unlink()
    with pytest.raises(InputError, match=r"text_train_000002\.bin: missing"):
        verify(folder, quiet=True)


def test_a_file_that_nobody_recorded_is_named(folder):
    number = len(list(folder.glob("text_train_*.bin")))
    write_shard(folder / f"text_train_{number:06d}.bin", np.array([1, 5]))
    with pytest.raises(InputError, match=rf"text_train_{number:06d}\.bin: not among the files recorded"):
        verify(folder, quiet=True)


@pytest.mark.parametrize(("split", "counter"), [("train", "documents"), ("val", "tokens")])
def test_figures_of_the_manifest_are_checked(split, counter, folder):
    rewrite_manifest(folder, lambda manifest: manifest["splits"][split].update({counter: 3}))
    with pytest.raises(InputError, match=rf"the {split} shards hold \d+ {counter}, the manifest says 3"):
        verify(folder, quiet=True)


def test_another_tokenizer_is_refused(folder):
    with pytest.raises(InputError, match="made with the tokenizer of sha256"):
        verify(folder, tokenizer_path=CASEOPS, quiet=True)


def test_tokens_outside_the_vocabulary_are_named(tmp_path):
    write_shard(tmp_path / "x_train_000000.bin", np.array([1, 5]))
    write_shard(tmp_path / "x_train_000001.bin", np.array([8192]))
    with pytest.raises(InputError, match=r"x_train_000001\.bin: token 8192 in a vocabulary of 8192"):
        verify(tmp_path, tokenizer_path=COMMUNITY, quiet=True)


def test_shards_without_a_first_bos_are_named(tmp_path):
    write_shard(tmp_path / "x_train_000000.bin", np.array([5, 1, 5]))
    with pytest.raises(InputError, match=r"x_train_000000\.bin: the train shards do not begin with a document's BOS"):
        verify(tmp_path, quiet=True)
