import fcntl
import io
import itertools
import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard

from launch.data.prepare import prepare
from launch.data.split_writer import EncodedDocuments, SplitWriter
from launch.data.verify import verify
from model.errors import InputError
from model.text import sentencepiece_model
from model.text.shards import DataFolder
from model.text.tokenizer import BOS_ID, Tokenizer
from tests.text.conftest import PARAGRAPH, VECTORS

COMMUNITY = VECTORS / "tokenizers" / "fineweb_8192_bpe.model"
CASEOPS = VECTORS / "tokenizers" / "fineweb_8192_bpe_caseops.model"
TEXTS = [f"Chapter {number}.\n\n{PARAGRAPH * (number % 3)}The end of {number}.\n" for number in range(24)]
HARD = ["▁ literal \ue004 marks ▁", "  edges \t\r\n", "½ ﬁ e\u0301 日本 \x00 \u200b", "NASA iPhone"]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 3, "text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


@pytest.fixture
def books(tmp_path) -> Path:
    """A directory with JSON lines, zstd and a text file; val.jsonl is validation."""
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(json_lines(TEXTS[:10]))
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(json_lines(TEXTS[10:])))
    (folder / "c.txt").write_text(PARAGRAPH, encoding="utf-8")
    (folder / "readme.rst").write_text("not a document")
    (folder / "val.jsonl").write_bytes(json_lines([TEXTS[3].lower(), *HARD]))
    return folder


def documents(data: DataFolder, split: str) -> list[str]:
    tokenizer = Tokenizer.load(data.tokenizer_path)
    stream = getattr(data, split)
    starts = [*stream.document_starts().tolist(), stream.num_tokens]
    assert starts[0] == 0
    return [tokenizer.decode(stream.read(start + 1, end - start - 1)) for start, end in itertools.pairwise(starts)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_directory_with_a_trained_tokenizer_comes_back_as_it_was(books, tmp_path, num_workers):
    out = tmp_path / "out"
    manifest = prepare(books, "train:420", out, num_workers=num_workers, quiet=True)
    data = DataFolder.open(out)
    assert documents(data, "train") == [*TEXTS, PARAGRAPH]
    assert documents(data, "val") == [TEXTS[3].lower(), *HARD]
    assert data.manifest == manifest
    assert data.lossless is True
    val_bytes = [len(text.encode()) for text in [TEXTS[3].lower(), *HARD]]
    assert data.val_document_bytes.tolist() == val_bytes
    starts = data.val.document_starts()
    assert np.add.reduceat(data.val_token_bytes, starts).tolist() == val_bytes
    assert data.val_token_bytes[starts].tolist() == [0] * 5
    assert manifest["splits"]["val"] == {
        "documents": 5,
        "empty_documents": 0,
        "tokens": data.val.num_tokens,
        "text_bytes": sum(val_bytes),
        "uncredited_bytes": 0,
        "changed_bytes": 0,
    }
    assert sorted(path.name for path in out.iterdir()) == sorted([*manifest["files"], "data.json"])


def test_a_trained_caseops_tokenizer_is_lossless(books, tmp_path):
    manifest = prepare(books, "train:420", tmp_path / "out", num_workers=2, case_operators=True, quiet=True)
    data = DataFolder.open(tmp_path / "out")
    assert Tokenizer.load(data.tokenizer_path).is_caseops
    assert documents(data, "train") == [*TEXTS, PARAGRAPH]
    assert documents(data, "val") == [TEXTS[3].lower(), *HARD]
    assert manifest["tokenizer"] == "caseops"
    assert manifest["lossless"] is True
    assert manifest["splits"]["val"]["text_bytes"] == int(data.val_token_bytes.sum())


@pytest.mark.parametrize("case_operators", [False, True])
def test_a_challenge_tokenizer_has_the_challenges_settings(case_operators, books, tmp_path):
    manifest = prepare(
        books, "train:330", tmp_path / "out", num_workers=1, challenge=True, case_operators=case_operators, quiet=True
    )
    assert manifest["lossless"] is False
    trained = Tokenizer.load(tmp_path / "out" / "tokenizer.model")
    published = Tokenizer.load(CASEOPS if case_operators else COMMUNITY)
    num_fixed = 4 + 4 * case_operators + 256
    assert trained.model.pieces[:num_fixed] == published.model.pieces[:num_fixed]
    assert trained.model.types[:num_fixed] == published.model.types[:num_fixed]
    for field in ("model_type", "byte_fallback", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(trained.model, field) == getattr(published.model, field), field
    assert stated_settings(trained) == stated_settings(published)


# Fields of the trainer's settings in sentencepiece_model.proto that say where text came from, how many pieces and how
# much was printed, not how to train.
INPUT, MODEL_PREFIX, VOCAB_SIZE, INPUT_FORMAT, NUM_THREADS = 1, 2, 4, 7, 16


def stated_settings(tokenizer: Tokenizer) -> dict[str, list[int | bytes]]:
    """The settings that a model file states: all that are not SentencePiece's defaults."""
    of_message = dict(sentencepiece_model._fields(tokenizer.serialized))
    stated: dict[str, list[int | bytes]] = {"normalizer": [dict(sentencepiece_model._fields(of_message[3]))[1]]}
    for field, value in sentencepiece_model._fields(of_message[2]):
        if field not in (INPUT, MODEL_PREFIX, VOCAB_SIZE, INPUT_FORMAT, NUM_THREADS):
            stated.setdefault(f"trainer {field}", []).append(value)
    return stated


def test_any_number_of_workers_writes_the_same_bytes(books, tmp_path):
    for num_workers in (1, 2):
        prepare(
            books, COMMUNITY, tmp_path / f"out{num_workers}", num_workers=num_workers, shard_tokens=1000, quiet=True
        )
    first, second = tmp_path / "out1", tmp_path / "out2"
    names = sorted(path.name for path in first.iterdir())
    assert "text_train_000002.bin" in names
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_documents_longer_than_a_shard_straddle_shards(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(json_lines(TEXTS))
    prepare(source, COMMUNITY, tmp_path / "small", val_documents=4, shard_tokens=64, num_workers=1, quiet=True)
    prepare(source, COMMUNITY, tmp_path / "large", val_documents=4, num_workers=1, quiet=True)
    small, large = DataFolder.open(tmp_path / "small"), DataFolder.open(tmp_path / "large")
    assert len(small.train_paths) > 20
    assert all(len(shard) == 64 for shard in small.train.shards[:-1])
    for split in ("train", "val"):
        one, other = getattr(small, split), getattr(large, split)
        assert np.array_equal(one.read(0, one.num_tokens), other.read(0, other.num_tokens))
    assert np.array_equal(small.val_token_bytes, large.val_token_bytes)
    assert len(small.val_document_bytes) == 4


@pytest.mark.parametrize("tokenizer", [COMMUNITY, CASEOPS])
def test_a_normalizing_tokenizer_is_reported_as_lossy(tokenizer, books, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = prepare(books, tokenizer, out, num_workers=1)
    data = DataFolder.open(out)
    model = Tokenizer.load(tokenizer)
    assert data.lossless is False
    assert Path(data.tokenizer_path).read_bytes() == Path(tokenizer).read_bytes()
    texts = [TEXTS[3].lower(), *HARD]
    val = manifest["splits"]["val"]
    assert val["changed_bytes"] == sum(model.encode_text(text).changed_bytes for text in texts) > 0
    assert val["uncredited_bytes"] == sum(model.encode_text(text).uncredited_bytes for text in texts) > 0
    assert int(data.val_token_bytes.sum()) + val["uncredited_bytes"] == sum(len(text.encode()) for text in texts)
    assert f"{val['changed_bytes']} bytes changed" in (printed := capsys.readouterr().out)
    assert "lossless: false" in printed


def test_the_first_documents_can_be_validation_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.data.prepare._BATCH_BYTES", 1500)
    source = tmp_path / "in.jsonl"
    texts = ["", *TEXTS[:5], "", *TEXTS[5:], ""]
    source.write_bytes(json_lines(texts))
    for num_val in (1, 5, 6, 23):
        out = tmp_path / f"out{num_val}"
        manifest = prepare(source, COMMUNITY, out, val_documents=num_val, num_workers=1, quiet=True)
        data = DataFolder.open(out)
        assert len(data.val.document_starts()) == num_val
        assert len(data.train.document_starts()) == len(TEXTS) - num_val
        splits = manifest["splits"].values()
        assert sum(split["empty_documents"] for split in splits) == 3


def test_validation_from_elsewhere(tmp_path):
    train, val = tmp_path / "train.txt", tmp_path / "other.txt"
    train.write_text(PARAGRAPH)
    val.write_text("held out")
    prepare(train, COMMUNITY, tmp_path / "out", val_input=val, num_workers=1, quiet=True)
    assert documents(DataFolder.open(tmp_path / "out"), "val") == ["held out"]


def test_validation_files_are_known_by_name_in_directories_only(tmp_path):
    folder = tmp_path / "validation-texts"
    for name in ("valid/a.txt", "val_01.txt", "Validation.md", "value.txt", "nested/valley.txt", ".hidden/x.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    prepare(folder, COMMUNITY, tmp_path / "out", num_workers=1, quiet=True)
    data = DataFolder.open(tmp_path / "out")
    assert documents(data, "val") == ["Validation.md", "val_01.txt", "valid/a.txt"]
    assert documents(data, "train") == ["nested/valley.txt", "value.txt"]


def bad_input(tmp_path: Path, kind: str) -> tuple[Path, str]:
    """An input and the part of the message that names what is wrong with it."""
    path = tmp_path / "in.jsonl"
    good = json_lines(TEXTS[:3])
    if kind == "not UTF-8":
        path.write_bytes(good + b'{"text": "\xff"}\n')
        return path, r"in\.jsonl line 4: not UTF-8 \(byte 0xff at offset 10\)"
    if kind == "text not UTF-8":
        path = tmp_path / "in.txt"
        path.write_bytes(b"abc\x80")
        return path, r"in\.txt: not UTF-8 \(byte 0x80 at offset 3\)"
    if kind == "no text":
        path.write_bytes(good + b'\n{"txt": "x"}\n')
        return path, r'in\.jsonl line 5: not an object with a string "text"'
    if kind == "text is a number":
        path.write_bytes(good + b'{"text": 3}')
        return path, r'in\.jsonl line 4: not an object with a string "text"'
    if kind == "not JSON":
        path.write_bytes(b'{"text": "cut')
        return path, r"in\.jsonl line 1: not JSON"
    if kind == "surrogate":
        path.write_bytes(good + b'{"text": "a\\ud800"}\n')
        return path, r"in\.jsonl line 4: the text holds an unpaired surrogate at character 1"
    if kind == "huge white space":
        path.write_bytes(good + json_lines(["a" + " " * 70_000 + "b"]))
        return path, r"in\.jsonl line 4: one token stands for 70001 bytes"
    if kind == "zstd cut short":
        path = tmp_path / "in.jsonl.zst"
        path.write_bytes(zstandard.compress(json_lines(TEXTS))[:-9])
        return path, r"in\.jsonl\.zst: the zstd file is cut short"
    if kind == "not zstd":
        path = tmp_path / "in.jsonl.zst"
        path.write_bytes(json_lines(TEXTS))
        return path, r"in\.jsonl\.zst: not a zstd file"
    if kind == "missing":
        return tmp_path / "none", "none: no such file or directory"
    if kind == "empty directory":
        path = tmp_path / "empty"
        path.mkdir()
        return path, r"empty: no documents \(\.txt"
    if kind == "unknown suffix":
        path = tmp_path / "in.csv"
        path.touch()
        return path, "unknown kind of document file; accepted are .txt"
    if kind == "only empty documents":
        path.write_bytes(json_lines(["", ""]))
        return path, "no validation documents"
    path.write_bytes(json_lines(TEXTS[:2]))
    return path, "no training documents"


KINDS = [
    "not UTF-8",
    "text not UTF-8",
    "no text",
    "text is a number",
    "not JSON",
    "surrogate",
    "huge white space",
    "zstd cut short",
    "not zstd",
    "missing",
    "empty directory",
    "unknown suffix",
    "only empty documents",
    "nothing left for training",
]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_input_is_named_and_leaves_nothing(kind, num_workers, tmp_path):
    source, message = bad_input(tmp_path, kind)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(InputError, match=message) as error:
        prepare(source, COMMUNITY, place / "out", val_documents=2, num_workers=num_workers, quiet=True)
    assert "\n" not in str(error.value)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_documents": 0}, "--val-documents 0: accepted are 1 and more"),
        ({"val_documents": 1, "val_input": "x.txt"}, "exclude each other"),
        ({}, r"no validation documents: name some \(--val-input"),
        ({"val_documents": 1, "num_workers": 0}, "workers 0"),
        ({"val_documents": 1, "shard_tokens": 0}, "shard tokens 0"),
        ({"val_documents": 1, "name": "a/b"}, "data name 'a/b'"),
        ({"val_documents": 1, "tokenizer": "train:many"}, "after 'train:' comes the number of pieces"),
        ({"val_documents": 1, "tokenizer": "train:70000"}, "vocabulary 70000: accepted are"),
        ({"val_documents": 1, "tokenizer": "train:60000"}, "training with 60000 pieces failed"),
        ({"val_documents": 1, "case_operators": True}, "bpe.model: --caseops needs a tokenizer with the four CaseOps"),
        ({"val_documents": 1, "challenge": True}, "--challenge is a way to train a tokenizer"),
        ({"val_documents": 1, "tokenizer": "none.model"}, "none.model: cannot read the tokenizer"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(options, message, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    source = tmp_path / "in.jsonl"
    source.write_bytes(json_lines(TEXTS))
    tokenizer = options.pop("tokenizer", COMMUNITY)
    if "val_input" in options:
        options["val_input"] = tmp_path / options["val_input"]
    with pytest.raises(InputError, match=message):
        prepare(source, tokenizer, tmp_path / "out", quiet=True, **{"num_workers": 1, **options})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "x.txt"]


def test_an_existing_folder_is_kept_unless_told(books, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(InputError, match="out: already exists"):
        prepare(books, COMMUNITY, out, num_workers=1, quiet=True)
    assert (out / "mine").read_text() == "precious"
    prepare(books, COMMUNITY, out, num_workers=1, quiet=True, overwrite=True)
    assert not (out / "mine").exists()
    assert DataFolder.open(out).val.num_tokens > 0
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_what_a_killed_run_left_is_cleared_and_a_running_one_is_respected(books, tmp_path):
    left = tmp_path / ".out.part"
    left.mkdir()
    (left / "text_train_000000.bin").write_text("half")
    descriptor = os.open(left, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="out: another data prepare is writing it"):
            prepare(books, COMMUNITY, tmp_path / "out", num_workers=1, quiet=True)
        assert (left / "text_train_000000.bin").read_text() == "half"
    finally:
        os.close(descriptor)
    prepare(books, COMMUNITY, tmp_path / "out", num_workers=1, quiet=True)
    assert not left.exists()
    assert verify(tmp_path / "out", quiet=True).ledger_proved


def test_a_full_disk_leaves_nothing(books, tmp_path, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        prepare(books, COMMUNITY, tmp_path / "out", num_workers=1, quiet=True)
    assert caught.value.filename == str(tmp_path / "out")
    assert calls
    assert [path.name for path in tmp_path.iterdir()] == ["books"]


def test_a_dead_worker_is_noticed(books, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.data.encoding.encode_documents", lambda *_: os._exit(9))
    with pytest.raises(Exception, match="terminated abruptly"):
        prepare(books, COMMUNITY, tmp_path / "out", num_workers=2, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["books"]


def encoded(**changes: object) -> EncodedDocuments:
    fields = {
        "ids": np.array([BOS_ID, 300, 301, BOS_ID, 302], np.uint16),
        "token_bytes": np.array([0, 2, 3, 0, 4], np.uint16),
        "document_tokens": np.array([3, 2]),
        "text_bytes": np.array([5, 5]),
        "uncredited_bytes": np.array([0, 1]),
        "changed_bytes": np.array([0, 2]),
        "num_empty": 0,
    }
    return EncodedDocuments(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "lossless", "message"),
    [
        ({"text_bytes": np.array([5, 4])}, False, "document 1: 4 bytes credited, 1 stripped, but its text has 4"),
        ({"token_bytes": np.array([0, 2, 4, 0, 4], np.uint16)}, False, "document 0: 6 bytes credited"),
        ({}, True, "document 1: 4 bytes credited, 1 stripped"),
        ({"ids": np.array([BOS_ID, 300, 301, 7, 302], np.uint16)}, False, "do not begin with one BOS each"),
        ({"ids": np.array([BOS_ID, 300, 301, BOS_ID, BOS_ID], np.uint16)}, False, "do not begin with one BOS each"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_never_written(changes, lossless, message, tmp_path):
    writer = SplitWriter(tmp_path, "x", "val", 100, lossless=lossless, with_bytes=True)
    with pytest.raises(RuntimeError, match=message):
        writer.write(encoded(**changes))
    assert list(tmp_path.iterdir()) == []
    SplitWriter(tmp_path, "x", "val", 100, lossless=False, with_bytes=True).write(encoded())


def test_progress_is_plain_lines_where_there_is_no_terminal(books, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("launch.data.progress._LINE_INTERVAL_SECONDS", 0.0)
    prepare(books, "train:420", tmp_path / "out", num_workers=1)
    printed = capsys.readouterr()
    assert "training a tokenizer of 420 pieces" in printed.err
    assert re.search(r"^data prepare: 100% after \d+ s .* M tokens$", printed.err, re.MULTILINE)
    assert "\r" not in printed.err
    assert "lossless: true" in printed.out


def test_progress_is_a_bar_on_a_terminal(books, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, threads = Terminal(), set(threading.enumerate())
    monkeypatch.setattr("sys.stderr", terminal)
    prepare(books, COMMUNITY, tmp_path / "out", num_workers=1)
    shown = terminal.getvalue()
    assert "data prepare: 100%" in shown
    assert "M tokens" in shown
    assert "\r" in shown
    assert set(threading.enumerate()) <= threads
