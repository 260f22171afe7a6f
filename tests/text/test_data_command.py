import argparse
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from launch.data import command, fetch
from launch.data.prepare import SHARD_TOKENS, prepare
from launch.data.verify import verify
from tests.text.test_prepare import COMMUNITY, TEXTS, json_lines

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(map(str, arguments))))


def test_prepare_then_verify(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_bytes(json_lines(TEXTS))
    out = tmp_path / "out"
    options = ("--val-documents", 3, "--num-workers", 1, "--name", "books", "--shard-tokens", 500, "--caseops")
    assert run("prepare", "--input", tmp_path / "in.jsonl", "--tokenizer", "train:420", "--out", out, *options) == 0
    assert "lossless: true" in capsys.readouterr().out
    assert (out / "books_train_000001.bin").is_file()
    assert run("verify", out) == 0
    printed = capsys.readouterr().out
    assert printed == verify(out, quiet=True).format() + "\n"
    assert "ledger: proved" in printed


def test_challenge_is_passed_on(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_bytes(json_lines(TEXTS))
    arguments = ("--input", tmp_path / "in.jsonl", "--val-documents", 3, "--num-workers", 1, "--challenge")
    assert run("prepare", *arguments, "--tokenizer", "train:330", "--out", tmp_path / "out") == 0
    assert "lossless: false" in capsys.readouterr().out


def test_verify_takes_a_tokenizer(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_bytes(json_lines(TEXTS))
    prepare(tmp_path / "in.jsonl", COMMUNITY, tmp_path / "out", val_documents=2, num_workers=1, quiet=True)
    for name in ("tokenizer.model", "data.json", "text_val_documents.npy"):
        (tmp_path / "out" / name).unlink()
    assert run("verify", tmp_path / "out", "--tokenizer", COMMUNITY) == 0
    assert "vocabulary: 8192   lossless: unknown" in capsys.readouterr().out


def test_fetch_passes_its_options_on(tmp_path, monkeypatch, capsys):
    asked = {}

    def record(variant, out, **options):
        asked.update(variant=variant, out=out, **options)
        return fetch.FetchRecord(variant, "a/b", "c0ffee", {})

    monkeypatch.setattr(fetch, "fetch_fineweb", record)
    assert run("fetch", "fineweb", "--variant", "sp8192", "--out", tmp_path, "--shards", 2, "--offline") == 0
    assert asked == {"variant": "sp8192", "out": tmp_path, "num_shards": 2, "offline": True, "revision": "main"}
    assert "from a/b at c0ffee" in capsys.readouterr().out


def test_documentation_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.data.corpus.python_documentation", lambda: (["a"], ["b"]))
    assert run("documentation", "--out", tmp_path / "docs") == 0
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["train.jsonl", "val.jsonl"]


def test_defaults_agree_with_the_functions():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["prepare", "--input", "i", "--tokenizer", "t", "--out", "o"])
    defaults = {name: parameter.default for name, parameter in inspect.signature(prepare).parameters.items()}
    assert options.name == defaults["name"]
    assert options.shard_tokens == defaults["shard_tokens"] == SHARD_TOKENS
    assert tuple(fetch.VARIANTS) == command.VARIANT_NAMES


@pytest.mark.parametrize("heavy", ["numpy", "sentencepiece", "huggingface_hub", "torch"])
def test_the_options_alone_import_nothing_heavy(heavy):
    program = f"import launch.data.command, sys; sys.exit({heavy!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
