"""What a report draws is what the run folder holds."""

import json
import re

import numpy as np
import pytest

from artifact.reader import read
from launch.preset import load
from launch.report import comparison, differences, series
from launch.report.figures import figures
from launch.report.page import library, render, write
from launch.report.recorded import apportioned, load_runs
from tests.launch.report.conftest import NUM_STEPS


def only(rows, **values):
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def test_every_step_counts_once_and_bins_keep_the_mean(first):
    (run,) = load_runs([first])
    assert [row["step"] for row in run.steps] == list(range(1, NUM_STEPS + 1))
    points = series.binned(run.steps, ["train_loss"], 10)
    assert [point["step"] for point in points] == list(range(5, 51, 5))
    losses = [row["train_loss"] for row in run.steps]
    assert np.mean([point["train_loss"] for point in points]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_speed_and_step_time_follow_the_clock(first, second):
    runs = load_runs([first, second])
    speed = series.speed(runs)
    assert {row["tokens_per_second"] for row in only(speed, run="first")} == {512 / 0.025}
    assert {row["tokens_per_second"] for row in only(speed, run="second")} == {512 / 0.05}
    times = series.step_times(runs)
    assert {(row["part"], row["milliseconds"]) for row in only(times, run="second")} == {("step", 50.0)}


def test_parts_of_a_step_are_drawn_where_they_are_recorded(first):
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"forward_backward_ms": 20.0, "optimizer_ms": 5.0} if "train_loss" in row else row for row in rows]
    (first / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = load_runs([first])
    found = {(row["part"], row["milliseconds"]) for row in series.step_times(runs)}
    assert found == {("forward_backward", 20.0), ("optimizer", 5.0)}
    figure = next(figure for figure in figures(runs) if figure.id == "step_times")
    assert figure.spec["layer"][0]["mark"]["type"] == "area"


def test_learning_rates_are_settings_times_schedule(first):
    runs = load_runs([first])
    rows = only(series.learning_rates(runs), step=25)
    settings = load("tiny").settings.training
    assert {row["group"]: row["learning_rate"] for row in rows} == {
        "matrix": pytest.approx(settings.matrix.learning_rate / 2),
        "embedding": pytest.approx(settings.embedding.learning_rate / 2),
        "scalar": pytest.approx(settings.scalar.learning_rate / 2),
    }


def test_bytes_are_those_of_the_artifact(first):
    (run,) = load_runs([first])
    size = (first / "artifact.albatross").stat().st_size
    assert sum(row["bytes"] for row in series.artifact_bytes(run)) == size
    artifact = read(first / "artifact.albatross")
    shares = apportioned(artifact)
    of_groups = sum(row.coded_bytes for row in artifact.ledger().rows if row.num_weights)
    assert sum(share.coded_bytes for share in shares) == pytest.approx(of_groups)
    assert sum(share.num_weights for share in shares) == sum(a.size for a in artifact.arrays().values())
    for row in series.bits_by_layer([run]):
        assert 2 < row["bits_per_weight"] < 17
    assert {row["layer"] for row in series.bits_by_layer([run])} == {0, 1}


def test_scores_are_those_of_the_report(first):
    runs = load_runs([first])
    report = json.loads((first / "report.json").read_text())
    stairs = {row["stage"]: row["bpb"] for row in series.staircase(runs)}
    assert stairs["quantized"] == pytest.approx(report["post_quantization"]["bpb"], abs=1e-5)
    running = only(series.running_bpb(runs), mode="test-time training")
    assert running[-1]["bpb"] == pytest.approx(report["post_ttt"]["bpb"], abs=1e-5)
    gains = only(series.gain_by_length(runs), mode="test-time training")
    buckets = {bucket["max_document_tokens"]: bucket for bucket in report["post_quantization"]["length_buckets"]}
    for row, bucket in zip(gains, report["post_ttt"]["length_buckets"], strict=True):
        gain = buckets[row["max_document_tokens"]]["bpb"] - bucket["bpb"]
        assert row["gain_bpb"] == pytest.approx(gain, abs=1e-5)


def test_settings_differ_from_the_preset_where_they_were_overridden(first):
    (run,) = load_runs([first])
    from_preset, from_parent = differences.of_run(run)
    assert {name for name, *_ in from_preset.rows} == {
        f"model.{name}" for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")
    }
    assert ("model.num_layers", 2, load("tiny").settings.model.num_layers) in from_preset.rows
    assert from_parent.against == "the defaults (of preset tiny)"
    rank41 = differences.of_preset(load("rank41"))
    assert rank41.against == "preset rank42 (of preset lower-lr)"
    assert ("training.matrix.learning_rate", 0.02, 0.04) in rank41.rows


def test_runs_that_differ_in_their_seed_are_one_side(first, second, tmp_path):
    runs = load_runs([first, second])
    assert comparison.sides(runs) == [runs]
    config = (second / "config.toml").read_text()
    (second / "config.toml").write_text(re.sub(r"^max_steps = \d+$", "max_steps = 3", config, flags=re.MULTILINE))
    ((title, text),) = comparison.verdicts(load_runs([first, second]))
    assert title == "first against second"
    assert "improvement: -0.010000 bpb, -0.010000 nats per token" in text


def test_the_page_holds_its_data_and_asks_for_nothing_else(first, second, tmp_path):
    size = write([first, second], tmp_path / "deep" / "report.html")
    page = (tmp_path / "deep" / "report.html").read_text()
    assert size == len(page.encode()) < 2_000_000
    data = json.loads(re.search(r'id="figures">(.*?)</script>', page).group(1))
    assert [each["id"] for each in data] == [figure.id for figure in figures(load_runs([first, second]))]
    assert "default-src 'none'" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]* (?:src|href)=", page.replace(library(), ""))


def test_scores_of_another_file_are_pointed_out(first):
    assert 'class="warning"' not in render(load_runs([first]))
    report = json.loads((first / "report.json").read_text())
    report["post_ttt"] |= {"artifact_sha256": "0" * 64, "partial": True}
    report["post_quantization"]["legal"] = False
    (first / "report.json").write_text(json.dumps(report))
    page = render(load_runs([first]))
    assert page.count('class="warning"') == 3
    assert "of another file than the artifact" in page


def test_names_cannot_break_out_of_the_page(first):
    evil = first.rename(first.with_name("<script>alert(1)<"))
    page = render(load_runs([evil]))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_what_is_not_recorded_is_named_with_what_brings_it(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "train_loss": 5.0, "train_time_ms": 9.0}\n{"step": 2, "tra')
    page = render(load_runs([run]))
    assert page.count('class="missing"') == 9
    assert "albatross pack writes one" in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", "{}\n", ["metrics.jsonl: line 1", "no step"]),
        ("metrics.jsonl", "nonsense\n{}\n", ["metrics.jsonl: line 1", "not JSON"]),
        ("report.json", "[1]", ["report.json", "accepts a JSON object"]),
        ("config.toml", "= 3", ["config.toml", "not TOML"]),
        ("artifact.albatross", "garbage", ["artifact.albatross"]),
    ],
)
def test_damaged_files_are_refused_by_name(refused, first, tmp_path, name, content, words):
    (first / name).write_text(content)
    refused(["report", first, "--out", tmp_path / "r.html"], *words)
    assert not (tmp_path / "r.html").exists()


def test_folders_that_are_no_runs_are_refused(refused, first, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(["report", tmp_path / "empty", "--out", tmp_path / "r.html"], "empty", "is not a run folder")
    refused(["report", first, first / ".", "--out", tmp_path / "r.html"], "is given twice")
