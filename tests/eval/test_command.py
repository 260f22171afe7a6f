"""The evaluator's command line over real artifacts and data folders."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from eval.command import main
from model.text.shards import write_shard
from model.text.tokenizer import Tokenizer

VOCAB_SIZE = 300
TINY_MODEL = {"vocab_size": VOCAB_SIZE, "num_layers": 2, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1}


def run(folder: Path, *arguments: str, artifact: str = "a.albatross", data: str = "data") -> int:
    return main([str(folder / artifact), "--data", str(folder / data), "--device", "cpu", *arguments])


@pytest.fixture
def folder(evaluation_folder) -> Path:
    return evaluation_folder


@pytest.fixture(scope="module")
def full_report(evaluation_folder) -> dict:
    folder = evaluation_folder
    path = folder / "report.json"
    assert run(folder, "--mode", "plain", "sliding", "--report", str(path)) == 0
    assert run(folder, "--mode", "ttt", "--compare-frozen", "--report", str(path)) == 0
    return json.loads(path.read_text())


def test_the_report_follows_its_schema(full_report):
    schema = json.loads(resources.files("eval").joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(full_report, schema)
    for wrong in ({"bpb": "1"}, {"partial": 3}, {"mode": "plain"}, {"artifact_sha256": "x"}):
        broken = full_report | {"post_ttt": full_report["post_ttt"] | wrong}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_all_modes_score_the_same_targets_and_bytes(folder, full_report):
    sections = [full_report[name] for name in ("post_quantization", "post_quantization_sliding", "post_ttt")]
    num_bytes = sum(len(json.loads(line)["text"].encode()) for line in (folder / "val.jsonl").read_text().splitlines())
    num_tokens = (folder / "data" / "text_val_000000.bin").stat().st_size // 2 - 512
    for section in sections:
        assert section["num_bytes"] == num_bytes
        assert section["num_scored_targets"] == section["num_targets"] == num_tokens - 1
        assert (section["partial"], section["ledger"], section["lossless"]) == (False, "proved", True)
        assert sum(bucket["num_bytes"] for bucket in section["length_buckets"]) == num_bytes
        running = section["running_bpb"]
        last = {"num_targets": section["num_targets"], "num_bytes": num_bytes, "bpb": section["bpb"]}
        assert running[-1] == pytest.approx(last)
        assert [point["num_targets"] for point in running] == sorted({point["num_targets"] for point in running})
        assert 100 < len(running) <= 128
        assert section["bpb"] == pytest.approx(section["val_loss_nats"] * (num_tokens - 1) / num_bytes / np.log(2))
    assert len({section["bpb"] for section in sections}) == 3


def test_adaptation_helps_and_the_report_says_by_how_much(full_report):
    plain, ttt = full_report["post_quantization"], full_report["post_ttt"]
    assert ttt["bpb"] < plain["bpb"]
    assert ttt["improvement_over_plain_bpb"] == pytest.approx(plain["bpb"] - ttt["bpb"])
    assert ttt["improvement_over_frozen_bpb"] == pytest.approx(ttt["frozen_bpb"] - ttt["bpb"])
    assert ttt["improvement_over_frozen_bpb"] > 0
    assert full_report["val_bpb"] == ttt["bpb"]


def test_the_result_is_printed_in_the_communitys_shape(folder, capsys):
    assert run(folder, "--mode", "plain") == 0
    assert re.search(r"val_loss:\d+\.\d+ val_bpb:\d+\.\d+", capsys.readouterr().out)


def test_settings_come_from_the_artifact_and_can_be_replaced(folder, full_report, tmp_path, capsys):
    assert full_report["post_ttt"]["settings"]["chunk_tokens"] == 16
    report = tmp_path / "report.json"
    arguments = ["--mode", "ttt", "--report", str(report), "--eval.ttt.learning-rate", "0", "--eval.ttt.rank=1"]
    assert run(folder, *arguments) == 0
    section = json.loads(report.read_text())["post_ttt"]
    assert section["settings"]["learning_rate"] == 0
    assert section["overrides"] == {"ttt.learning-rate": "0", "ttt.rank": "1"}
    assert section["bpb"] == pytest.approx(full_report["post_ttt"]["frozen_bpb"], rel=1e-12)


def test_a_spent_budget_gives_a_valid_partial_report(folder, tmp_path, monkeypatch):
    """A clock that runs a second for every look at it: the budget ends in the middle."""
    schema = json.loads(resources.files("eval").joinpath("report.schema.json").read_text())
    for mode, section_name in (("plain", "post_quantization"), ("ttt", "post_ttt")):
        for seconds, something in (("1e-9", False), ("12", True)):
            ticks = iter(range(1000000))
            monkeypatch.setattr("eval.progress.time.monotonic", lambda ticks=ticks: float(next(ticks)))
            report = tmp_path / f"{mode}{seconds}.json"
            assert run(folder, "--mode", mode, "--budget-seconds", seconds, "--report", str(report)) == 0
            merged = json.loads(report.read_text())
            jsonschema.validate(merged, schema)
            section = merged[section_name]
            assert section["partial"] is True
            assert (section["num_scored_targets"] > 0) is something
            assert section["num_scored_targets"] < section["num_targets"]
            assert (section["bpb"] is not None) is something


def test_shards_by_others_are_read_and_unproved(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    for name in ("data.json", "text_val_documents.npy", "text_val_bytes_000000.bin"):
        (data / name).unlink()
    report = tmp_path / "report.json"
    arguments = ["--data", str(data), "--device", "cpu", "--mode", "plain", "--report", str(report)]
    assert main([str(folder / "a.albatross"), *arguments]) == 0
    section = json.loads(report.read_text())["post_quantization"]
    assert section["ledger"] == "unproved"
    assert section["lossless"] is None
    assert section["num_bytes"] > 0


def change_shard(data: Path, change) -> None:
    path = data / "text_val_000000.bin"
    tokens = np.fromfile(path, "<u2")[512:].copy()
    path.unlink()
    write_shard(path, change(tokens))


def without_bos(tokens: np.ndarray) -> np.ndarray:
    return np.where(tokens == 1, 5, tokens)


def with_foreign_token(tokens: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(tokens)) == 7, VOCAB_SIZE, tokens)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda data: shutil.rmtree(data), "no such data folder"),
        (lambda data: [path.unlink() for path in data.iterdir()], "no token shards"),
        (lambda data: (data / "tokenizer.model").unlink(), "tokenizer.model: missing"),
        (lambda data: [(data / name).unlink() for name in ("tokenizer.model", "data.json")], "holds no tokenizer"),
        (lambda data: (data / "tokenizer.model").write_bytes(b"nonsense"), "tokenizer.model"),
        (lambda data: change_shard(data, without_bos), "holds no document"),
        (lambda data: change_shard(data, with_foreign_token), "outside the vocabulary"),
        (lambda data: change_shard(data, lambda tokens: tokens[:-1]), "val_bytes"),
        (lambda data: (data / "text_val_documents.npy").write_bytes(b"x"), "text_val_documents.npy"),
    ],
)
def test_wrong_data_ends_in_one_line(folder, tmp_path, capsys, break_it, message):
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    break_it(data)
    expect_error(capsys, main([str(folder / "a.albatross"), "--data", str(data), "--device", "cpu"]), message)


def expect_error(capsys, code: int, message: str) -> None:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("albatross: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert "Traceback" not in captured.err + captured.out


def test_another_tokenizer_is_refused(folder, write_artifact, capsys):
    write_artifact(folder / "other.albatross", "0" * 64)
    code = run(folder, artifact="other.albatross")
    expect_error(capsys, code, "is not the one the artifact was made with")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": TINY_MODEL | {"vocab_size": 301}}, "pieces"),
        ({"model": TINY_MODEL | {"num_layers": 3}}, "is missing"),
        ({"model": TINY_MODEL | {"num_layers": 0}}, "num_layers"),
        ({"model": TINY_MODEL | {"colour": 1}}, "unknown field 'colour'"),
        ({"eval": {"ttt": {"rank": -1}}}, "ttt.rank must be"),
        ({"eval": {"strides": 1}}, "unknown eval setting strides"),
    ],
)
def test_configurations_that_fit_nothing_are_refused(folder, write_artifact, tmp_path, capsys, changes, message):
    path = tmp_path / "b.albatross"
    write_artifact(path, Tokenizer.load(folder / "data" / "tokenizer.model").sha256, **changes)
    expect_error(capsys, main([str(path), "--data", str(folder / "data"), "--device", "cpu"]), message)


def test_an_artifact_adapted_on_validation_text_is_reported_as_such(folder, write_artifact, tmp_path, full_report):
    path = tmp_path / "b.albatross"
    write_artifact(path, Tokenizer.load(folder / "data" / "tokenizer.model").sha256, legal=False)
    report = tmp_path / "report.json"
    arguments = ["--data", str(folder / "data"), "--device", "cpu", "--report", str(report)]
    assert main([str(path), *arguments]) == 0
    assert json.loads(report.read_text())["post_quantization"]["legal"] is False
    assert full_report["post_quantization"]["legal"] is True


def test_a_damaged_artifact_is_refused(folder, tmp_path, capsys):
    content = (folder / "a.albatross").read_bytes()
    path = tmp_path / "b.albatross"
    for damaged in (content[:-40], content[:2000] + bytes([content[2000] ^ 1]) + content[2001:], b""):
        path.write_bytes(damaged)
        expect_error(capsys, main([str(path), "--data", str(folder / "data")]), "b.albatross")
    path.unlink()
    expect_error(capsys, main([str(path), "--data", str(folder / "data")]), "b.albatross")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval.strid", "3"], "unknown eval setting strid"),
        (["--eval.stride-tokens", "x"], "stride_tokens must be of type int"),
        (["--eval.stride-tokens", "33"], "stride_tokens must be at most"),
        (["--eval.stride-tokens"], "needs a value"),
        (["--colour"], "unknown option --colour"),
        (["--budget-seconds", "0"], "--budget-seconds"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_wrong_arguments_end_in_one_line(folder, capsys, arguments, message):
    expect_error(capsys, run(folder, *arguments), message)


def test_a_report_that_is_none_is_found_before_the_work(folder, tmp_path, capsys):
    report = tmp_path / "report.json"
    report.write_text("nonsense")
    expect_error(capsys, run(folder, "--report", str(report)), "not a JSON report")
    assert report.read_text() == "nonsense"
