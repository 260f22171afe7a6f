"""report.json: merged in place, replaced in one step, described by its schema."""

from __future__ import annotations

import json
import math

import pytest

from eval import report
from model.errors import InputError

IDENTITY = {
    "artifact_sha256": "a" * 64,
    "tokenizer_sha256": "b" * 64,
    "data_sha256": "c" * 64,
    "num_targets": 10,
    "num_bytes": 30,
    "partial": False,
}


def test_sections_of_several_runs_are_merged(tmp_path):
    path = tmp_path / "report.json"
    report.update(path, "pre_quantization", {"bpb": 1.5})
    report.update(path, "post_quantization", {"bpb": 1.6, "val_loss_nats": 3.0, **IDENTITY})
    merged = report.update(path, "post_ttt", {"bpb": 1.4, "val_loss_nats": 2.6, **IDENTITY})
    assert json.loads(path.read_text()) == merged
    assert [merged[name]["bpb"] for name in ("pre_quantization", "post_quantization", "post_ttt")] == [1.5, 1.6, 1.4]
    assert (merged["val_bpb"], merged["val_loss"]) == (1.4, 2.6)
    assert merged["post_ttt"]["improvement_over_plain_bpb"] == pytest.approx(0.2)


def test_the_order_of_runs_does_not_matter(tmp_path):
    sections = {"post_quantization": {"bpb": 1.6, **IDENTITY}, "post_ttt": {"bpb": 1.7, **IDENTITY}}
    results = []
    for names in (["post_quantization", "post_ttt"], ["post_ttt", "post_quantization"]):
        path = tmp_path / f"{names[0]}.json"
        for name in names:
            merged = report.update(path, name, sections[name])
        results.append(merged)
    assert results[0] == results[1]
    assert results[0]["post_ttt"]["improvement_over_plain_bpb"] == pytest.approx(-0.1)


@pytest.mark.parametrize("difference", [{"artifact_sha256": "d" * 64}, {"num_bytes": 29}, {"partial": True}])
def test_sections_over_different_things_are_not_compared(tmp_path, difference):
    path = tmp_path / "report.json"
    report.update(path, "post_quantization", {"bpb": 1.6, **IDENTITY})
    merged = report.update(path, "post_ttt", {"bpb": 1.4, **IDENTITY, **difference})
    assert merged["post_ttt"]["improvement_over_plain_bpb"] is None


def test_a_partial_section_is_not_the_headline(tmp_path):
    path = tmp_path / "report.json"
    report.update(path, "post_quantization", {"bpb": 1.6, **IDENTITY})
    merged = report.update(path, "post_ttt", {"bpb": 1.1, **IDENTITY, "partial": True})
    assert merged["val_bpb"] == 1.6


def test_other_tools_fields_are_kept(tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"author": "someone", "bytes_total": 5}')
    merged = report.update(path, "pre_quantization", {"bpb": 1.5})
    assert merged["author"] == "someone"
    assert merged["bytes_total"] == 5


def test_figures_that_do_not_exist_are_null(tmp_path):
    path = tmp_path / "report.json"
    report.update(path, "post_ttt", {"bpb": math.nan, "length_buckets": [{"bpb": math.inf}], "partial": True})
    section = json.loads(path.read_text())["post_ttt"]
    assert section["bpb"] is None
    assert section["length_buckets"] == [{"bpb": None}]


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_file_that_is_no_report_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "report.json"
    content = text.encode("utf-8", "surrogateescape")
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a JSON report"):
        report.update(path, "pre_quantization", {"bpb": 1.5})
    assert path.read_bytes() == content


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report.update(path, "pre_quantization", {"bpb": 1.5})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.update(path, "post_quantization", {"bpb": 1.4})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


def test_unknown_sections_and_missing_figures_are_a_fault(tmp_path):
    with pytest.raises(ValueError, match="section must be one of"):
        report.update(tmp_path / "r.json", "post_tt", {"bpb": 1.0})
    with pytest.raises(ValueError, match="needs a bpb"):
        report.update(tmp_path / "r.json", "post_ttt", {})
