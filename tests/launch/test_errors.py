"""Errors that people will hit: one clear line, exit code 2, nothing half-written."""

import errno
import os
import struct
from pathlib import Path

import pytest

from launch.cli import main
from tests.launch.conftest import SMALL, VOCAB_SIZE


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def train(data: Path, out: Path, *more: object, preset: str = "tiny") -> list[object]:
    return ["train", preset, "--data", data, "--out", out, *SMALL, *more]


# Names


def test_unknown_preset_names_the_nearest(refused, data, tmp_path):
    refused(train(data, tmp_path / "out", preset="tinny"), "unknown preset tinny", "did you mean tiny?")
    refused(["presets", "show", "naive-base"], "did you mean naive-baseline?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command trian", "did you mean train?"]),
        (["data", "prepar"], ["unknown command prepar", "did you mean prepare?"]),
        (["evaluate", "x", "--data", "y", "--eval.stride-token", "3"], ["did you mean stride_tokens?"]),
        (["evaluate", "x", "--data", "y", "--eval.ttt.learnin-rate", "3"], ["did you mean ttt.learning_rate?"]),
        (["compare", "runs/a"], ["required: --vs"]),
        (["compare", "runs/nowhere", "--vs", "runs/nowhere"], ["runs/nowhere"]),
        (["inspect", "--jsn", "x"], ["unknown option --jsn", "did you mean --json?"]),
        (["train", "tiny", "--dta", "x"], ["unknown option --dta", "did you mean --data?"]),
        (["train", "tiny", "--model.num-layer", "4"], ["--model.num-layer", "did you mean --model.num-layers?"]),
        (["train", "tiny", "--trainig.seed=4"], ["--trainig.seed", "did you mean --training.seed?"]),
        (
            ["pack", "x", "--model.num-layers", "4"],
            ["--model.num-layers", "albatross pack takes no settings of section"],
        ),
        (["train", "tiny"], ["--data", "--out"]),
        (["evaluate", "x"], ["--data"]),
        (["evaluate", "x", "--dta", "y"], ["unknown option --dta", "did you mean --data?"]),
        (["evaluate", "x", "--data", "y", "--mode", "plane"], ["--mode", "'plane'"]),
        ([], ["which command?"]),
    ],
)
def test_misspelt_names_are_refused_with_the_nearest(refused, arguments, words):
    refused(arguments, *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["--model.num-layers", "four"], ["--model.num-layers", "'four'"]),
        (["--model.num-layers", "0"], ["model.num_layers", "accepts an integer of at least 1", "got 0"]),
        (["--model.num-layers"], ["--model.num-layers"]),
        (["--training.matrix.orthogonalization", "newton"], ["--training.matrix.orthogonalization", "newton_schulz"]),
        (["--training.batch-tokens", "100"], ["training.batch_tokens", "multiple of sequence_tokens"]),
        (["--quantization.matrix-bits", "9"], ["matrix_bits", "2 to 8"]),
        (["--eval.stride-tokens", "257"], ["stride_tokens", "at most context_tokens"]),
    ],
)
def test_override_out_of_range_names_the_field_and_what_it_accepts(refused, data, tmp_path, override, words):
    refused(train(data, tmp_path / "out", *override), *words)
    assert not (tmp_path / "out").exists()


# Data folders


def test_missing_data_folder(refused, tmp_path):
    refused(train(tmp_path / "nowhere", tmp_path / "out"), str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_empty_data_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(train(tmp_path / "empty", tmp_path / "out"), str(tmp_path / "empty"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [(0, 20240521, ["magic"]), (4, 2, ["version 2"]), (8, 10**6, ["cut short"]), (8, 5, ["too long"])],
)
def test_shard_with_a_wrong_header(refused, data, tmp_path, offset, value, words):
    shard = next(data.glob("*_train_000000.bin"))
    content = bytearray(shard.read_bytes())
    content[offset : offset + 4] = struct.pack("<i", value)
    shard.write_bytes(content)
    refused(train(data, tmp_path / "out"), str(shard), *words)
    assert not (tmp_path / "out").exists()


def test_shard_cut_short(refused, data, tmp_path):
    shard = next(data.glob("*_val_000000.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    refused(train(data, tmp_path / "out"), str(shard), "cut short")


def test_tokenizer_of_another_vocabulary_than_the_preset(refused, data, tmp_path):
    arguments = ["train", "tiny", "--data", data, "--out", tmp_path / "out"]
    refused(arguments, "tokenizer.model", str(VOCAB_SIZE), "1024", f"--model.vocab-size {VOCAB_SIZE}")
    assert not (tmp_path / "out").exists()


def test_data_prepare_leaves_nothing_behind(refused, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n')
    arguments = ["data", "prepare", "--input", tmp_path / "text.jsonl", "--tokenizer", "train:300"]
    refused([*arguments, "--val-documents", 1, "--out", tmp_path / "out"], "text.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.jsonl"]


# Run folders


def test_a_run_is_not_overwritten(refused, data, run):
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    before = files_below(run)
    refused(train(data, run), str(run), "--resume auto")
    assert files_below(run) == before


def test_a_run_is_not_resumed_with_other_settings(refused, data, run):
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    refused(train(data, run, "--resume", "auto", "--training.seed", 5), "training.seed", "5", "1337")


def test_pack_of_something_else(refused, tmp_path):
    refused(["pack", tmp_path / "nothing"], "nothing")
    refused(["pack", tmp_path], str(tmp_path), "config.toml")


def test_pack_refuses_a_damaged_checkpoint(refused, run, tmp_path):
    weights = next(run.glob("checkpoints/*/weights.pt"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    refused(["pack", weights.parent, "--out", tmp_path / "a"], "weights.pt")
    assert not (tmp_path / "a").exists()


# Artifacts


@pytest.fixture
def artifact(run) -> Path:
    assert main(["pack", str(run)]) == 0
    return run / "artifact.albatross"


def test_artifact_over_the_cap_comes_with_the_byte_table(run, refused, artifact, capsys):
    before = artifact.read_bytes()
    limit = len(before) - 1
    refused(["pack", run, "--max-bytes", limit], f"{len(before):,} bytes", f"{limit:,}")
    assert main(["pack", str(run), "--max-bytes", str(limit)]) == 2
    table = capsys.readouterr().err.splitlines()[1:]
    assert table[0].startswith("group")
    assert any(line.startswith("embedding.weight") for line in table)
    assert artifact.read_bytes() == before
    assert main(["pack", str(run), "--max-bytes", str(len(before))]) == 0


def test_full_disk_while_packing_leaves_the_previous_artifact(run, refused, artifact, monkeypatch):
    before = files_below(run)

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    refused(["pack", run], "artifact.albatross", "No space left on device")
    assert files_below(run) == before


@pytest.mark.parametrize("command", ["inspect", "verify", "evaluate"])
def test_artifact_cut_short_or_with_one_flipped_bit(refused, artifact, data, command):
    sound = artifact.read_bytes()
    more = ["--data", data] if command == "evaluate" else []
    for cut in (0, 5, len(sound) // 2, len(sound) - 1):
        artifact.write_bytes(sound[:cut])
        refused([command, artifact, *more], *([] if more else [str(artifact)]))
    for position in (0, 100, len(sound) // 2, len(sound) - 1):
        content = bytearray(sound)
        content[position] ^= 1
        artifact.write_bytes(content)
        refused([command, artifact, *more])
    artifact.write_bytes(sound)
    assert main([str(word) for word in (command, artifact, *more)]) == 0


def test_missing_artifact(refused, data, tmp_path):
    for command in (["inspect"], ["verify"], ["evaluate", "--data", data]):
        refused([*command, tmp_path / "none.albatross"], "none.albatross")
